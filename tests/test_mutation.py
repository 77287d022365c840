"""Mutation testing: which modules, which tests, and a sample that stays."""

import collections

import pytest

from tests.mutation import scope

CODE = '''
"""A module of 3 + 4 lines."""
import json
from typing import TYPE_CHECKING

from absl import logging

Size = int | None
LEFT = 1  # plain

if TYPE_CHECKING:
    RIGHT = 2 + 2


def half(values: list[int | None], *, count: int | None = None) -> int | float:
    if count is not None and count < 0:
        raise ValueError(f"{count + 1} is below 0", 2 - 1)
    logging.info("%d", count * 3)
    path = values / "name" / f"{count}"
    path.touch(True)
    return json.dumps(path, indent=2 + 5)
'''


def test_every_module_in_scope_has_tests_and_every_pattern_a_module():
    for package in scope.PACKAGES:
        modules = scope.modules(package)
        assert modules, package
        for module in modules:
            tests = scope.tests_of(module)
            assert tests, f"no file is as the patterns of {module} say"
            assert len(tests) == len(set(tests))

    # Every pattern leads somewhere
    tests = [pattern for patterns in scope.COVERED_BY.values() for pattern in patterns]
    modules = [pattern for patterns in scope.PACKAGES.values() for pattern in patterns]
    for pattern in (*tests, *modules, *scope.LEFT_OUT):
        assert any(scope.ROOT.glob(pattern)), pattern
    in_scope = [module for package in scope.PACKAGES for module in scope.modules(package)]
    for beginning in scope.COVERED_BY:
        assert any(module.startswith(beginning) for module in in_scope), beginning

    # The longest beginning counts and the own file comes first
    tests = scope.tests_of("unime_jax/models/rope.py")
    assert tests[0] == "tests/models/test_rope.py"
    assert "tests/backbones/test_bert.py" in scope.tests_of("unime_jax/models/bert.py")
    assert "tests/models/test_rope.py" not in scope.tests_of("unime_jax/models/bert.py")
    with pytest.raises(ValueError, match="no entry for unime_jax/jobs/train.py"):
        scope.tests_of("unime_jax/jobs/train.py")


@pytest.fixture(scope="module")
def sample():
    pytest.importorskip("cosmic_ray")
    from tests.mutation import sample

    return sample


def test_types_messages_and_layout_are_not_mutated(sample, monkeypatch, tmp_path):
    mutants = sample.draw({"p": {"m.py": CODE}}, seed=0, count=100)
    changed = {(CODE.splitlines()[m.start[0] - 1].strip().split()[0], m.operator) for m in mutants}
    assert changed == {
        ("LEFT", "NumberReplacer"),
        ("if", "AddNot"),
        ("if", "NumberReplacer"),
        ("if", "ReplaceAndWithOr"),
        ("if", "ReplaceComparisonOperator_IsNot_Is"),
        ("if", "ReplaceComparisonOperator_Lt_GtE"),
        ("if", "ReplaceComparisonOperator_Lt_LtE"),
        ("raise", "DeleteStatement"),
        ("path.touch(True)", "DeleteStatement"),
        ("path.touch(True)", "ReplaceTrueWithFalse"),
    }
    deleted = {m.code(CODE) for m in mutants if m.operator == "DeleteStatement"}
    raised = 'raise ValueError(f"{count + 1} is below 0", 2 - 1)'
    assert deleted == {CODE.replace(raised, "pass"), CODE.replace("path.touch(True)", "pass")}

    # The sample is seeded fair and survives edits elsewhere
    large = "\n".join(f"def f{i}(x):\n    return x + {i} - g{i}(*x)" for i in range(8))
    sources = {"large": {"a.py": large, "b.py": large}, "small": {"c.py": CODE}}
    drawn = sample.draw(sources, seed=0, count=8)
    assert drawn == sample.draw(sources, seed=0, count=8)
    assert {m.key for m in drawn}.isdisjoint(m.key for m in sample.draw(sources, seed=1, count=8))
    assert collections.Counter(m.package for m in drawn) == {"large": 4, "small": 4}
    edited = {"large": {"a.py": "import y\n" + large, "b.py": large}, "small": {"c.py": CODE}}
    assert [m.key for m in sample.draw(edited, seed=0, count=8)] == [m.key for m in drawn]
    everything = sample.draw(sources, seed=0, count=10**6)
    programs = [(m.module, m.code(sources[m.package][m.module])) for m in everything]
    assert len(set(programs)) == len(programs) and len(everything) > 40
    assert list(sample.sources("unime_jax/losses")) == ["losses"]

    # What a file of tests executes is known until any of it changes
    pytest.importorskip("cosmic_ray")
    from tests.mutation import reach

    monkeypatch.setattr(scope, "ROOT", tmp_path)
    for name in ("test_a.py", "a.py", "b.py"):
        (tmp_path / name).write_text(name)
    known = reach.reached("test_a.py", 1.0, {"a.py": [1, 2], "b.py": []})
    (tmp_path / "b.py").write_text("of which nothing is executed")
    assert reach.is_of_today("test_a.py", known)
    for name in ("test_a.py", "a.py"):
        (tmp_path / name).write_text("changed")
        assert not reach.is_of_today("test_a.py", known)
        (tmp_path / name).write_text(name)
    (tmp_path / "a.py").unlink()
    assert not reach.is_of_today("test_a.py", known)


def test_a_mutant_is_tried_by_the_files_that_execute_its_statement(sample, monkeypatch):
    from tests.mutation import reach

    code = "def f(x):\n    if x:\n        return g(\n            x + 1,\n        )\n    return 0\n"
    assert [reach.statement_lines(code, line) for line in (1, 2, 4, 6)] == [
        (1, 1),
        (2, 2),
        (3, 5),
        (6, 6),
    ]
    monkeypatch.setattr(scope, "tests_of", lambda module: ["own", "slow", "quick", "tests/jobs/a"])
    lines = {"own": [1, 2, 6], "slow": [1, 2, 3], "quick": [3], "tests/jobs/a": []}
    seconds = {"own": 9.0, "slow": 5.0, "quick": 1.0, "tests/jobs/a": 2.0}
    known = {name: {"seconds": seconds[name], "lines": {"m.py": lines[name]}} for name in lines}
    mutants = {m.start[0]: m for m in sample.candidates("p", "m.py", code, seed=0)}
    assert reach.tests_of(mutants[4], code, known) == (["quick", "tests/jobs/a", "slow"], 8.0)
    assert reach.tests_of(mutants[2], code, known) == (["own", "tests/jobs/a", "slow"], 16.0)
