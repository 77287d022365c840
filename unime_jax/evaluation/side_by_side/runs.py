"""Work directories as runs: their scores, their scores by row, and what they were evaluated on."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from absl import logging

from unime_jax import files
from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation.benchmarks import mmeb_v2_video, published
from unime_jax.evaluation.ranking import DatasetResult
from unime_jax.evaluation.side_by_side import rows
from unime_jax.evaluation.side_by_side.columns import Column, flatten
from unime_jax.evaluation.stored import finished, results
from unime_jax.evaluation.tasks.captions import CaptionsResult
from unime_jax.evaluation.tasks.retrieval import RetrievalResult

When = Literal["before", "after"]  # of a training run; an evaluation has one side


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One work directory's scores.

    Attributes:
      scores: a side of evaluation.json.
      values: its numbers by column.
      by_row: scores by row of each dataset that has a result on disk, by kind and name.
      rankings, sets: results of MMEB's datasets, videos included, and of retrieval and captions,
        by name.
      config: config.json, {} if there is none.
      remarks: what is wrong with its files, for a reader.
    """

    workdir: files.Path
    scores: Mapping[str, Any]
    values: Mapping[Column, float]
    by_row: Mapping[tuple[str, str], rows.RowScores]
    rankings: Mapping[str, DatasetResult]
    sets: Mapping[str, RetrievalResult]
    config: Mapping[str, Any]
    remarks: Sequence[str]

    @property
    def datasets(self) -> frozenset[str]:
        """Names of MMEB's datasets, or of own ones in its columns."""
        return frozenset(self.scores.get("datasets") or {})

    def not_run(self) -> dict[str, str]:
        """Sets that the evaluation says it has left out, with the reason if it is known."""
        left_out: dict[str, str] = {}
        for key in ("missing", "not_run"):
            value = self.scores.get(key) or {}
            named = value if isinstance(value, Mapping) else dict.fromkeys(map(str, value), "")
            left_out |= {str(name): str(why or "") for name, why in named.items()}
        return left_out


def read_run(workdir: files.Path, when: When = "after") -> Run:
    """The run of a work directory, of a training run the side `when`.

    Raises:
      ValueError: it has no such scores, or its evaluation.json is damaged.
    """
    sides = scores_lib.read_scores(workdir)
    if not sides:
        raise ValueError(f"{workdir} has no evaluation.json, so no scores after training yet")
    side = sides.get("scores") if "scores" in sides else sides.get(when)
    if side is None or ("scores" in sides and when == "before"):
        raise ValueError(f"{workdir} has no scores {when} training")
    values = flatten(side)
    remarks: list[str] = []
    by_row: dict[tuple[str, str], rows.RowScores] = {}
    rankings: dict[str, DatasetResult] = {}
    sets: dict[str, RetrievalResult] = {}
    stale = []
    for result in _results(workdir, when if "scores" not in sides else None, remarks):
        by_unit = list(rows.of_result(result, values))
        if any(
            abs(mean - values[c]) > 1e-6 for unit in by_unit for c, mean in unit.means().items()
        ):
            stale += [unit.name for unit in by_unit]
            continue
        by_row |= {(unit.kind, unit.name): unit for unit in by_unit}
        if isinstance(result, DatasetResult) and by_unit:
            rankings[result.name] = result
        elif isinstance(result, RetrievalResult) and by_unit:
            sets[result.name] = result
        elif isinstance(result, CaptionsResult) and by_unit:
            sets |= {way.name: way for way in result.ways.values()}
    if stale:
        remarks.append(
            f"{workdir}: results of {', '.join(stale)} are not those of its evaluation.json, and "
            "are not used"
        )
    every = [n for group in ("datasets", mmeb_v2_video.GROUP) for n in side.get(group) or {}]
    rankings = {name: rankings[name] for name in every if name in rankings}
    return Run(workdir, side, values, by_row, rankings, sets, _config(workdir), remarks)


def _results(workdir: files.Path, when: When | None, remarks: list[str]) -> Iterator[Any]:
    """Results of a training run's side or, without `when`, of an evaluation."""
    if when:
        paths = [workdir / f"results_{when}.npz"]
    else:
        paths = sorted((workdir / finished.FOLDER).glob("*.npz"))
    for path in paths:
        if not path.exists():
            continue
        try:
            if when:
                yield from results.load_results(path).values()
                yield from results.load_sets(path).values()
            else:
                yield results.load_result(path)
        except Exception as error:  # damaged archives raise whatever zipfile, zlib and NumPy do
            logging.warning("%s cannot be read: %s", path, error)
            remarks.append(f"{path} cannot be read, so nothing of it is shown")


def _config(workdir: files.Path) -> dict[str, Any]:
    path = workdir / "config.json"
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except ValueError:
        return {}


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs that make one line of a table, as those of several seeds."""

    name: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        return self.runs[0]


def not_mmeb(run: Run) -> str:
    """Why a run's scores are not those of MMEB's 36 datasets; "" if they are."""
    counts = {name: len(result.ids) for name, result in run.rankings.items()}
    return published.not_mmeb(sorted(run.datasets), run.config, counts)
