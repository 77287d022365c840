"""Jobs that run models and train none, as the doctor sees them: models, and the rows they read."""

from collections.abc import Iterator, Mapping

from unime_jax import config, files
from unime_jax.backbones import Backbone
from unime_jax.data import heads
from unime_jax.data.formats import Source
from unime_jax.data.pairs import open_pairs
from unime_jax.jobs import doctor_backbone, doctor_data, doctor_rows
from unime_jax.jobs.common_checks import open_model
from unime_jax.jobs.doctor_data import Reading
from unime_jax.jobs.doctor_report import Report
from unime_jax.jobs.evaluated_model import model_source

SEED = 0  # of the sample; these jobs have none of their own
ModelConfig = config.EmbedConfig | config.MineConfig | config.JudgeConfig | config.EvaluateConfig


def examine(report: Report, settings: config.Settings, options: config.DoctorOptions) -> None:
    """Models and rows of a job."""
    report.skip(
        "room",
        "memory and disk of a job that trains nothing are not estimated; --config=plan:embed plans "
        "the memory of embedding",
    )
    if isinstance(settings, config.MergeConfig):
        for number, name in enumerate(settings.models):
            _backbone(report, f"config.models[{number}]", name, None, None)
        return
    if not isinstance(settings, ModelConfig):
        report.skip("export", "a checkpoint is looked at by the export itself")
        return
    backbone = _backbone(report, "config.backbone", settings.backbone, settings.revision, settings)
    if isinstance(settings, config.EvaluateConfig):
        report.skip(
            "data", "rows of evaluations are read by the job itself, which refuses bad ones"
        )
        return
    # A judge words pairs of items, so that rows of single ones would say nothing of lengths.
    judges = isinstance(settings, config.JudgeConfig)
    preprocess = None if backbone is None or judges else backbone.preprocess
    if judges:
        report.skip("data.lengths", "prompts of a judge are not measured")
    for key, path, rows in _sources(report, settings):
        with report.part("data") as facts:
            weights = {name: float(len(source)) for name, source in rows.items() if len(source)}
            if not weights:
                continue
            sample = doctor_rows.read(path, rows, weights, preprocess, options.rows, SEED)
            facts[path] = f"{sample.total} of {sum(sample.rows.values())} rows read"
            share = settings.data.max_bad_share
            reading = Reading(path, key, share, settings.max_length, "config.max_length")
            doctor_data.check_rows(report, reading, sample)


def _sources(
    report: Report, settings: config.EmbedConfig | config.MineConfig | config.JudgeConfig
) -> Iterator[tuple[str, str, Mapping[str, Source]]]:
    """Key, path and rows of each data set that there is."""
    data = settings.data
    if isinstance(data, config.CorpusConfig):
        named = [("config.data.datasets", name) for name in data.datasets]
    else:
        named = [("config.data.train", data.train)] if data.train else []
    for key, name in named:
        path = files.as_path(data.folder) / name
        try:
            rows: Mapping[str, Source] = open_pairs(path, data.columns)
            if isinstance(data, config.MineDataConfig):
                rows = heads.heads(rows, data.first_rows, data.first_rows_by_source)
        except (ValueError, OSError):
            report.skip("data", f"{key}: {path} cannot be opened, as an error says")
            continue
        yield key, str(path), rows


def _backbone(
    report: Report,
    key: str,
    name: str,
    revision: str | None,
    settings: ModelConfig | None,
) -> Backbone | None:
    """The opened model, looked at; None: it cannot be, which is said."""
    longest = settings.max_length if settings else None
    processing = settings.processing if settings else None
    with report.part("backbone") as facts:
        try:
            source = model_source(name)
            backbone = open_model(source, revision, longest, processing, weights=False)
        except (ValueError, OSError):
            report.skip("backbone", f"{key}: it cannot be opened, as an error says")
            return None
        doctor_backbone.check(
            report, facts, backbone, weights=True, images=True, processing=processing, key=key
        )
        return backbone
    return None
