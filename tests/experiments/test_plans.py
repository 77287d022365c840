"""The committed plans are those of the recipes as they are now, and what the README shows."""

import json

import pytest

from experiments import plan as plans
from tests.jobs.tiny_run import ROOT
from unime_jax.jobs import plan
from unime_jax.planning import report

FOLDER = ROOT / "experiments" / "plans"


@pytest.fixture(scope="module")
def entries() -> list[report.Entry]:
    return [
        report.entry_from_json(one)
        for one in json.loads((FOLDER / "plan.json").read_text())["plans"]
    ]


def test_every_recipe_is_planned_with_its_settings(entries):
    """As `--config=experiments/plan.py --workdir=<folder>` leaves it."""
    given = plans.get_config().to_dict()["recipes"]
    recipes = {name: plan.read(values) for name, values in given.items()}
    expected = [(name, where) for name, one in recipes.items() for where in one.plan.topologies]
    assert [(entry.recipe, entry.topology) for entry in entries] == expected
    for entry in entries:
        settings = recipes[entry.recipe]
        now = json.loads(json.dumps(plan.facts(settings)))
        assert {key: entry.settings[key] for key in now} == now, entry.recipe
        assert (entry.backbone, entry.stand_in) == (settings.backbone, settings.plan.model)


def test_every_recipe_was_compiled_and_fits(entries):
    for entry in entries:
        assert "libtpu" in entry.compiler and entry.problem == ""
        assert not entry.suggestion or entry.suggestion.startswith("has room for --config.")
        assert entry.memory and entry.memory.fits, (entry.recipe, entry.topology)
        assert entry.memory.peak < 0.95 * entry.memory.capacity, (entry.recipe, entry.topology)


def test_tables_are_of_these_plans(entries):
    table = report.table(entries)
    assert (FOLDER / "plan.md").read_text() == table + "\n"
    rows = table.partition("\n\n")[0]
    assert rows in (ROOT / "README.md").read_text()
