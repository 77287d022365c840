"""Floating-point operations of a program, counted in its jaxpr: what is run, and what is useful.

XLA's cost analysis counts the body of a loop once, so it is no help with scanned layers and chunks.
Here a body counts as often as it runs: scans say so, and the trip counts of other loops follow from
the inputs that are known: which rows are live. Matrix products and convolutions are counted, 2 for
a multiplication and an addition; other operations are not. `jax.experimental.roofline` does not
replace it: it counts the body of a scan once, and that of a while loop not at all.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters import partial_eval

Known = np.ndarray | None  # a value that follows from the known inputs
MOST = 2**16  # elements of a value that is followed; trip counts follow from small ones

# Of one input, which they pass on.
_IDENTITIES = ("sharding_constraint", "optimization_barrier", "copy", "copy_p", "stop_gradient")


def executed(jaxpr: ClosedJaxpr, known: Sequence[Known]) -> float:
    """Operations of one call on all devices, padding and recomputation included.

    Args:
      known: value of every flat argument, or None.

    Raises:
      ValueError: the trip count of a loop does not follow from the known arguments.
    """
    return _walk(jaxpr.jaxpr, jaxpr.consts, known)[0]


def live(jaxpr: ClosedJaxpr) -> ClosedJaxpr:
    """The program without equations that no result needs."""
    closed = partial_eval.dce_jaxpr(
        jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars), instantiate=True
    )[0]
    return ClosedJaxpr(closed, jaxpr.consts)


def _walk(
    jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Known]
) -> tuple[float, list[Known]]:
    """Operations of a jaxpr, and the values of its results, None where unknown."""
    values: dict[Any, np.ndarray] = {}

    def give(variables: Sequence[Any], found: Sequence[Known]) -> None:
        for variable, value in zip(variables, found, strict=True):
            if value is not None:
                values[variable] = value

    def value(variable: Any) -> Known:
        return np.asarray(variable.val) if isinstance(variable, Literal) else values.get(variable)

    give(jaxpr.constvars, [_small(x) for x in consts])
    give(jaxpr.invars, arguments)
    total = 0.0
    for eqn in jaxpr.eqns:
        count, found = _equation(eqn, [value(variable) for variable in eqn.invars])
        total += count
        give(eqn.outvars, found)
    return total, [value(variable) for variable in jaxpr.outvars]


def _equation(eqn: JaxprEqn, given: list[Known]) -> tuple[float, list[Known]]:
    name = eqn.primitive.name
    unknown: list[Known] = [None] * len(eqn.outvars)
    if name == "dot_general":
        return _dot(eqn), unknown
    if name == "conv_general_dilated":
        return _convolution(eqn), unknown
    if name == "scan":
        return _scan(eqn, given)
    if name == "while":
        return _while(eqn, given), unknown
    if name == "cond":
        return _cond(eqn, given)
    if name == "pallas_call":
        inner = _walk(eqn.params["jaxpr"], (), [None] * len(eqn.params["jaxpr"].invars))[0]
        return inner * math.prod(eqn.params["grid_mapping"].grid), unknown
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in eqn.params:
            return _walk(*_open(eqn.params[key]), given)
    if name in _IDENTITIES:
        return 0, given[: len(eqn.outvars)]
    return 0, _evaluate(eqn, given)


def _open(jaxpr: Any) -> tuple[Jaxpr, Sequence[Any]]:
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else (jaxpr, ())


def _dot(eqn: JaxprEqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = _shape(eqn.invars[0])
    return 2.0 * math.prod(_shape(eqn.outvars[0])) * math.prod(left[i] for i in contracted)


def _convolution(eqn: JaxprEqn) -> float:
    kernel = _shape(eqn.invars[1])
    features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(_shape(eqn.outvars[0])) * math.prod(kernel) / features


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)


def _scan(eqn: JaxprEqn, given: list[Known]) -> tuple[float, list[Known]]:
    """A body that branches is followed one iteration after the other, any other is counted once."""
    jaxpr, consts = _open(eqn.params["jaxpr"])
    length, first, carries = (eqn.params[key] for key in ("length", "num_consts", "num_carry"))
    fixed, carry, sliced = given[:first], given[first : first + carries], given[first + carries :]
    if not _branches(jaxpr):
        rest: list[Known] = [None] * (len(given) - first)
        return length * _walk(jaxpr, consts, fixed + rest)[0], [None] * len(eqn.outvars)
    total, results = 0.0, []
    for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
        slices = [None if x is None else x[i] for x in sliced]
        count, found = _walk(jaxpr, consts, [*fixed, *carry, *slices])
        total, carry = total + count, found[:carries]
        results.append((i, found[carries:]))
    columns = zip(*(found for _, found in sorted(results, key=lambda one: one[0])))
    stacked = [None if any(x is None for x in c) else _small(np.stack(c)) for c in columns]
    return total, [*carry, *(stacked or [None] * (len(eqn.outvars) - carries))]


def _branches(jaxpr: Jaxpr) -> bool:
    """Whether a jaxpr has branches, or loops of unknown ends, at any depth."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("cond", "while"):
            return True
        inner = (eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params)
        if any(_branches(_open(one)[0]) for one in inner):
            return True
    return False


