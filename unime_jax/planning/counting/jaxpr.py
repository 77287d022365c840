"""Floating-point operations in a jaxpr, each loop body as often as it runs.

The length of a scan is written in the jaxpr. The end of a counting loop, over live chunks, follows
from inputs whose values are known, so integers are evaluated on the way.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters import partial_eval

Value = np.ndarray | None  # None: does not follow from the known inputs
MAX_ELEMENTS = 2**16  # of a value that is evaluated; trip counts follow from small ones


def flops(jaxpr: ClosedJaxpr, known: Sequence[Value]) -> float:
    """FLOPs of one call on all devices, padding and recomputation included.

    Matrix products and convolutions count, 2 for a multiplication and an addition. Other
    operations do not, nor does what no result needs.

    Args:
      known: value of every flat argument, or None.

    Raises:
      ValueError: the trip count of a loop does not follow from the known arguments.
    """
    needed = partial_eval.dce_jaxpr(
        jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars), instantiate=True
    )[0]
    return _run(needed, jaxpr.consts, known)[0]


def _run(
    jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Value]
) -> tuple[float, list[Value]]:
    """FLOPs of a jaxpr, and the values of its results."""
    inputs = [*map(_evaluable, consts), *arguments]
    values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))

    def value(atom: Any) -> Value:
        return np.asarray(atom.val) if isinstance(atom, Literal) else values[atom]

    total = 0.0
    for eqn in jaxpr.eqns:
        count, results = _equation(eqn, [value(atom) for atom in eqn.invars])
        total += count
        values.update(zip(eqn.outvars, results, strict=True))
    return total, [value(atom) for atom in jaxpr.outvars]


def _equation(eqn: JaxprEqn, arguments: list[Value]) -> tuple[float, list[Value]]:
    """FLOPs of an equation, and the values of its results."""
    params = eqn.params
    unknown: list[Value] = [None] * len(eqn.outvars)
    match eqn.primitive.name:
        case "dot_general":
            return _matrix_product(eqn), unknown
        case "conv_general_dilated":
            return _convolution(eqn), unknown
        case "scan":
            consts = arguments[: _constants_of_scan(params)]
            return params["length"] * _body(params["jaxpr"], consts), unknown
        case "while":
            return _counting_loop(eqn, arguments), unknown
        case "cond":  # the dearest branch: which one is taken is not followed
            return max(_body(branch, arguments[1:]) for branch in params["branches"]), unknown
        case "shard_map":  # its jaxpr is that of one device
            sizes = params["mesh"].shape
            devices = math.prod(sizes[axis] for axis in params["newly_manual_axes"])
            return devices * _body(params["jaxpr"], ()), unknown
        case "pallas_call":
            steps = math.prod(params["grid_mapping"].grid) * _visited(eqn)
            return steps * _body(params["jaxpr"], ()), unknown
        case "program_id" | "num_programs":  # of a kernel's step
            return 0.0, unknown
        case "sharding_constraint" | "optimization_barrier":
            return 0.0, arguments
    for key in ("jaxpr", "call_jaxpr"):
        if key in params:
            return _run(*_opened(params[key]), arguments)
    return 0.0, _evaluated(eqn, arguments)


def _visited(eqn: JaxprEqn) -> float:
    """Share of a kernel's grid in which it computes.

    Splash attention has a table of blocks, of queries by keys. Its causal kernels, which skip those
    above the diagonal, have the queries' positions, other ones pairs of segment ids or no integers.
    """
    avals: list[Any] = [variable.aval for variable in eqn.invars]
    is_splash = str(eqn.params.get("name")).startswith("splash_")
    if not is_splash or sum(x.dtype == jnp.int32 for x in avals) % 2 == 0:
        return 1.0
    blocks = avals[0].shape[-1]
    return (blocks + 1) / (2 * blocks)


def _constants_of_scan(params: dict[str, Any]) -> int:
    """Number of a scan's first arguments that are the same in each iteration."""
    if "num_consts" in params:  # before jax 0.12
        return params["num_consts"]
    constants, _, _ = params["ft_in"].unpack()
    return len(constants.vals)


def _body(jaxpr: Jaxpr | ClosedJaxpr, first: Sequence[Value]) -> float:
    """FLOPs of one run of which the first arguments may be known."""
    inner, consts = _opened(jaxpr)
    arguments = [*first, *[None] * (len(inner.invars) - len(first))]
    return _run(inner, consts, arguments)[0]


def _opened(jaxpr: Jaxpr | ClosedJaxpr) -> tuple[Jaxpr, Sequence[Any]]:
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else (jaxpr, ())


def _matrix_product(eqn: JaxprEqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = _shape(eqn.invars[0])
    return 2.0 * math.prod(_shape(eqn.outvars[0])) * math.prod(left[i] for i in contracted)


def _convolution(eqn: JaxprEqn) -> float:
    kernel = _shape(eqn.invars[1])
    features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(_shape(eqn.outvars[0])) * math.prod(kernel) / features


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _counting_loop(eqn: JaxprEqn, arguments: list[Value]) -> float:
    """FLOPs of `while i < end: i + 1`, as `jax.lax.fori_loop` makes it."""
    condition = eqn.params["cond_jaxpr"].jaxpr
    consts, body_consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    start = arguments[:consts] + arguments[consts + body_consts :]
    values = dict(zip(condition.invars, start, strict=True))
    compare = condition.eqns[-1] if condition.eqns else None
    bounds: list[Value] = []
    if compare is not None and compare.primitive.name == "lt":
        bounds = [
            np.asarray(atom.val) if isinstance(atom, Literal) else values.get(atom)
            for atom in compare.invars
        ]
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        raise ValueError(
            "a loop in the program runs until something that is computed from what is not known"
            f" here, so that its operations cannot be counted: {eqn.params['cond_jaxpr']}"
        )
    fixed = arguments[consts : consts + body_consts]
    return max(int(bounds[1]) - int(bounds[0]), 0) * _body(eqn.params["body_jaxpr"], fixed)


def _evaluable(value: Any) -> Value:
    """A constant, if it is small and of integers or booleans."""
    shape, dtype = np.shape(value), getattr(value, "dtype", None)
    if math.prod(shape) > MAX_ELEMENTS or not (dtype is None or np.dtype(dtype).kind in "iub"):
        return None
    return np.asarray(value)


def _evaluated(eqn: JaxprEqn, arguments: list[Value]) -> list[Value]:
    """The results of an equation on small arrays of integers or booleans that are all known."""
    avals: list[Any] = [variable.aval for variable in eqn.outvars]
    small = all(
        hasattr(x, "dtype") and x.size <= MAX_ELEMENTS and x.dtype.kind in "iub" for x in avals
    )
    if not small or any(x is None for x in arguments):
        return [None] * len(avals)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        results = eqn.primitive.bind(*map(jax.device_put, arguments), **eqn.params)
    return [np.asarray(x) for x in (results if eqn.primitive.multiple_results else [results])]
