"""Everything that a model is evaluated on, by place; a dataset is read when it is scored."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from unime_jax import files
from unime_jax.batch import Item
from unime_jax.config import AgreementConfig, Distillation, TrainConfig
from unime_jax.data.embedding_store import Embeddings
from unime_jax.data.formats import Source, open_dataset
from unime_jax.data.formats.tfds import version_folder
from unime_jax.data.settings import Instructions
from unime_jax.evaluation import scores, tasks
from unime_jax.evaluation.benchmarks import mmeb_rows, mmeb_v2_video, prepared_set, visdoc
from unime_jax.evaluation.benchmarks import sets as benchmark_sets
from unime_jax.evaluation.benchmarks.composition_rules import Score
from unime_jax.evaluation.benchmarks.prepared_set import PreparedSet, TaskSettings
from unime_jax.evaluation.benchmarks.sets import open_benchmarks, said
from unime_jax.evaluation.encoding.item_table import Encode, Images
from unime_jax.evaluation.encoding.shared_encoder import SharedEncoder
from unime_jax.evaluation.encoding.stored_images import open_images
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.retrieval import caption_scores
from unime_jax.evaluation.retrieval import scores as retrieval_scores
from unime_jax.evaluation.retrieval.data import PLACE, images_of
from unime_jax.evaluation.retrieval.files import open_sets
from unime_jax.evaluation.tasks import composition, distillation, mmeb, retrieval
from unime_jax.evaluation.tasks import viewed as viewed_task
from unime_jax.evaluation.tasks.captions import CAPTION, VIDEO, CaptionsResult
from unime_jax.evaluation.tasks.retrieval import RetrievalResult
from unime_jax.evaluation.tasks.viewed import WHOLE
from unime_jax.evaluation.views import NONE, Views, parts_of

Key = tuple[tasks.Kind, str]  # kind and name of a task


@dataclasses.dataclass(frozen=True)
class Suite:
    """Tasks, the meta task and split of each of MMEB's datasets, and where their images are.

    No rows, images or vectors are held. `not_run` says of benchmark sets that were asked for why
    there are no tasks of them.
    """

    tasks: tuple[tasks.Task, ...]
    table: scores.Table
    image_folder: files.Path
    instructions: Instructions = "data"  # of MMEB's datasets, visual documents included
    benchmarks: tuple[PreparedSet, ...] = ()
    not_run: Mapping[str, str] = dataclasses.field(default_factory=dict)
    views: Views = NONE  # that all tasks are scored by, too

    @property
    def is_empty(self) -> bool:
        return not self.tasks

    def images(self) -> Images:
        """Encoded bytes by path; an index of them is made anew by every call.

        Those of retrieval sets lie in the rows of the sets, those of benchmark sets below folders
        of their own.
        """
        own = {t.name: t.data for t in self.tasks if isinstance(t, retrieval.Task)}
        in_rows, stored = images_of(own), open_images(self.image_folder)
        of_sets = prepared_set.images_of(self.benchmarks)

        def read(path: str) -> bytes:
            if path.startswith(PLACE):
                return in_rows(path)
            return of_sets(path) if path.startswith(prepared_set.PLACE) else stored(path)

        return read

    @property
    def composition_rows(self) -> dict[str, int]:
        """Rows of each subset of composition that is scored by itself."""
        of_kind = [t for t in self.tasks if isinstance(t, composition.Task)]
        return {task.name: len(task) for task in of_kind if not task.set}


def open_suite(settings: TrainConfig, folder: files.Path, teacher: Embeddings | None) -> Suite:
    """The tasks and views of a training run's `evaluation`; `folder` is its `data.folder`."""
    config, loss = settings.evaluation, settings.loss
    agreement = None
    if config.texts and teacher and isinstance(loss, Distillation):
        measure = AgreementConfig(
            loss.temperature, loss.teacher_temperature, loss.direction, loss.mask_diagonal
        )
        suffix, columns = settings.data.suffix, settings.data.columns
        agreement = distillation.Task(folder / config.texts, teacher, suffix, measure, columns)
    return make_suite(
        folder,
        mmeb_folder=config.mmeb,
        instructions=config.instructions,
        composition_folder=config.composition,
        images=config.images,
        image_prompt=config.image_prompt,
        limit=config.limit,
        agreement=agreement,
        retrieval_data=settings.data.eval,
        columns=settings.data.columns,
        caption_prompt=CAPTION,
        video_prompt=VIDEO,
        benchmark_folder="",
        benchmark_names=(),
        views=Views(
            settings.matryoshka.dims if config.dims is None else config.dims, config.precisions
        ),
    )


