"""What layers recompute for gradients: the same gradients of every kind of layer, and less work."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import subjaxprs
from jax.sharding import Mesh

from tests.backbones.tiny_dual_encoders import write_clip
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_qwen import write_qwen2_5_vl, write_qwen2_vl
from tests.backbones.tiny_texts import write_bert
from tests.float32 import assert_same_gradients
from tests.models.noise import drawn
from tests.models.oracle import EXACT, picture
from tests.tables import for_each
from unime_jax import backbones, paths
from unime_jax.batch import Item, Media
from unime_jax.data.bucket_filling import fill_buckets
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes
from unime_jax.models import forward, layers, lora, scan
from unime_jax.planning import costs

ORDER = ("none", "dots", "attention_up", "attention", "full")
POLICIES = (*ORDER[1:], "offload")
# A decoder below a plain tower, post-norm layers, Qwen's towers, and both towers of a dual encoder:
# other families are made of these.
FAMILIES = (write_folder, write_bert, write_qwen2_vl, write_qwen2_5_vl, write_clip)


def loss_of(write, folder):
    """A loss as a function of parameters and remat, of a text and an image, and the parameters."""
    write(folder)
    backbone = backbones.open_backbone(str(folder), max_length=100)
    graph, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    parameters = drawn(shapes)
    items = [Item("a text of some words")]
    if backbone.layout.patches:
        items.append(Item("<|image_1|>", (Media("image", picture(30, 40, 0)),)))
    rows = [backbone.preprocess(item) for item in items]
    longest = max(len(row.tokens) for row in rows)
    tiles = max(0 if row.patches is None else len(row.patches) for row in rows)
    shapes = BatchShapes((Bucket(longest, tiles),), backbone.layout, 2, 2)
    inputs = jax.tree.map(lambda x: jax.device_put(x[0]), fill_buckets(rows, shapes)[0][0])

    def loss(parameters, remat):
        execution = dataclasses.replace(EXACT, remat=remat)
        return forward.make_encode(graph, execution)(parameters, {}, inputs)[:, 0].sum()

    return loss, parameters


def flops(loss, parameters, remat):
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: loss(p, remat)))(parameters)
    return costs.flops(jaxpr, [None] * len(jaxpr.in_avals))


# A policy is names, which the loops of all families have, by the next test; layers alone have each.
@for_each(
    "write, policies",
    [*((write, POLICIES) for write in FAMILIES), (write_bert, ("full",))],
    quick=[(write_bert, ("full",))],
)
def test_gradients_are_the_same_whatever_a_layer_computes_again(write, policies, tmp_path):
    loss, parameters = loss_of(write, tmp_path / "model")
    work = {remat: flops(loss, parameters, remat) for remat in ORDER}
    assert list(work.values()) == sorted(work.values())
    # Without the MLP's wide layers, and without any
    assert work["attention_up"] < work["attention"] < work["full"]

    def gradient(remat):
        return jax.jit(jax.grad(lambda p: loss(p, remat)))(parameters)

    plain = gradient("none")
    assert all(np.isfinite(leaf).all() for leaf in plain.values())
    for remat in policies:
        assert_same_gradients(gradient(remat), plain)


@for_each("write", FAMILIES)
def test_every_loop_over_layers_names_what_policies_keep(write, tmp_path):
    loss, parameters = loss_of(write, tmp_path / "model")

    def names(jaxpr):
        own = {eqn.params["name"] for eqn in jaxpr.eqns if eqn.primitive.name == "name"}
        return own.union(*map(names, subjaxprs(jaxpr)))

    def loops(jaxpr):
        own = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
        return sum(map(loops, subjaxprs(jaxpr)), own)

    found = loops(jax.make_jaxpr(lambda p: loss(p, "none"))(parameters).jaxpr)
    assert len(found) == (1 if write is write_bert else 2)
    for loop in found:
        assert {scan.INPUT, "projection", "up"} <= names(loop.params["jaxpr"].jaxpr)


def test_products_of_codes_and_of_adapters_are_kept_by_name():
    """Each once: neither a kernel's product nor an adapter's is beside their sum.

    Gradients are the same by all policies.
    """

    def make(key):
        linear = layers.Linear(32, 32, bias=True, key=key)
        config = lora.LoraConfig(rank=2, alpha=2.0, dora=True, targets=((".*", True),))
        lora.add(linear, config, key=key)
        return linear

    for codes in (False, True):
        stack = scan.stack(make, 4, jax.random.key(0))
        if codes:
            layers.quantize(stack, {".kernel"})
        graph, parameters = paths.split(stack)
        trained = {p: x for p, x in parameters.items() if p.startswith("lora_")}
        frozen = {p: x for p, x in parameters.items() if p not in trained}
        x = jnp.ones((7, 32))

        def loss(trained, remat, graph=graph, frozen=frozen, x=x):
            model = paths.merge(graph, trained, frozen)
            return jnp.sum(scan.run(model, lambda layer, x: jnp.sin(layer(x)), x, remat=remat))

        # All but the norms of columns, which a step has computed before
        by_remat = {remat: flops(loss, trained, remat) for remat in ("none", "dots", "full")}
        again = 2 * 4 * 7 * 32 * 32  # the kernels' products
        assert by_remat["full"] - by_remat["dots"] >= again
        pullback = jax.vjp(functools.partial(loss, remat="dots"), trained)[1]
        kept = [x.shape for x in jax.tree.leaves(pullback)].count((4, 7, 32))
        assert kept == 2, codes  # the input and the product
        if not codes:
            run = jax.jit(jax.grad(loss), static_argnums=1)
            for remat in POLICIES:
                assert_same_gradients(run(trained, remat), run(trained, "none"))


def test_offloading_is_refused_where_devices_have_no_host_memory(monkeypatch):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    scan.check("offload", mesh)
    monkeypatch.setattr(scan, "HOST", "memory_of_the_moon")
    scan.check("full", mesh)
    with pytest.raises(ValueError, match='remat="offload" puts .* memory_of_the_moon memory, and'):
        scan.check("offload", mesh)
