"""Parameters and optimizer state of a run on a mesh, or their shapes alone for planning."""

import dataclasses
import functools
import types
from collections.abc import Callable, Container, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from unime_jax import paths, sharding
from unime_jax.backbones import Backbone, MakeModel
from unime_jax.models import layers, lora
from unime_jax.models.forward import SHARED
from unime_jax.models.vlm import EmbeddingModel
from unime_jax.operations import compiler_options
from unime_jax.training.step import TrainState

Targets = tuple[tuple[str, jax.ShapeDtypeStruct], ...]  # by path; hashable


@dataclasses.dataclass(frozen=True)
class AbstractModel:
    """A model with abstract parameters: shape, dtype, sharding and trainability."""

    graph: nnx.GraphDef
    parameters: dict[str, jax.ShapeDtypeStruct]  # with shardings
    trainable: frozenset[str]

    def part(self, values: dict[str, Any], *, trainable: bool) -> dict[str, Any]:
        """The trainable, or the frozen, entries of a dict by path."""
        return {path: v for path, v in values.items() if (path in self.trainable) == trainable}


def abstract_model(
    backbone: Backbone,
    mesh: Mesh,
    *,
    adapters: lora.LoraConfig,
    trainable: paths.Rules[bool],
    frozen_dtype: jnp.dtype,
) -> AbstractModel:
    """The model traced, with nothing computed. Trainable parameters are float32.

    With int8 as `frozen_dtype`, kernels of frozen linear layers are codes with float32 scales
    beside them (`models.quantization`); all other frozen parameters are bfloat16.

    Raises:
      ValueError: a parameter that no rule covers, nothing to train, or nothing to quantise.
    """
    graph, shapes = _trace(backbone.make_model, adapters, frozenset())
    chosen = paths.assign(trainable, shapes, what="trainable")
    if not any(chosen.values()):
        raise ValueError("The rules in config.trainable leave nothing to train.")
    kernels = frozenset[str]()
    if frozen_dtype == jnp.int8:
        model = jax.eval_shape(backbone.make_model, jax.random.key(0))
        linears = (f"{path}.kernel" for path, _ in layers.linears(model))
        kernels = frozenset(kernel for kernel in linears if not chosen[kernel])
        if not kernels:
            raise ValueError(
                'config.execution.frozen_dtype="int8" is for kernels of linear layers that are not '
                'trained, and config.trainable leaves none; use "float32" or "bfloat16".'
            )
        graph, shapes = _trace(backbone.make_model, adapters, kernels)
        frozen_dtype = jnp.dtype("bfloat16")
    trained = {path for path in shapes if chosen.get(path, False)}  # scales are never

    def dtype(path: str) -> jnp.dtype:
        if path in kernels:
            return jnp.dtype("int8")
        float32 = path in trained or path not in chosen  # or a scale
        return jnp.dtype("float32") if float32 else frozen_dtype

    parameters = sharding.abstract_parameters(shapes, mesh, dtype)
    return AbstractModel(graph, parameters, frozenset(trained))


@functools.lru_cache(maxsize=SHARED)
def _trace(
    make_model: MakeModel, adapters: lora.LoraConfig | None, kernels: frozenset[str]
) -> tuple[nnx.GraphDef, Mapping[str, Any]]:
    """The graph of the model with adapters and these kernels quantised, and its shapes."""

    def make() -> EmbeddingModel:
        model = _make_base(make_model, kernels, jax.random.key(0))
        if adapters is not None and adapters.rank:
            lora.add(model, adapters, key=jax.random.key(0))
        return model

    graph, shapes = paths.split(jax.eval_shape(make))
    return graph, types.MappingProxyType(shapes)


def _make_base(make_model: MakeModel, kernels: Container[str], key: jax.Array) -> EmbeddingModel:
    model = make_model(key)
    layers.quantize(model, kernels)
    return model


