"""Resolved configs of all recipes, beside what they were: a change of a value shows in review."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from tests.tables import for_each
from unime_jax.operations import recipes

GOLDEN = pathlib.Path(__file__).parent / "golden" / "configs"
REWRITE = "python -m tests.test_config_goldens"
NAMES = [
    f"{name}:{variant}" if variant else name
    for name, (_, variants) in recipes.described().items()
    for variant in variants
]


def golden_file(recipe: str) -> pathlib.Path:
    name, _, variant = recipe.partition(":")
    return GOLDEN / f"{name}__{variant.replace(':', '__') or 'default'}.txt"


def resolved(recipe: str) -> str:
    """A line a key, `key = value`."""
    return "".join(f"{key} = {value!r}\n" for key, value in leaves(recipes.load(recipe).to_dict()))


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@for_each("recipe", NAMES)
def test_the_config_is_as_it_was(recipe):
    file = golden_file(recipe)
    golden = file.read_text() if file.exists() else ""
    assert resolved(recipe) == golden, f"if the change is meant: {REWRITE}"


def test_no_golden_config_is_left_of_a_recipe_that_is_gone():
    assert {file.name for file in GOLDEN.iterdir()} == {golden_file(name).name for name in NAMES}, (
        f"if the change is meant: {REWRITE}"
    )


def rewrite() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for file in GOLDEN.glob("*.txt"):
        file.unlink()
    for name in NAMES:
        golden_file(name).write_text(resolved(name))


if __name__ == "__main__":
    rewrite()
