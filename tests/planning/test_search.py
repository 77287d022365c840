"""The search for a faster step, of a run whose memory, FLOPs and traffic follow simple rules."""

import dataclasses
import json

import pytest

from experiments import plan as plans
from tests.backbones.tiny_folders import write_folder
from unime_jax import config, config_reader
from unime_jax.jobs import plan
from unime_jax.planning import chips, estimate, report
from unime_jax.planning.memory import Memory

SLICE = chips.parse("v5e:4x4")
ROWS, CHUNK, GB = 2048, 64, 10**9
# Bytes of a row of a chunk on one chip.
KEPT = {
    "none": 2.2e9,
    "dots": 0.9e9,
    "attention_up": 0.6e9,
    "attention": 0.3e9,
    "full": 0.1e9,
}
PASSES = {"none": 3.0, "dots": 3.0, "attention_up": 3.3, "attention": 3.6, "full": 4.0}


def training(**changes):
    planned = plans.get_config("stage2")
    planned.topologies, planned.search = (SLICE.name,), 3
    planned.run.batch_size, planned.run.chunk_size = ROWS // 2, CHUNK
    planned.run.execution.remat = "full"
    planned.run.mesh.data, planned.run.mesh.fsdp = 1, -1
    planned.update(changes)
    return planned


def attempt(recipe, topology, settings, *, compiled=True):
    """3 PFLOP a pass over 15 GB of weights, which each chunk gathers twice."""
    chunk, remat = settings.chunk_size, settings.execution.remat
    fsdp = settings.mesh.fsdp if settings.mesh.fsdp > 0 else 16
    mesh = {"data": 16 // fsdp, "fsdp": fsdp, "tensor": 1}
    buckets = [{"tokens": 1024, "tiles": 0, "share": 1.0}]
    given = {"mesh": mesh, "load": {"rows": [ROWS], "tokens": [1024]}, "buckets": buckets}
    entry = report.Entry("run", topology, "", "", plan.described(settings) | given)
    weights, kept = 15 * GB // fsdp, int(chunk / 16 * KEPT[remat])
    held = weights + 100
    temporaries = kept + GB + chunk * 10**6 if compiled else None
    peak = held + temporaries if compiled else None
    memory = Memory(weights, 0, 100, 0, kept, temporaries, peak, int(SLICE.chip.hbm))
    chunks, executed = ROWS / chunk, PASSES[remat] * 3e15
    gathered = 2 * chunks * 15e9 * (fsdp - 1) / fsdp
    known = dict(ici={"all-gather": gathered}, hbm=3 * chunks * 15e9) if compiled else {}
    work = estimate.Work(3 * 3e15, executed, **known or dict(ici=None, hbm=None))
    time = estimate.estimate(work, SLICE, ROWS // 2)
    return dataclasses.replace(
        entry, compiler="some", memory=memory, work=work, estimate=time, hours=time.seconds
    )


def test_the_fastest_of_a_grid_that_fits_is_offered(tmp_path, monkeypatch):
    """Larger chunks gather less often; of those that keep more some do not fit."""
    asked = []

    def counting(*arguments, compiled=True):
        if compiled:
            asked.append(arguments[2])
        return attempt(*arguments, compiled=compiled)

    monkeypatch.setattr(plan.Recipe, "attempt", counting)
    given = training(model=str(write_folder(tmp_path / "model")))
    plan.run(given, tmp_path)
    (found,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    entry = report.entry_from_json(found)
    own, *others = entry.searched
    assert own.flags == "" and own.seconds == entry.estimate.seconds and own.ratio == 4 / 3
    assert len(asked) == 1 + 3 == 1 + sum(each.seconds is not None for each in others)
    assert len(others) == 3 * 4 * 5 - 1  # meshes, chunks, remat, without the plan itself
    order = [each.predicted_seconds for each in others]
    assert order == sorted(order)

    # What is predicted is what the rules give: all but temporaries exactly
    for each in others:
        if each.seconds is not None:
            assert each.predicted_seconds == pytest.approx(each.seconds, rel=0.01)
            assert each.fits and each.peak == pytest.approx(each.predicted_peak, rel=0.2)
    best = min((each for each in others if each.seconds), key=lambda each: each.seconds)
    assert best.chunk_size == 2 * CHUNK and best.ratio < own.ratio
    assert entry.suggestion.startswith(f"faster with{best.flags}: {best.seconds:.3g} s a step")
    assert f"instead of {own.seconds:.3g}" in entry.suggestion

    # What should not fit is not compiled, however fast
    unfit = [each for each in others if each.predicted_peak > SLICE.chip.hbm]
    assert unfit and all(each.seconds is None for each in unfit)

    text = (tmp_path / "plan.md").read_text()
    assert (
        f"| {best.chunk_size} | {best.remat} | {' x '.join(map(str, best.mesh.values()))}" in text
    )
    assert "## run on v5e:4x4" in text and entry.suggestion in text


def test_no_search_where_nothing_is_faster_and_no_negative_number(monkeypatch):
    monkeypatch.setattr(plan.Recipe, "attempt", lambda *given, **_: attempt(*given))
    (planned,) = plan.read(training().to_dict())
    best = dataclasses.replace(
        planned.run,
        chunk_size=2048,
        execution=dataclasses.replace(planned.run.execution, remat="dots"),
    )
    recipe = plan.Recipe(dataclasses.replace(planned, run=best), None)
    entry = attempt(recipe, SLICE.name, best)
    _, said = plan.search.search(recipe, SLICE.name, entry, 2)
    assert said.startswith("nothing faster that fits: 0 of ")

    with pytest.raises(ValueError, match="config.search=-1"):
        config_reader.read(config.PlanConfig, training(search=-1).to_dict())
