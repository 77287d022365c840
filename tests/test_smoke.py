"""The smoke tier names tests that there are."""

import ast

from tests import smoke
from tests.jobs.tiny_run import ROOT


def test_every_name_of_the_tier_is_a_test():
    for name in smoke.ANYWHERE + smoke.WITH_TORCH:
        file, _, test = name.partition("::")
        functions = {
            node.name
            for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.FunctionDef)
        }
        wanted = test.partition("[")[0]
        assert not wanted or wanted in functions, name