def make_suite(
    folder: files.Path,
    *,
    mmeb_folder: str,
    instructions: Instructions = "data",
    composition_folder: str,
    images: str,
    image_prompt: str,
    limit: int,
    agreement: distillation.Task | None,
    retrieval_data: str,
    columns: Mapping[str, str],
    caption_prompt: str,
    video_prompt: str,
    benchmark_folder: str,
    benchmark_names: Sequence[str],
    views: Views = NONE,
) -> Suite:
    """Opens folders below `folder` ("": none), of which no row is read.

    `retrieval_data` may be a file, too, see `retrieval_files.open_sets`, which is given `columns`.
    The table is the dataset's own metadata, or MMEB's. Images come from a TFDS folder with the
    columns path and image, or from plain files, whose paths must stay below it. The three prompts
    are of images, captions and clips without a text of their own. Of prepared benchmark sets those
    of `benchmark_names` are opened, see `benchmark_sets.open_benchmarks`. All is scored by `views`,
    too.

    Raises:
      FileNotFoundError: a folder without a dataset.
      ValueError: a dataset whose meta task is not known, or none of the benchmark sets can be run,
        and there is nothing else.
    """
    datasets = open_dataset(folder / mmeb_folder) if mmeb_folder else {}
    datasets = _named_as_on_the_hub(datasets)
    table = table_of(folder / mmeb_folder) if mmeb_folder else {}
    if unknown := sorted(set(datasets) - set(table)):
        raise ValueError(
            f"{folder / mmeb_folder}: no meta task is known for {', '.join(unknown)}. Name MMEB's "
            'datasets as the hub does, or give the dataset metadata {"datasets": {name: {"meta", '
            '"split"}}}.'
        )
    subsets = open_dataset(folder / composition_folder) if composition_folder else {}
    suite: list[tasks.Task] = [
        mmeb.Task(name, mmeb_rows.worded(name, rows, instructions), limit)
        for name, rows in datasets.items()
    ]
    suite += [
        composition.Task(name, rows, image_prompt, caption_prompt, limit)
        for name, rows in subsets.items()
    ]
    suite += [agreement] if agreement else []
    sets = open_sets(folder / retrieval_data, columns) if retrieval_data else []
    suite += [retrieval.Task(data, limit) for data in sets]
    benchmarks = benchmark_sets.NONE
    if benchmark_folder:
        chosen = TaskSettings(image_prompt, caption_prompt, video_prompt, limit, instructions)
        taken = [(task.kind, task.name) for task in suite]
        benchmarks = open_benchmarks(folder / benchmark_folder, benchmark_names, chosen, taken)
    if benchmark_folder and not suite and not benchmarks.tasks:
        raise ValueError(
            f"no benchmark set in {folder / benchmark_folder} can be run:\n"
            + (said(benchmarks.not_run) or "none is prepared")
        )
    return Suite(
        (*suite, *benchmarks.tasks),
        {name: table[name] for name in datasets} | dict(benchmarks.table),
        folder / images,
        instructions,
        benchmarks.sets,
        benchmarks.not_run,
        views,
    )


def evaluate(suite: Suite, encode: Encode) -> tuple[scores.Scores, dict[Key, Any]]:
    """Scores in percent, and the result of each task."""
    width = None

    def measured(items: Sequence[Item]) -> np.ndarray:
        nonlocal width
        vectors = encode(items)
        width = vectors.shape[-1]
        return vectors

    viewed = [viewed_task.Task(task, suite.views) for task in suite.tasks]
    run = tasks.run_all(viewed, suite.images(), SharedEncoder(measured))
    by_view = {(task.kind, task.name): results for task, results in run}
    return summary(suite, by_view, width), {key: of[WHOLE] for key, of in by_view.items()}


def rankings(results: Mapping[Key, Any]) -> dict[str, DatasetResult]:
    """The results of MMEB's datasets by name."""
    return {name: result for (kind, name), result in results.items() if kind == "mmeb"}


