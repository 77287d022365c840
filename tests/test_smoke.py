"""The smoke tier names tests that there are."""

from tests import smoke
from tests.jobs.tiny_run import ROOT


def test_every_name_of_the_tier_is_a_test():
    for name in smoke.ANYWHERE + smoke.WITH_TORCH:
        file, _, test = name.partition("::")
        assert f"def {test.partition('[')[0]}" in (ROOT / file).read_text(), name
