"""The committed plans, an artefact of their day: schema, units, and totals that follow from parts.

They are not compared with the recipes as they are now; docs/plans.md says when they were made.
"""

import json
import math
import re

import pytest

from tests.jobs.tiny_run import ROOT
from tests.tables import for_each

PLANS = json.loads((ROOT / "experiments" / "plans" / "plan.json").read_text())["plans"]
PAGE = (ROOT / "docs" / "plans.md").read_text()

NAMED = {f"{plan['recipe']}-{plan['topology']}": plan for plan in PLANS}

each_plan = for_each("name", NAMED)


@each_plan
def test_it_was_compiled_and_fits_a_slice_and_whole_batches(name):
    plan = NAMED[name]
    memory = plan["memory"]
    assert "libtpu" in plan["compiler"] and plan["problem"] == ""
    assert plan["fits"] is True and memory["peak"] < 0.95 * memory["capacity"]
    assert not plan["suggestion"] or plan["suggestion"].startswith("has room for --config.")
    assert (ROOT / plan["stand_in"] / "config.json").exists()

    # Chips are those of the slice and of the mesh
    plan = NAMED[name]
    sides = map(int, plan["topology"].partition(":")[2].split("x"))
    assert plan["chips"] == math.prod(sides) == math.prod(plan["settings"]["mesh"].values())

    # The load is whole batches
    plan = NAMED[name]
    settings = plan["settings"]
    load = settings["load"]
    assert len(load["rows"]) == len(load["tokens"])
    assert sum(load["rows"]) % settings["batch_size"] == 0 < sum(load["rows"])


@each_plan
def test_totals_follow_from_their_parts(name):
    """Outputs that take no argument's place are all that is not listed."""
    plan = NAMED[name]
    memory = plan["memory"]
    assert all(isinstance(size, int) and size >= 0 for size in memory.values())
    parts = sum(memory[key] for key in ("weights", "optimizer", "inputs", "temporaries"))
    assert parts <= memory["peak"] < 1.01 * parts
    assert memory["activations"] <= memory["temporaries"]
    assert 0 <= memory["gradients"] <= memory["optimizer"]

    # Seconds rates and hours follow from flops and bytes
    plan = NAMED[name]
    work, estimate = plan["work"], plan["estimate"]
    assert 0 < work["useful"] <= work["executed"] and work["hbm"] > 0
    assert (sum(work["ici"].values()) > 0) == (plan["chips"] > 1) == (estimate["ici"] > 0)
    parts = {key: estimate[key] for key in ("compute", "hbm", "ici")}
    assert estimate["seconds"] == parts[estimate["bound"]] == max(parts.values())
    assert estimate["without_overlap"] == pytest.approx(sum(parts.values()))
    busy = parts["compute"] / estimate["seconds"]
    assert estimate["mfu"] == pytest.approx(busy * work["useful"] / work["executed"])

    # Rates and hours follow from seconds
    plan = NAMED[name]
    settings, seconds = plan["settings"], plan["estimate"]["seconds"]
    items = plan["estimate"]["items_per_second"]
    assert items == pytest.approx(settings["batch_size"] / seconds)
    if "steps" not in settings:
        assert plan["hours"] is None
    else:
        assert plan["hours"] == pytest.approx(settings["steps"] * seconds / 3600)


def test_the_page_has_a_line_for_every_plan_and_says_how_they_were_made():
    """With the same peak in GB, and fits."""
    lines = [line.split(" | ") for line in PAGE.splitlines() if re.match(r"\| \w+ \| v\d", line)]
    assert [(cells[0].removeprefix("| "), cells[1]) for cells in lines] == [
        (plan["recipe"], plan["topology"]) for plan in PLANS
    ]
    for cells, plan in zip(lines, PLANS):
        memory = plan["memory"]
        assert f"{memory['peak'] / 1e9:.2f} of {memory['capacity'] / 1e9:.2f}" in cells

    # The page says when and with what they were made
    assert re.search(r"\d+ \w+ 20\d\d", PAGE)
    for compiler in {plan["compiler"] for plan in PLANS}:
        assert compiler in PAGE
