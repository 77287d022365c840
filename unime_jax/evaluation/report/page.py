"""The report of a run: one HTML file with scores, curves, similarities and ranked examples.

It reads config.json and evaluation.json in the workdir and takes the rankings of `results`, so it
can be rebuilt at any time. A run hands in the section on its training. The page needs no network
and no script.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from unime_jax import files
from unime_jax.data.strange_texts import shown
from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.benchmarks import mmeb_v2_video, visdoc
from unime_jax.evaluation.encoding.item_table import Images
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.report import figures, gallery, views
from unime_jax.evaluation.report import scores as report_scores
from unime_jax.evaluation.tasks.retrieval import RetrievalResult

FILE = "report.html"


@dataclasses.dataclass(frozen=True)
class TrainingSection:
    """Values for the report's part on training.

    Attributes:
      outcome: verdict, findings and steps, as in outcome.json; {}: not known.
      tiles: headline numbers, "name", "value" and "before".
      curves: panels, "title", "svg" and "lines", how many lines it has.
      dropped: logged steps whose update was not applied.
      counts: totals over the batches, "name", "meaning" and "total".
      by_source: losses of each source, "name", "start" and "end".
    """

    outcome: Mapping[str, Any]
    tiles: Sequence[Mapping[str, str]]
    curves: Sequence[Mapping[str, Any]]
    dropped: int
    counts: Sequence[Mapping[str, Any]]
    by_source: Sequence[Mapping[str, Any]]


NOT_TRAINED = TrainingSection({}, (), (), 0, (), ())


def write_report(
    workdir: files.Path,
    *,
    table: scores_lib.Table,
    before: Mapping[str, DatasetResult] | None,
    after: Mapping[str, DatasetResult] | None,
    images: Images,
    title: str = "Run report",
    headline: Mapping[str, str] | None = None,
    composition_rows: Mapping[str, int] | None = None,
    composition_sets: Mapping[str, float] | None = None,
    retrieval: Mapping[str, Mapping[str, RetrievalResult]] | None = None,
    training: TrainingSection = NOT_TRAINED,
) -> files.Path:
    """Writes <workdir>/report.html and returns its path.

    Args:
      workdir: folder of the run; any of its files may be absent.
      table: dataset -> (meta task, split).
      before, after: rankings by dataset before and after training; either may be None. Those of an
        evaluation apart from training are `after`.
      images: encoded bytes of an image path, for the thumbnails.
      title: a few words.
      headline: backbone, hardware and the like by name, shown under the title.
      composition_rows: how many a score of composition is of; those not named have no interval.
      composition_sets: percent that guessing reaches, by score, of composition's benchmark sets.
      retrieval: results of retrieval sets by name, "before" and "after", for the examples.
      training: of an evaluation apart from training, there is nothing to show.
    """
    scores = scores_lib.read_scores(workdir)
    config = read_config(workdir)
    before, after = before or {}, after or {}
    start = report_scores.start_note(config)
    trained = "scores" not in scores
    if not trained:
        scores = {"after": scores["scores"]}
    sides = {f"Before training{start}": before, "After training" if trained else "Scores": after}
    with figures.style():
        histograms = figures.histograms(sides)
        percent = {
            name: scores[side]
            for name, side in zip(sides, report_scores.SIDES, strict=True)
            if (scores.get(side) or {}).get("datasets")
        }
        radar = figures.radar(percent, (figures.PALE, figures.BLUE)[-len(percent) :])
        by_view = views.section(scores)
    examples, left_out = gallery.gallery(table, before, after, images, retrieval)
    hard, hard_left_out = gallery.hard_negatives(table, {"": after or before}, images)
    benchmark = report_scores.benchmark(config, table)
    rows = report_scores.row_count(table, after or before)
    tiles = [
        *report_scores.score_tiles(
            scores,
            benchmark=benchmark,
            rows=rows,
            start=start,
            composition_sets=composition_sets or {},
        ),
        *training.tiles,
    ]
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            headline=dict(headline or {}),
            start=start,
            trained=trained,
            outcome=training.outcome,
            benchmark=benchmark,
            tiles=tiles,
            columns=scores_lib.COLUMNS,
            notes=scores_lib.notes(scores.get("after") or scores.get("before") or {}),
            intervals=report_scores.column_intervals(table, after or before),
            fell=report_scores.fallen(scores, table, after),
            before=scores.get("before"),
            after=scores.get("after"),
            groups=report_scores.dataset_bars(scores, table, after or before),
            composition=report_scores.composition_bars(
                scores, composition_rows or {}, composition_sets or {}
            ),
            composition_sets=bool(composition_sets),
            retrieval=report_scores.retrieval_tables(scores),
            retrieval_columns=scores_lib.RETRIEVAL,
            retrieval_notes=visdoc.notes(scores.get("after") or scores.get("before") or {}),
            captions=report_scores.captions_tables(scores),
            clustering=report_scores.clustering_bars(scores),
            video=report_scores.video_bars(scores, after or before),
            video_means=mmeb_v2_video.MEANS,
            video_notes=mmeb_v2_video.notes(scores.get("after") or scores.get("before") or {}),
            views=by_view,
            not_run=report_scores.not_run(scores),
            distilled=any(report_scores.sides(scores, "distillation")),
            curves=training.curves,
            dropped=training.dropped,
            histograms=histograms,
            heat=figures.heat(table, sides),
            radar=radar,
            hard=hard,
            hard_left_out=hard_left_out,
            counts=training.counts,
            by_source=training.by_source,
            gallery=examples,
            left_out=left_out,
            config=list(_flatten(config)),
        )
    )
    path = workdir / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, page)
    return path


@functools.cache  # which keeps compiled templates
def environment() -> jinja2.Environment:
    """Templates of this folder, in which texts of data are shown as they are."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_as_text,
    )


def _as_text(value: Any) -> Any:
    """Text of a template without hidden characters and without those that turn the page around."""
    return shown(value) if type(value) is str else value


def read_config(workdir: files.Path) -> dict[str, Any]:
    """The run's config.json; {} if there is none."""
    path = workdir / "config.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, value if isinstance(value, str) else json.dumps(value)
