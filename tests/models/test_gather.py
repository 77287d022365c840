"""Kernels over "fsdp" are gathered whole, in the dtype that is multiplied, and never kept."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.models.noise import drawn
from unime_jax import paths, sharding
from unime_jax.models import layers, scan
from unime_jax.models.vit import MLP

DEPTH, WIDTH, HIDDEN, ROWS, TOKENS = 3, 32, 64, 8, 16


class Tower(nnx.Module):
    def __init__(self, key):
        self.layers = scan.stack(lambda k: MLP(WIDTH, HIDDEN, "silu", key=k), DEPTH, key)

    def __call__(self, x, remat):
        return scan.run(self.layers, lambda layer, x: x + layer(x), x, remat=remat)


def lowered(remat, *, trained=".*", tokens=TOKENS, shape=(2, 4, 1), int8=False, dtype="bfloat16"):
    """The gradient of a tower's trained parameters, lowered for a mesh, and its arguments."""
    mesh = sharding.make_mesh(*shape)

    def make():
        tower = Tower(jax.random.key(0))
        if int8:
            layers.quantize(tower, {f"{path}.kernel" for path, _ in layers.linears(tower)})
        return tower

    graph, shapes = paths.split(jax.eval_shape(make))
    parameters = drawn(shapes)
    placed = sharding.parameter_shardings(mesh, {p: v.shape for p, v in parameters.items()})
    x = np.random.default_rng(1).standard_normal((ROWS, tokens, WIDTH)).astype(dtype)

    def loss(trained, frozen, x):
        y = paths.merge(graph, trained, frozen)(x, remat)
        return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    own = {p: v for p, v in parameters.items() if re.fullmatch(trained, p)}
    others = {p: v for p, v in parameters.items() if p not in own}
    own, others = ({p: jax.device_put(v, placed[p]) for p, v in x.items()} for x in (own, others))
    rows = jax.device_put(x, NamedSharding(mesh, P(sharding.ROWS)))
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss)).lower(own, others, rows), (own, others, rows)


def constraints(program):
    """Types of the arrays whose sharding is asked for, without rows of activations."""
    types = re.findall(r"sdy\.sharding_constraint .* : tensor<(\S+)>", program.as_text())
    return [kind for kind in types if not kind.startswith(f"{ROWS}x")]


def test_gradients_are_those_of_one_device_and_lie_as_the_parameters():
    alone, arguments = lowered("full", shape=(8, 1, 1), dtype="float32")
    assert constraints(alone) == []
    expected = alone.compile()(*arguments)
    for shape in ((2, 4, 1), (2, 2, 2)):
        program, arguments = lowered("full", shape=shape, dtype="float32")
        assert {f"{WIDTH}x{HIDDEN}xf32", f"{HIDDEN}x{WIDTH}xf32"} == set(constraints(program))
        # A kernel that is split over "tensor", too, stays so.
        asked = re.findall(r"sdy\.sharding_constraint (.*) : tensor<(?!8x)", program.as_text())
        assert asked and all("tensor" in each for each in asked)
        gradient = program.compile()(*arguments)
        for path, leaf in gradient.items():
            np.testing.assert_allclose(leaf, expected[path], atol=1e-4, rtol=1e-4)
            if path.endswith("kernel"):
                assert leaf.sharding.is_equivalent_to(arguments[0][path].sharding, 3), path


def test_what_is_gathered_and_kept():
    for trained in (".*", ".*bias"):
        program, _ = lowered("none", trained=trained)
        assert set(constraints(program)) == {f"{WIDTH}x{HIDDEN}xbf16", f"{HIDDEN}x{WIDTH}xbf16"}
        text = program.compile().as_text()
        assert re.search(r"\[(1,)?32,64\]\S* all-gather", text)
        assert not re.search(r"\[3,(32,64|64,32)\]", text), "kernels of all layers, whole"

    # Codes travel as codes, and those of few tokens stay where they are.
    program, _ = lowered("full", trained=".*bias", int8=True)
    assert set(constraints(program)) == {f"{WIDTH}x{HIDDEN}xi8", f"{HIDDEN}x{WIDTH}xi8"}
    assert constraints(lowered("full", tokens=2)[0]) == []
