"""FLOPs in jaxprs against numbers by hand, and against XLA where it counts right: without loops."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from jax.sharding import AxisType

import unime_jax
from unime_jax import sharding
from unime_jax.data.bucket_filling import bucket_shapes
from unime_jax.data.shapes import BatchShapes, Bucket, Layout
from unime_jax.models import splash
from unime_jax.planning import costs
from unime_jax.training import gradcache


def count(function, *arguments, known=None):
    jaxpr = jax.make_jaxpr(function)(*arguments)
    return costs.flops(jaxpr, known or [None] * len(jaxpr.in_avals))


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_costs_is_the_only_module_that_looks_into_programs():
    package = pathlib.Path(unime_jax.__file__).parent
    importers = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if "planning.counting" in file.read_text()
    }
    assert importers == {
        "planning/costs.py",
        "planning/counting/traffic.py",
        "planning/counting/kernels.py",
        "planning/counting/sources.py",
    }

    # Products and convolutions also of a scan and its gradient
    assert count(jnp.matmul, shaped(3, 5), shaped(5, 7)) == 2 * 3 * 5 * 7
    batched = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)  # noqa: E731
    assert count(batched, shaped(4, 3, 5), shaped(4, 5, 7)) == 4 * 2 * 3 * 5 * 7
    convolve = lambda x, w: jax.lax.conv(x, w, (2, 2), "VALID")  # noqa: E731
    assert count(convolve, shaped(1, 3, 8, 8), shaped(6, 3, 2, 2)) == 2 * 6 * 16 * 3 * 4
    assert count(lambda x: x + 1, shaped(100)) == 0
    unused = lambda a, b: (jnp.matmul(a, b), a + 1)[1]  # noqa: E731
    assert count(unused, shaped(5, 5), shaped(5, 5)) == 0

    # Xla counts the same without loops
    def loss(weights, x):
        for w in weights:
            x = jnp.maximum(x @ w, 0)
        return (x * x).sum()

    weights = [shaped(256, 256)] * 3
    ours = count(jax.grad(loss), weights, shaped(128, 256))
    compiled = jax.jit(jax.grad(loss)).lower(weights, shaped(128, 256)).compile()
    assert ours == pytest.approx(compiled.cost_analysis()["flops"], rel=0.02)

    # A scan and its gradient. Forward, input's gradient and weights' gradient are a product
    # each, remat is one more.
    product = 2 * 4 * 8 * 8
    for remat, products in ((False, 3), (True, 4)):

        def loss(weights, x, remat=remat):
            def body(x, w):
                return jnp.tanh(x @ w), None

            return jax.lax.scan(jax.checkpoint(body) if remat else body, x, weights)[0].sum()

        arguments = shaped(6, 8, 8), shaped(4, 8)
        assert count(loss, *arguments) == 6 * product, remat
        assert count(jax.grad(loss), *arguments) == 6 * products * product, remat


ROWS, TOKENS, WIDTH = 2, 8, 16
CHUNK = 2 * ROWS * TOKENS * WIDTH  # FLOPs of encoding a chunk once


def chunked(recompute):
    """Loss of four chunks of two rows that are encoded by one matrix."""

    def loss(weights, group):
        return jnp.square(
            gradcache.encode_in_chunks(
                lambda w, _, rows: jnp.tanh(rows.tokens.astype(jnp.float32) @ w["w"]),
                {"w": weights},
                {},
                group,
                recompute=recompute,
            )
        ).sum()

    bucket = Bucket(TOKENS, 0)
    return loss, bucket_shapes(BatchShapes((bucket,), Layout(), ROWS, 4 * ROWS), bucket)


def test_chunks_count_as_far_as_rows_are_known_to_be_live():
    """Their gradient: encoded, again if nothing was kept, and the gradient of the matrix."""
    for recompute, products in ((True, 3), (False, 2)):
        loss, group = chunked(recompute)
        weights = shaped(TOKENS, WIDTH)
        for rows, chunks in ((0, 0), (1, 1), (2, 1), (5, 3), (8, 4)):
            live = np.arange(4 * ROWS).reshape(4, ROWS) < rows
            known = [live if leaf is group.live else None for leaf in jax.tree.leaves(group)]
            case = recompute, rows
            assert count(loss, weights, group, known=[None, *known]) == chunks * CHUNK, case
            gradient = count(jax.grad(loss), weights, group, known=[None, *known])
            assert gradient == chunks * products * CHUNK, case

    # A loop of unknown end is refused
    loss, group = chunked(recompute=True)
    with pytest.raises(ValueError, match="cannot be counted"):
        count(loss, shaped(TOKENS, WIDTH), group)

    # Branches kernels and devices
    def function(which, x, w):
        branches = [lambda: x, lambda: x @ w @ w, lambda: x @ w]
        return jax.lax.switch(which, branches)

    arguments = shaped(dtype=jnp.int32), shaped(2, 8), shaped(8, 8)
    assert count(function, *arguments) == 2 * (2 * 2 * 8 * 8)

    # A pallas kernel counts as often as its grid has points
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    multiply = pallas.pallas_call(
        kernel,
        grid=(3, 2),
        in_specs=[
            pallas.BlockSpec((4, 16), lambda i, j: (i, 0)),
            pallas.BlockSpec((16, 8), lambda i, j: (0, j)),
        ],
        out_specs=pallas.BlockSpec((4, 8), lambda i, j: (i, j)),
        out_shape=shaped(12, 16),
    )
    assert count(multiply, shaped(12, 16), shaped(16, 16)) == 2 * 12 * 16 * 16

    # What each device does in a shard map counts for all of them
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    rows, whole = jax.P("x"), jax.P()
    multiply = jax.shard_map(
        jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows, axis_names={"x"}
    )
    assert count(multiply, shaped(8, 16), shaped(16, 4)) == 2 * 8 * 16 * 4


def test_attention_kernels_count_the_blocks_that_a_causal_mask_leaves(monkeypatch):
    """Of 2 x 2 blocks three: two products forward, five and three more for gradients; on a mesh."""
    monkeypatch.setattr(splash, "LARGEST", 128)
    monkeypatch.setattr(splash, "SMALLEST", 128)
    rows, tokens, heads, head = 4, 256, 4, 16
    x = shaped(rows, tokens, heads, head)
    product = 2 * rows * heads * 128 * 128 * head
    with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
        for causal, blocks in ((True, 3), (False, 4)):

            def attend(q, k, v, causal=causal):
                return splash.attend(q, k, v, causal=causal, segment=None, length=None)

            def loss(q, k, v, attend=attend):
                return attend(q, k, v).sum()

            assert count(attend, x, x, x) == 2 * blocks * product
            # Keys and values: scores, dv, dp, dk; queries: scores, dp, dq. And the row sums of
            # outputs by their cotangents.
            backward = (4 + 3) * blocks * product + 2 * rows * heads * tokens * head
            assert count(jax.grad(loss, (0, 1, 2)), x, x, x) == 2 * blocks * product + backward
