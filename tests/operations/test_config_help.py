"""--help and --print_config: every key with what it means, from where it is defined."""

import dataclasses
import re
import subprocess
import sys

import pytest

from tests.jobs import tiny_run
from unime_jax import config
from unime_jax.operations import command_line, config_help, recipes


@pytest.mark.parametrize(
    "cls", [config.TrainConfig, config.EmbedConfig, config.EvaluateConfig, config.PlansConfig]
)
def test_every_key_has_a_meaning(cls):
    meanings = {key: meaning for key, _, meaning in config_help.described_keys(cls)}
    assert meanings.keys() == dict(command_line.keys(cls)).keys()
    assert [key for key, meaning in meanings.items() if len(meaning) < 5] == []


def test_meanings_are_comments_or_attributes():
    @dataclasses.dataclass
    class Example:
        """Some keys.

        Attributes:
          first: what the docstring says,
            in two lines.
          third: overruled.
        """

        first: int
        second: int  # beside
        # above,
        # in two lines
        third: str = "x"  # and beside

        def method(self) -> int:
            value: int = 3  # no field
            return value

    assert config_help.meanings(Example) == {
        "first": "what the docstring says, in two lines.",
        "second": "beside",
        "third": "above, in two lines and beside",
    }


@pytest.mark.parametrize("recipe", ["stage1", "stage2:qwen2_vl_7b", "embed", "evaluate", "plan"])
def test_the_printed_config_is_the_config(recipe):
    """Its lines are Python, and what they assign is all there is."""
    values = recipes.load(recipe)
    text = config_help.config_text(values, "headline")
    assert text.startswith("# headline\n") and max(map(len, text.splitlines())) < 1000
    found = {}
    for line in text.splitlines():
        match = re.match(r"config\.([\w.]+) = (.*)", line)
        if match:
            found[match[1]] = eval(match[2], {"inf": float("inf")})  # noqa: S307
        else:
            assert line == "" or line.startswith("# "), line
    assert found == dict(_leaves(values.to_dict(), recipe == "plan"))


def _leaves(values, plans, prefix=""):
    for key, value in values.items():
        # Of weights and prompts the names are the user's own.
        if isinstance(value, dict) and key not in ("weights", "prompts"):
            yield from _leaves(value, plans, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_help_lists_jobs_recipes_flags_and_keys():
    shown = run("--help")
    for expected in (
        "  train  ", "  embed  ", "stage2:qwen2_vl_7b", "stage1:paper_literal", "--print_config",
        "--workdir", "loss.hard_negatives: int or None", "output.block: int",
        "pairs in one softmax, over all devices",
    ):  # fmt: skip
        assert expected in shown
    every = [key for key, _ in command_line.keys(config.TrainConfig)]
    assert [key for key in every if f"  {key}: " not in shown] == []


def test_print_config_resolves_and_touches_nothing(tmp_path):
    shown = run(
        "--config=stage2", "--config.steps=12", "--config.data.folder=/x", "--print_config",
        f"--workdir={tmp_path / 'run'}", JAX_PLATFORMS="none_such",  # no backend is asked for
    )  # fmt: skip
    assert "config.steps = 12  # " in shown and "config.optimizer.warmup_steps = 1  # " in shown
    assert "config.backbone = '/x/mini_mmeb/backbone'" in shown
    assert "# config.optimizer.warmup_steps: 15 -> 1" in shown
    assert not (tmp_path / "run").exists()


def test_print_config_refuses_what_is_no_config():
    status, out, err = answer("--config=stage2", "--config.steps=x", "--print_config")
    assert (status, out) == (1, "") and "config.steps must be of type int" in err


def run(*arguments: str, **environment: str) -> str:
    status, out, err = answer(*arguments, **environment)
    assert status == 0 and err == ""
    return out


def answer(*arguments: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "unime_jax.main", *arguments],
        cwd=tiny_run.ROOT,
        capture_output=True,
        text=True,
        env=tiny_run.environment(**environment),
    )
    return done.returncode, done.stdout, done.stderr