def make_parameters(
    backbone: Backbone,
    abstract_model: AbstractModel,
    *,
    adapters: lora.LoraConfig,
    init: Literal["pretrained", "random"],
    seed: int,
) -> paths.Parameters:
    """Parameters in their shardings and dtypes; adapters are always new.

    Every device makes or reads its own part alone: the whole model need not fit in one memory.
    """
    targets = abstract_model.parameters
    base, adapter = jax.random.split(jax.random.key(seed))
    kernels = frozenset(path for path, target in targets.items() if target.dtype == jnp.int8)
    graph, shapes = _trace(backbone.make_model, None, kernels)
    own = {path: targets[path] for path in shapes}
    if init == "pretrained":
        parameters = backbone.load(own)
    else:
        parameters = _random_base(backbone.make_model, kernels, tuple(own.items()))(base)
    if adapters.rank:
        new = {path: target for path, target in targets.items() if path not in own}
        make = _random_adapters(graph, adapters, tuple(new.items()))
        parameters = parameters | make(parameters, adapter)
    return parameters


@functools.lru_cache(maxsize=SHARED)
def _random_base(
    make_model: MakeModel, kernels: frozenset[str], targets: Targets
) -> Callable[[jax.Array], paths.Parameters]:
    """The model's own parameters as a jitted function of a key."""

    def make_base(key: jax.Array) -> paths.Parameters:
        return _cast(paths.split(_make_base(make_model, kernels, key))[1], targets)

    options = compiler_options.of(targets[0][1].sharding.mesh)
    return jax.jit(make_base, out_shardings=_shardings(dict(targets)), compiler_options=options)


@functools.lru_cache(maxsize=SHARED)
def _random_adapters(
    graph: nnx.GraphDef, adapters: lora.LoraConfig, targets: Targets
) -> Callable[[paths.Parameters, jax.Array], paths.Parameters]:
    """New adapters as a jitted function of the model's own parameters and a key."""

    def make_adapters(base: paths.Parameters, key: jax.Array) -> paths.Parameters:
        model = paths.merge(graph, base)
        lora.add(model, adapters, key=key)
        return _cast(paths.split(model)[1], targets)

    return jax.jit(make_adapters, out_shardings=_shardings(dict(targets)))


def _cast(parameters: paths.Parameters, targets: Targets) -> paths.Parameters:
    """Those of `parameters` that are among the targets, in the dtypes of these."""
    return {path: parameters[path].astype(target.dtype) for path, target in targets}


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def make_state(
    abstract_model: AbstractModel,
    parameters: paths.Parameters,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """The state before the first step."""
    trainable = abstract_model.part(parameters, trainable=True)
    abstract = abstract_state(abstract_model, optimizer, mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=_shardings(abstract.opt_state))(trainable)
    # One buffer each: a donated state must not hold the same array twice.
    zeros = [jax.device_put(jnp.zeros((), jnp.int32), sharding.replicated(mesh)) for _ in range(3)]
    return TrainState(
        step=zeros[0],
        trainable=trainable,
        frozen=abstract_model.part(parameters, trainable=False),
        opt_state=opt_state,
        skipped=zeros[1],
        skipped_in_a_row=zeros[2],
    )


def abstract_state(
    abstract_model: AbstractModel, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state: moments lie where their parameters lie."""
    trainable = abstract_model.part(abstract_model.parameters, trainable=True)
    everywhere = sharding.replicated(mesh)

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        key = getattr(path[-1], "key", None) if path else None
        where: NamedSharding = trainable[key].sharding if key in trainable else everywhere
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    opt_state = jax.tree.map_with_path(place, jax.eval_shape(optimizer.init, trainable))
    counter = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return TrainState(
        step=counter,
        trainable=trainable,
        frozen=abstract_model.part(abstract_model.parameters, trainable=False),
        opt_state=opt_state,
        skipped=counter,
        skipped_in_a_row=counter,
    )


def parameter_table(abstract_model: AbstractModel) -> str:
    """Name, shape, dtype, sharding and trainability of every parameter, and their number."""
    rows = [("parameter", "shape", "dtype", "sharding", "")]
    for path, leaf in abstract_model.parameters.items():
        shape = "x".join(map(str, leaf.shape))
        spec = ", ".join("-" if axis is None else str(axis) for axis in leaf.sharding.spec)
        use = "trainable" if path in abstract_model.trainable else "frozen"
        rows.append((path, shape, leaf.dtype.name, f"({spec})", use))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows]
    total = sum(leaf.size for leaf in abstract_model.parameters.values())
    free = sum(abstract_model.parameters[path].size for path in abstract_model.trainable)
    return "\n".join([*lines, f"{total:,} parameters, {free:,} trainable ({free / total:.2%})"])
