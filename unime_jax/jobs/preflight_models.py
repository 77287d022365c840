"""Preflight checks of jobs that run models and train none; see `preflight`."""

import jax

from unime_jax import backbones, config, files
from unime_jax.data import (
    embedding_store,
    heads,
    items,
    mined_rows,
    mining_corpus,
    schema,
)
from unime_jax.data.pairs import open_pairs
from unime_jax.evaluation.benchmarks import sets as benchmark_sets
from unime_jax.evaluation.views import check_width
from unime_jax.export import merge_parts
from unime_jax.jobs.common_checks import (
    Made,
    Problems,
    check_module,
    check_sets,
    check_tasks,
    check_teacher,
    check_texts,
    check_weights,
    open_model,
)


def check_embedding(settings: config.EmbedConfig, problems: Problems) -> None:
    """Model and corpus of an embedding job."""
    check_embedder(settings, problems)
    folder = files.as_path(settings.data.folder)
    if not settings.data.datasets and not settings.data.texts:
        problems.add("config.data.datasets and config.data.texts name nothing to embed")
    for name in settings.data.datasets:
        with problems.collected("config.data.datasets"):
            open_pairs(folder / name, settings.data.columns)
    for name in settings.data.texts:
        with problems.collected("config.data.texts"):
            items.check_file(folder / name)


def check_merge(settings: config.MergeConfig, workdir: files.Path, problems: Problems) -> None:
    """Models of a merge, and whether they are of one kind."""
    if jax.process_count() > 1:
        problems.add(
            f"job merge runs in one process, and there are {jax.process_count()}: start it without"
            " --distributed"
        )
    parts = []
    for key, sources in (("models", settings.models), ("base", (settings.base,))):
        for source in filter(None, sources):
            if files.resolved(files.as_path(source)) in (
                files.resolved(workdir),
                files.resolved(workdir / "hf"),
            ):
                problems.add(
                    f"config.{key}: {source} is where the merge is written; give another --workdir"
                )
                continue
            with problems.collected(f"config.{key}"):
                part = merge_parts.open_part(source, settings, weights=False)
                check_weights(part.backbone)
                parts.append(part)
    if len(parts) == len(settings.models) + bool(settings.base):
        with problems.collected():
            base = parts.pop() if settings.base else None
            merge_parts.check_alike(parts, base)


def check_mining(settings: config.MineConfig, problems: Problems) -> None:
    """Model, rows and corpus of a mining job."""
    check_embedder(settings, problems)
    check_mined_data(settings, problems)


def check_embedder(settings: config.EmbedConfig | config.MineConfig, problems: Problems) -> None:
    """The model that embeds a corpus, or that mines."""
    with problems.collected("config.backbone"):
        open_model(
            settings.backbone,
            settings.revision,
            settings.max_length,
            settings.processing,
            weights=True,
        )


def check_mined_data(settings: config.MineConfig, problems: Problems) -> None:
    """Rows and corpus of a mining job, and the vectors of its guide."""
    data = settings.data
    folder = files.as_path(data.folder)
    if not data.train:
        problems.add("config.data.train is empty: name the rows to mine for, as of a training run")
    else:
        with problems.collected("config.data.train"):
            rows = open_pairs(folder / data.train, data.columns)
            schema.check_names(data.sources, rows)
            heads.heads(rows, data.first_rows, data.first_rows_by_source)
    if data.corpus:
        with problems.collected("config.data.corpus"):
            mining_corpus.open_corpus(folder / data.corpus, data.columns)
    if settings.search.guide:
        for side in ("queries", "candidates"):
            with problems.collected("config.search.guide"):
                embedding_store.check_folder(files.as_path(settings.search.guide) / side)


def check_judging(settings: config.JudgeConfig, problems: Problems) -> None:
    """Model and pairs of a judging job."""
    check_judge(settings, problems)
    check_judged_data(settings.data, problems)


def check_judge(settings: config.JudgeConfig, problems: Problems) -> None:
    """Model of a judging job."""
    with problems.collected("config.backbone"):
        backbone = open_model(
            settings.backbone,
            settings.revision,
            settings.max_length,
            settings.processing,
            weights=True,
        )
        if backbone.lm_head is None:
            backbones.with_lm_head(backbone)  # says which families have a head


def check_judged_data(data: config.JudgeDataConfig, problems: Problems) -> None:
    """Pairs of a judging job, and mined negatives."""
    if not data.train:
        problems.add(
            "config.data.train is empty: name the pairs to judge, below config.data.folder"
        )
        return
    folder = files.as_path(data.folder)
    with problems.collected("config.data.train"):
        sources = open_pairs(folder / data.train, data.columns)
        rows = {name: len(source) for name, source in sources.items()}
        if not any(rows.values()):
            problems.add(f"config.data.train: there is no row in {folder / data.train}")
            return
        if data.mined:
            with problems.collected("config.data.mined"):
                mined_rows.join(sources, rows, data.mined, folder, data.columns, data.mined_use)


def check_evaluation(settings: config.EvaluateConfig, source: str, problems: Problems) -> None:
    """Model and data of an evaluation job; `source` is the folder or hub id of the model."""
    with problems.collected("config.backbone"):
        backbone = open_model(
            source, settings.revision, settings.max_length, settings.processing, weights=True
        )
        check_width(settings.evaluation.dims, backbone.dimension, "config.evaluation.dims")
    check_evaluation_data(settings, problems)


def check_evaluation_data(settings: config.EvaluateConfig, problems: Problems) -> None:
    """Data of an evaluation job."""
    folder = files.as_path(settings.data.folder)
    made = Made(folder, bool(settings.data.prepare.module))
    if settings.data.prepare.module:
        check_module(settings.data.prepare.module, problems)
    evaluation = settings.evaluation
    parts = {"mmeb": evaluation.mmeb, "composition": evaluation.composition}
    check_tasks(parts, evaluation.images, folder, made, problems)
    check_texts(evaluation.texts, settings.data.columns, folder, made, problems)
    check_sets(settings.data.eval, settings.data.columns, folder, made, problems)
    _check_benchmarks(evaluation, folder, made, problems)
    check_teacher(settings.data.teacher, folder, made, problems)


def _check_benchmarks(
    evaluation: config.TasksConfig, folder: files.Path, made: Made, problems: Problems
) -> None:
    """The folder of prepared benchmark sets; a set that is not there is none of the problems."""
    name = evaluation.benchmarks
    if name and not made.later(folder / name):
        with problems.collected("config.evaluation.benchmarks"):
            benchmark_sets.check_folder(folder / name)
