"""Runs side by side: scores after training, mean and spread over the runs of each group.

    python -m unime_jax.evaluation.compare --runs='stage 2 alone:runs/a_*' --runs='both:runs/b_*' \
        --column=short:Scenes_t2i,Scenes_i2t --column=long:LongCaptions_t2i
"""

import glob
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from unime_jax.evaluation import scores

COMPOSITION = "composition"  # the mean of its subsets

_RUNS = flags.DEFINE_multi_string("runs", None, "name:pattern of work directories", required=True)
_COLUMN = flags.DEFINE_multi_string("column", [], "name:dataset,dataset,... to take the mean of")


def compare(
    groups: Mapping[str, Sequence[Path]], columns: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, np.ndarray]]:
    """Percent after training, by group and column, an array over runs.

    Columns are "All", the means of `columns`, and the mean of the composition subsets.

    Raises:
      ValueError: a group without runs, a run without scores, or a dataset that a run has not.
    """
    percent: dict[str, dict[str, np.ndarray]] = {}
    for name, workdirs in groups.items():
        if not workdirs:
            raise ValueError(f"{name!r}: no such work directory")
        rows = [_row(workdir, columns) for workdir in workdirs]
        percent[name] = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    return percent


def _row(workdir: Path, columns: Mapping[str, Sequence[str]]) -> dict[str, float]:
    sides = scores.read_scores(workdir)
    after = sides.get("after", sides.get("scores"))  # of a training run, or an evaluation
    if after is None:
        raise ValueError(f"{workdir} has no scores after training yet")
    values = {**after["datasets"], **{key: after[key] for key in scores.COLUMNS}}
    unknown = [name for names in columns.values() for name in names if values.get(name) is None]
    if unknown:
        raise ValueError(f"{workdir} has no {', '.join(unknown)}; it has {', '.join(values)}")
    row = {"All": values["All"]}
    row |= {key: float(np.mean([values[name] for name in names])) for key, names in columns.items()}
    if after["composition"]:
        row[COMPOSITION] = float(np.mean(list(after["composition"].values())))
    return row


def table(percent: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """A Markdown table: mean ± standard deviation over runs."""
    columns = list(next(iter(percent.values())))
    lines = ["| | runs | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, values in percent.items():
        cells = []
        for column in columns:
            of_runs = values[column]
            spread = f" ± {of_runs.std(ddof=1):.1f}" if len(of_runs) > 1 else ""
            cells.append(f"{of_runs.mean():.1f}{spread}")
        lines.append(f"| {name} | {len(values[columns[0]])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    groups = {}
    for given in _RUNS.value:
        name, _, pattern = given.rpartition(":")
        groups[name or pattern] = [Path(path) for path in sorted(glob.glob(pattern))]
    columns = {
        name: members.split(",") for name, _, members in (c.partition(":") for c in _COLUMN.value)
    }
    sys.stdout.write(table(compare(groups, columns)) + "\n")


if __name__ == "__main__":
    app.run(main)
