"""Parameters as a flat dict of dotted paths, and ordered (regex, value) rules over those paths.

One mechanism decides sharding, trainability, LoRA targets, learning rate, decay and dtype: the
first rule whose regex matches the whole path wins, and a path that no rule matches is an error.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import jax
from flax import nnx

Value = TypeVar("Value")
Rules = Sequence[tuple[str, Value]]
Parameters = dict[str, jax.Array]


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Parameters]:
    """Static graph of a module, and its parameters by path, as "language_model.norm.weight"."""
    graph, state = nnx.split(model)
    flat = {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    return graph, flat


def merge(graph: nnx.GraphDef, *parameters: Mapping[str, jax.Array]) -> nnx.Module:
    """The inverse of `split`; parameters may come in several disjoint parts.

    Raises:
      ValueError: they are not the parameters of this module.
    """
    flat = {path: leaf for part in parameters for path, leaf in part.items()}
    leaves = [(tuple(path.split(".")), nnx.Param(flat[path])) for path in sorted(flat)]
    model = nnx.merge(graph, nnx.from_flat_state(leaves))
    # nnx has counted the leaves and put them in by their order, whatever their names.
    own = split(model)[1].keys()
    if own != flat.keys():
        raise ValueError(
            f"The module has no parameters {sorted(flat.keys() - own)}, "
            f"and misses {sorted(own - flat.keys())}."
        )
    return model


def assign(rules: Rules[Value], paths: Iterable[str], *, what: str) -> dict[str, Value]:
    """The value of the first matching rule for each path.

    Raises:
      ValueError: a path matches no rule; all such paths are listed. `what` names the policy.
    """
    compiled = [(re.compile(pattern), value) for pattern, value in rules]
    assigned: dict[str, Value] = {}
    unmatched = []
    for path in paths:
        for pattern, value in compiled:
            if pattern.fullmatch(path):
                assigned[path] = value
                break
        else:
            unmatched.append(path)
    if unmatched:
        listing = "\n  ".join(unmatched)
        raise ValueError(
            f"{what}: no rule matches {len(unmatched)} parameter(s):\n  {listing}\n"
            f'Add a rule to {what}, for example (".*", <default>) as the last one.'
        )
    return assigned
