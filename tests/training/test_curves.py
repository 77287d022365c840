"""Lines of metrics.jsonl as the report reads them."""

import numpy as np
import pytest

from unime_jax.training import curves


def test_curves_are_the_last_of_repeated_steps_and_binned(tmp_path):
    # Read metrics takes the last of a repeated step.
    path = tmp_path / "metrics.jsonl"
    assert curves.read_metrics(path) == []
    lines = ['{"step": 2, "loss": 1}', '{"step": 1, "loss": 3}', '{"step": 2, "loss": NaN}', '{"st']
    path.write_text("\n".join(lines))
    records = curves.read_metrics(path)
    assert [r["step"] for r in records] == [1, 2]
    assert curves.dropped_steps(records) == [2]
    path.write_text('{"step": 2, "loss": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not a step's metrics"):
        curves.read_metrics(path)

    # Long curves are binned.
    x, y = np.arange(10_000.0), np.ones(10_000)
    y[::3] = np.nan
    short_x, short_y = curves.binned(x, y)
    assert len(short_x) == len(short_y) == curves.POINTS
    assert np.isfinite(short_y).all() and (np.diff(short_x) > 0).all()
    assert [len(v) for v in curves.binned(x, np.full(10_000, np.nan))] == [0, 0]
