"""Sums over processes; tests/multihost has real ones."""

import jax

from tests.tables import for_each
from unime_jax import sharding
from unime_jax.operations import cross_process


@for_each("processes", [1, 2])
def test_sums_come_by_name(monkeypatch, processes):
    """All eight devices are this process's, whatever the others are said to be."""
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    start = cross_process.sum_over_processes(sharding.make_mesh(2, 2, 2))
    first, second = start({"told": True, "read": 300, "share": 0.25}), start({"told": False})
    assert first() == {"told": 1.0, "read": 300.0, "share": 0.25} and second() == {"told": 0.0}