def _while(eqn: JaxprEqn, given: list[Known]) -> float:
    """A counting loop, as `jax.lax.fori_loop` makes it: while i < end, i + 1."""
    condition, body = eqn.params["cond_jaxpr"].jaxpr, eqn.params["body_jaxpr"]
    ours, theirs = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    start = dict(zip(condition.invars, given[:ours] + given[ours + theirs :], strict=True))
    compare = condition.eqns[-1] if condition.eqns else None
    found: list[Known] = []
    if compare is not None and compare.primitive.name == "lt":
        found = [
            np.asarray(one.val) if isinstance(one, Literal) else start.get(one)
            for one in compare.invars
        ]
    if len(found) != 2 or found[0] is None or found[1] is None:
        raise ValueError(
            "a loop in the program runs until something that is computed from what is not known"
            f" here, so that its operations cannot be counted: {eqn.params['cond_jaxpr']}"
        )
    unknown: list[Known] = [None] * len(given[ours + theirs :])
    count = _walk(body.jaxpr, body.consts, given[ours : ours + theirs] + unknown)[0]
    return count * max(int(found[1]) - int(found[0]), 0)


def _cond(eqn: JaxprEqn, given: list[Known]) -> tuple[float, list[Known]]:
    """The branch that is taken, or the dearest if that is not known."""
    branches, index = eqn.params["branches"], given[0]
    if index is not None:
        one = branches[min(max(int(index), 0), len(branches) - 1)]
        return _walk(one.jaxpr, one.consts, given[1:])
    counts = [_walk(one.jaxpr, one.consts, given[1:])[0] for one in branches]
    return max(counts), [None] * len(eqn.outvars)


def _small(value: Any) -> Known:
    shape, dtype = np.shape(value), getattr(value, "dtype", None)
    if math.prod(shape) > MOST or not (dtype is None or np.dtype(dtype).kind in "iub"):
        return None
    return np.asarray(value)


def _evaluate(eqn: JaxprEqn, given: list[Known]) -> list[Known]:
    """The results of whole numbers and truth values that are all known."""
    outs: list[Any] = [variable.aval for variable in eqn.outvars]
    small = all(
        hasattr(aval, "dtype") and aval.size <= MOST and aval.dtype.kind in "iub" for aval in outs
    )
    if not small or any(x is None for x in given):
        return [None] * len(outs)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        found = eqn.primitive.bind(*map(jnp.asarray, given), **eqn.params)
    return [np.asarray(x) for x in (found if eqn.primitive.multiple_results else [found])]