def retrievals(results: Mapping[Key, Any]) -> dict[str, RetrievalResult]:
    """The results of retrieval sets by name."""
    return {name: result for (kind, name), result in results.items() if kind == "retrieval"}


def compositions(results: Mapping[Key, Any]) -> dict[str, Score]:
    """The scores of composition by name."""
    return composition.scores_of(r for (kind, _), r in results.items() if kind == "composition")


def captions(results: Mapping[Key, Any]) -> dict[str, CaptionsResult]:
    """The results of sets of captions by name."""
    return {name: result for (kind, name), result in results.items() if kind == "captions"}


def caption_rankings(results: Mapping[Key, Any]) -> dict[str, RetrievalResult]:
    """The rankings of sets of captions, both ways, by their names."""
    both = [ranking for of in captions(results).values() for ranking in of.ways.values()]
    return {ranking.name: ranking for ranking in both}


def summary(
    suite: Suite, by_view: Mapping[Key, Mapping[str, Any]], dimension: int | None
) -> scores.Scores:
    """Scores of all tasks, with MMEB's averages, and the same of each view in "views".

    hit@1 in fewer bits, where many candidates tie, is of rows whose gold has no equal.

    Args:
      by_view: results of each task, of its vectors themselves and of their views.
      dimension: numbers of a whole vector, which goes with the views; None: unknown.
    """

    def of(view: str) -> scores.Scores:
        results = {key: results[view] for key, results in by_view.items()}
        return _summary(suite, results, in_codes=parts_of(view, 0)[1] != "float32")

    found = of(WHOLE)
    if suite.views.names:
        found["views"] = {name: of(name) for name in suite.views.names}
        found |= {"dimension": dimension} if dimension else {}
    if suite.not_run:
        found["not_run"] = dict(suite.not_run)
    return found


def _summary(suite: Suite, results: Mapping[Key, Any], *, in_codes: bool) -> scores.Scores:
    hits = {
        name: result.clear_hit_at_1 if in_codes else result.hit_at_1
        for name, result in rankings(results).items()
    }
    composed = {name: score.percent for name, score in compositions(results).items()}
    found = scores.summary({name: hits[name] for name in suite.table}, suite.table, composed)
    if suite.table or any(name in visdoc.SETS for name in retrievals(results)):
        found["instructions"] = suite.instructions
    for (kind, _), result in results.items():
        if kind == "distillation":
            found["distillation"] = result
    of_each: Mapping[str, Any] = {}
    if sets := retrievals(results):
        found["retrieval"] = retrieval_scores.of_sets(sets)
        # A set that is alone has no scores of its own beside those of all.
        of_each = found["retrieval"].get("datasets") or {next(iter(sets)): found["retrieval"]}
        found |= visdoc.mean(of_each)
    if pictures := captions(results):
        found["captions"] = {name: caption_scores.of_set(of) for name, of in pictures.items()}
    of_videos = mmeb_v2_video.summary(hits, of_each, found.get("captions", {}))
    found |= of_videos | ({"instructions": suite.instructions} if of_videos else {})
    if clusters := {n: r.v_measure for (kind, n), r in results.items() if kind == "clustering"}:
        found["clustering"] = clusters
    return found


def _named_as_on_the_hub(datasets: Mapping[str, Source]) -> dict[str, Source]:
    """Datasets without the split in their names, and without those that no average counts."""
    named = {name.removesuffix("/test"): rows for name, rows in datasets.items()}
    if unused := [name for name in named if name in scores.NOT_COUNTED]:
        logging.info("%s: not one of MMEB's 36 datasets, and left out", ", ".join(unused))
    return {name: rows for name, rows in named.items() if name not in scores.NOT_COUNTED}


def table_of(folder: files.Path) -> scores.Table:
    """Meta task and split by dataset: of the data's own metadata, or those of MMEB."""
    try:
        version = version_folder(folder)
    except FileNotFoundError:  # of another format, which has no metadata
        return scores.MMEB_V1
    metadata = tfds.builder_from_directory(version).info.metadata or {}
    named = metadata.get("datasets", {})
    return {n: (v["meta"], v["split"]) for n, v in named.items()} or scores.MMEB_V1
