"""What is wrong with the rows that a run reads, by a sample of them."""

import dataclasses

from unime_jax import config, files
from unime_jax.jobs.doctor_report import Report
from unime_jax.jobs.doctor_rows import Sample
from unime_jax.training.loss_settings import (
    Contrastive,
    Distillation,
    JudgeDistillation,
    contrastive_part,
)

CUT, REPEATED = 0.05, 0.05  # shares of the rows from which on it is more than a note, or said
FALSE_NEGATIVES = 0.5  # of a query in a batch, as expected
ALIKE = 0.1  # different queries, as a share of the rows
LOOK = "Look at all rows: python -m data_pipelines.validate"


@dataclasses.dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
      path: of the data.
      key: the config key that names it.
      max_bad_share: of the rows that may be unusable.
      longest: tokens of a row; None: as many as the model takes.
      length_key: the config key that says so.
    """

    path: str
    key: str
    max_bad_share: float
    longest: int | None
    length_key: str


def check(report: Report, settings: config.TrainConfig, sample: Sample) -> None:
    """All that a sample of training rows shows."""
    data = settings.data
    longest = max((bucket.tokens for bucket in data.buckets), default=None)
    reading = Reading(
        path_of(data), "config.data.train", data.max_bad_share, longest, "config.data.buckets"
    )
    check_rows(report, reading, sample)
    _check_repeats(report, settings, sample)
    _check_negatives(report, settings, sample)
    _check_scores(report, settings, sample)


def in_batch(settings: config.TrainConfig) -> tuple[str, Contrastive | None]:
    """The loss that contrasts pairs of a batch, and the config key that has it; None: none does."""
    key, loss = contrastive_part(settings.loss)
    judged = isinstance(settings.loss, JudgeDistillation) and not settings.loss.contrastive_weight
    return key, None if judged else loss


def _first(sample: Sample, kind: str, source: str = "") -> str:
    """The first row of a kind, as it is said of; of a source, if one is named."""
    rows = sample.findings[kind].rows
    row = next((row for row in rows if row.source == source), rows[0])
    image = f", image {row.image}" if row.image else ""
    return f"source {row.source!r}, {row.row}{image}: {row.reason}"


def path_of(data: config.DataConfig) -> str:
    """Where the training rows are."""
    return str(files.as_path(data.folder) / data.train)


def check_rows(report: Report, reading: Reading, sample: Sample) -> None:
    """What each row by itself shows."""
    bad, total, limit = sum(sample.unusable.values()), sample.total, reading.max_bad_share
    for name, count in sample.unusable.items():
        if count and count == sample.looked[name] and bad < total:
            report.add(
                "error",
                "data.unusable_source",
                f"source {name!r}: none of the {count} rows that were read can be used. "
                f"{_first(sample, 'unusable_rows', name)}",
                where=reading.key,
                do="Repair it, or leave it out (config.data.weights of a training run, which ends "
                "at a source without a usable row).",
            )
    if bad:
        stops = bad / total > limit
        report.add(
            "error" if stops else "warning",
            "data.unusable",
            f"{bad} of {total} rows that were read cannot be used ({bad / total:.1%}), "
            + (
                f"more than config.data.max_bad_share={limit} lets pass: the run would stop. "
                if stops
                else "and the run does without them. "
            )
            + f"The first: {_first(sample, 'unusable_rows')}",
            where=reading.key,
            do=f"{LOOK} {reading.path}; repair or leave out what it lists"
            + (", or raise config.data.max_bad_share." if stops else "."),
        )
    at_most = f" to {reading.longest} tokens" if reading.longest else ""
    kinds = {
        "cut_texts": (
            f"a text that is cut{at_most}",
            reading.length_key,
            "Give rows more tokens (and memory), or shorten the texts.",
        ),
        "markers_without_image": (
            "an image marker without an image",
            "config.data.columns",
            "Name the column of the images by config.data.columns, or take the markers out of the "
            "texts; config.processing.missing_images says what becomes of them.",
        ),
        "tiny_images": (
            "an image of a few pixels, as stands for one that could not be fetched",
            reading.key,
            "Fetch these images again, or leave their rows out.",
        ),
        "positives_among_negatives": (
            "its own positive among its negatives",
            reading.key,
            "Take them out: the row would be pulled together and pushed apart at once.",
        ),
    }
    for kind, (what, where, do) in kinds.items():
        if kind not in sample.findings or not sample.findings[kind].count:
            continue
        count = sample.findings[kind].count
        few = kind == "cut_texts" and count < CUT * sample.total
        report.add(
            "note" if few else "warning",
            f"data.{kind}",
            f"{count} of {sample.total} rows have {what}. The first: {_first(sample, kind)}",
            where=where,
            do=do,
        )


def _check_repeats(report: Report, settings: config.TrainConfig, sample: Sample) -> None:
    pairs, rows = sample.pairs, len(sample.pairs)
    if rows < 2:
        return
    own = sum(pair.query == pair.positive for pair in pairs)
    if own:
        report.add(
            "warning",
            "data.query_is_target",
            f"{own} of {rows} rows have the same item as query and positive, which every model "
            "finds without learning",
            where="config.data.columns",
            do="See that config.data.columns names two different columns, or leave them out.",
        )
    queries = len({pair.query for pair in pairs})
    if queries <= max(1, ALIKE * rows):
        report.add(
            "warning",
            "data.queries_alike",
            f"{rows} rows have {queries} different queries, so that most queries of a batch are "
            "one and the same, with different positives",
            where="config.data.columns",
            do="See that the query's column and its images are read, and not an instruction alone "
            "(config.data.columns).",
        )
    again = sample.findings["duplicate_pairs"].count if "duplicate_pairs" in sample.findings else 0
    if again > REPEATED * rows:
        report.add(
            "warning",
            "data.duplicate_pairs",
            f"{again} of {rows} rows are pairs that came before. The first: "
            f"{_first(sample, 'duplicate_pairs')}",
            where="config.data.train",
            do=f"Keep one of each. {LOOK} {path_of(settings.data)}.",
        )
    of, loss = in_batch(settings)
    if loss is None or queries <= max(1, ALIKE * rows):
        return
    masks = {
        "mask_same_target": (loss.mask_same_target, sample.repeated.same_target, "target"),
        "mask_same_query": (loss.mask_same_query, sample.repeated.same_query, "query"),
    }
    for key, (masked, share, side) in masks.items():
        expected = share.of_negatives * (settings.batch_size - 1)
        if not masked and expected >= FALSE_NEGATIVES:
            report.add(
                "warning",
                "data.false_negatives",
                f"rows of a batch of {settings.batch_size} pairs have the same {side} as another "
                f"one, so that a query has about {expected:.1f} right answers among its negatives",
                where=f"config.{of}.{key}",
                do=f"Set config.{of}.{key}=True, or config.{of}.false_negative_margin.",
            )


def _check_negatives(report: Report, settings: config.TrainConfig, sample: Sample) -> None:
    wanted, rows = settings.data.negatives, len(sample.pairs)
    if not rows:
        return
    having = sum(bool(pair.negatives) for pair in sample.pairs)
    _, loss = contrastive_part(settings.loss)
    explicit = loss is not None and loss.hardness > 0 and loss.hardness_on == "explicit"
    judged = isinstance(settings.loss, JudgeDistillation)
    if wanted and not having:
        report.add(
            "warning" if explicit or judged or "negatives" in settings.data.columns else "note",
            "data.no_negatives",
            f"config.data.negatives={wanted}, and none of {rows} rows has negatives: a batch has "
            f"room for {wanted} a pair, which stays empty",
            where="config.data.negatives",
            do="Set it to 0; or name their column (config.data.columns), or mine some "
            "(--config=mine) and join them (config.data.mined).",
        )
    if not wanted and having and not isinstance(settings.loss, Distillation):
        report.add(
            "note",
            "data.unread_negatives",
            f"{having} of {rows} rows have negatives of their own, and config.data.negatives=0 "
            "reads none",
            where="config.data.negatives",
            do="Set it to how many a pair may have, for harder batches.",
        )
    for name in loss.closed_sources if loss else ():
        own = [pair for pair in sample.pairs if pair.source == name]
        without = sum(not pair.negatives for pair in own)
        if own and without:
            report.add(
                "warning",
                "data.closed_without_negatives",
                f"source {name!r} is closed, and {without} of {len(own)} of its rows have no "
                "negatives, so that they have nothing to be told from",
                where=f"config.{contrastive_part(settings.loss)[0]}.closed_sources",
                do="Leave it out of the closed sources, or give its rows negatives.",
            )


def _check_scores(report: Report, settings: config.TrainConfig, sample: Sample) -> None:
    """Rows without what the loss needs of them, which are left out."""
    missing: dict[str, int] = {}
    if isinstance(settings.loss, JudgeDistillation):
        missing["scores of a judge"] = sum(not pair.scored for pair in sample.pairs)
    _, loss = contrastive_part(settings.loss)
    if loss is not None and loss.graded_sources:
        graded = [pair for pair in sample.pairs if pair.source in loss.graded_sources]
        missing["a grade (`score`)"] = sum(not pair.graded for pair in graded)
    for what, count in missing.items():
        share = count / max(1, len(sample.pairs))
        if count:
            stops = share > settings.data.max_bad_share
            report.add(
                "error" if stops else "warning",
                "data.no_scores",
                f"{count} of {len(sample.pairs)} rows do not have {what}, which "
                f"config.loss.objective={settings.loss.objective!r} needs, and would be left out"
                + (": more than config.data.max_bad_share lets pass" if stops else ""),
                where="config.data.train",
                do="Judge all rows (--config=judge), or leave out the sources that have none.",
            )
