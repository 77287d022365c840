"""Results of a training run: scores, the report, and the outcome."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from absl import logging

from unime_jax import config, files
from unime_jax.evaluation import score_table, scores, suite
from unime_jax.evaluation.report import headline
from unime_jax.evaluation.report import page as report
from unime_jax.evaluation.stored import results
from unime_jax.inference.encode import Encoder
from unime_jax.training import curves, outcome


def evaluate(
    tests: suite.Suite, encoder: Encoder, when: str
) -> tuple[scores.Scores, dict[suite.Key, Any]]:
    """Scores in percent, and the result of each task; the same in all processes."""
    started = time.perf_counter()
    evaluated = suite.evaluate(tests, encoder)
    logging.info("evaluation %s took %.1f s", when, time.perf_counter() - started)
    return evaluated


def evaluate_side(
    tests: suite.Suite, encoder: Encoder, workdir: files.Path, when: Literal["before", "after"]
) -> scores.Scores:
    """Writes a side of evaluation.json, and its rankings for the report; {} without tests."""
    if tests.is_empty:
        return {}
    side, by_task = evaluate(tests, encoder, f"{when} training")
    if jax.process_index() == 0:
        # The scores say that this side is done, so they come last.
        rankings, sets = suite.rankings(by_task), suite.retrievals(by_task)
        results.save_results(workdir / f"results_{when}.npz", rankings, sets)
        scores.write_scores(workdir, when, side)
    return side


def write_report(
    settings: config.TrainConfig,
    workdir: files.Path,
    tests: suite.Suite | None,
    goodput: Mapping[str, Any],
    steps: int,
) -> None:
    """Writes the report of an evaluation, or, without `tests`, of a run that has come to none.

    Args:
      goodput: `Goodput.summary` of the run.
      steps: of the model that is evaluated as "after", fewer than all if it is the best one.
    """
    sides = scores.read_scores(workdir) if tests else {}
    if jax.process_index() != 0 or (tests and (tests.is_empty or not sides)):
        return
    best = {"best checkpoint": f"of step {steps}"} if steps < settings.steps else {}

    def loaded(load: Callable[[files.Path], Any]) -> dict[str, Any]:
        return {when: load(workdir / f"results_{when}.npz") for when in sides}

    rankings = loaded(results.load_results)
    report.write_report(
        workdir,
        table=tests.table if tests else {},
        before=rankings.get("before"),
        after=rankings.get("after"),
        images=tests.images() if tests else lambda path: b"",
        title=f"Training {workdir.name}",
        headline=headline.of_training(settings, goodput) | best,
        composition_rows=tests.composition_rows if tests else {},
        retrieval=loaded(results.load_sets),
        training=curves.section(workdir),
    )


def write_outcome(settings: config.TrainConfig, workdir: files.Path) -> None:
    """Judges all steps, and writes <workdir>/outcome.json."""
    if jax.process_index() == 0:
        outcome.write(workdir, outcome.Monitor(settings, read_metrics(workdir)).outcome())


def read_metrics(workdir: files.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none if it cannot be read."""
    try:
        return curves.read_metrics(workdir / "metrics.jsonl")
    except (ValueError, OSError) as error:  # a run does not end for its statistics
        logging.warning("%s; whether the run learns is told from now on", error)
        return []


def log_results(workdir: files.Path) -> None:
    """Logs the table of scores, the path of the report, and the findings of the outcome."""
    if jax.process_index() != 0:
        return
    if sides := scores.read_scores(workdir):
        table = score_table.table(sides.get("before"), sides.get("after"))
        logging.info("%s\n\n%s\n\nreport: %s", workdir, table, workdir / report.FILE)
    outcome.say(workdir)
