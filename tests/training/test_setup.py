"""What every job on a training config starts from."""

import logging

from unime_jax.backbones.io.st_folder import Defaults
from unime_jax.training import setup


def test_what_training_does_not_use_of_a_folder_is_said(caplog):
    asked = Defaults({"query": "find: "}, "query", truncate_dim=64, max_length=256)
    with caplog.at_level(logging.INFO):
        setup.say_what_is_not_used("some/folder", asked, longest=84)
        first, second = caplog.messages
        caplog.clear()
        setup.say_what_is_not_used("some/folder", Defaults({"query": "x"}, max_length=84), 84)
        assert not caplog.messages
    assert first.startswith("of some/folder, training and evaluation do not use its default prompt")
    assert "'find: '" in first and "truncate_dim 64" in first
    assert second.startswith("rows have up to 84 tokens") and second.endswith("asks for 256")
