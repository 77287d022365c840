"""What a report says of training: loss, counts and the loss by source, from metrics.jsonl."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unime_jax import files
from unime_jax.evaluation import figures
from unime_jax.training import metrics, outcome, tally

Records = Sequence[Mapping[str, Any]]  # lines of metrics.jsonl


def read_metrics(path: files.Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl in order of steps; a step logged again after a resume counts once.

    A last line that was cut off when the process died is left out.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    records = {}
    for number, line in enumerate(lines, 1):
        step = metrics.step_of(line)
        if step is not None:
            records[step] = json.loads(line)
        elif number < len(lines):
            raise ValueError(f"{path}, line {number} is not a step's metrics: {line[:100]!r}")
    return [records[step] for step in sorted(records)]


def loss_tile(ended: Mapping[str, Any], records: Records) -> dict[str, str]:
    """The loss at the end and at the start of one objective; of several, the last.

    `ended` is the run's outcome.json; {} is no tile.
    """
    start, end = ended.get("start"), ended.get("end")
    if start and end:
        return {
            "name": f"Loss, mean of steps {end['first_step']} to {end['last_step']}",
            "value": f"{end['loss']:.3f}",
            "before": f"from {start['loss']:.3f} in steps {start['first_step']} to "
            f"{start['last_step']}, the same objective",
        }
    loss = figures.series(records, "loss")
    loss = loss[np.isfinite(loss)]
    return (
        {"name": "Loss of the last step", "value": f"{loss[-1]:.3f}", "before": ""}
        if len(loss)
        else {}
    )


def counts(records: Records) -> list[dict[str, Any]]:
    """Totals of what was counted in the batches, where it was."""
    return [
        {
            "name": name.replace("_", " "),
            "meaning": meaning,
            "total": int(np.nansum(figures.series(records, name))),
        }
        for name, meaning in tally.COUNTS.items()
        if any(name in record for record in records)
    ]


def by_source(records: Records, infonce: int) -> list[dict[str, Any]]:
    """The mean loss of every source at the start and the end of the last objective."""
    own = [record for record in records if record["step"] > infonce] or records
    names = sorted({key for record in own for key in record if key.startswith(tally.BY_SOURCE)})
    sources = []
    for name in names:
        values = figures.series(own, name)
        values = values[np.isfinite(values)]
        if size := max(1, min(outcome.WINDOW, len(values) // 4)) if len(values) else 0:
            row = {"start": float(values[:size].mean()), "end": float(values[-size:].mean())}
            sources.append({"name": name.removeprefix(tally.BY_SOURCE)} | row)
    return sorted(sources, key=lambda row: -row["end"])
