"""Products of float32 operands ask for float32, in every program that is run: no default is left.

JAX's default means bfloat16 passes on a TPU, which no CPU shows. So the programs are read, not run.
"""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.backbones import tiny_families, tiny_llava_qwen, tiny_phi3_v, tiny_qwen, tiny_texts
from tests.backbones.tiny_folders import write_folder
from tests.models.oracle import TEXT, VISION
from tests.tables import for_each
from tests.training import tiny_batch
from unime_jax import backbones, sharding
from unime_jax.data.shapes import Bucket, pair_shapes
from unime_jax.inference import encoder_programs
from unime_jax.models import forward, lora, precision
from unime_jax.models.vlm import Execution
from unime_jax.planning.program import abstract_batch, abstract_rows
from unime_jax.training import objectives, state, step

FAMILIES = {
    "llava_onevision": lambda f: write_folder(f, vision=VISION, text=TEXT),
    "llava_next": tiny_families.write_llava_next,
    "llava_qwen": tiny_llava_qwen.write_llava_qwen,
    "qwen2_vl": tiny_qwen.write_qwen2_vl,
    "phi3_v": tiny_phi3_v.write_phi3_v,
    "bert": tiny_texts.write_bert,
    "nvembed": tiny_texts.write_nv_embed,
}
# Kernels of all kinds of layers; the same code adapts the others.
DORA = lora.LoraConfig(
    rank=2,
    alpha=4.0,
    dora=True,
    targets=((r".*\.(q_proj|qkv|query|down_proj|fc2)", True), (".*", False)),
)
CONTRASTIVE = objectives.Contrastive(
    objective="contrastive",
    temperature=0.05,
    hard_negatives=4,
    false_negative_margin=0.2,
    hardness=2.0,
    symmetric=True,
    column_block=None,
    mask_same_target=True,
)
IN_BLOCKS = objectives.Contrastive(
    **{**vars(CONTRASTIVE), "column_block": 3, "hard_negatives": None}
)
HARDEST_IN_BLOCKS = objectives.Contrastive(**{**vars(CONTRASTIVE), "column_block": 3})
DISTILLATION = objectives.Distillation(
    objective="distillation",
    texts="all",
    temperature=0.05,
    teacher_temperature=None,
    direction="symmetric",
    mask_diagonal=True,
    reduction="mean",
)
PRODUCT = re.compile(
    r"stablehlo\.(?:dot_general|convolution)\b.*: \(tensor<(.*?)>, tensor<(.*?)>\)"
)


def products(lowered) -> list[tuple[str, str, bool]]:
    """The dtypes of the operands of every product, and whether it asks for full precision."""
    found = []
    for line in lowered.as_text().splitlines():
        if match := PRODUCT.search(line):
            types = [shape.split("x")[-1] for shape in match.groups()]
            found.append((*types, "precision = [HIGHEST, HIGHEST]" in line))
    return found


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family) / "folder"
            folder.mkdir()
            FAMILIES[family](folder)
            made[family] = backbones.open_backbone(str(folder), max_length=64, weights=False)
        return made[family]

    return get


def lowered_step(backbone, loss, *, dtype="float32", frozen="float32", tiles=3):
    """A training step: forward, backward and update, as StableHLO."""
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    abstract_model = state.abstract_model(
        backbone,
        mesh,
        adapters=DORA,
        trainable=((r".*\.lora_.*", True), (".*", frozen == "float32")),
        frozen_dtype=jnp.dtype(frozen),
    )
    shapes = pair_shapes(
        [Bucket(64, tiles)], backbone.layout, batch_size=8, negatives=1, chunk_size=8
    )
    optimizer = optax.sgd(1e-3)
    run = step.make_train_step(
        forward.make_encode(abstract_model.graph, Execution(jnp.dtype(dtype), "none", "xla")),
        optimizer,
        optax.constant_schedule(1e-3),
        loss,
        recompute=True,
    )
    now = state.abstract_state(abstract_model, optimizer, mesh)
    with jax.set_mesh(mesh):
        return jax.jit(run).lower(now, abstract_batch(shapes, mesh, 8))


# Layers of other families, of which LLaVA-OneVision and Phi-3.5-Vision are below, are of these.
@for_each("family", FAMILIES, quick=("qwen2_vl", "nvembed"))
def test_every_float32_product_of_a_step_asks_for_float32(opened, family):
    found = products(lowered_step(opened(family), CONTRASTIVE))
    assert len(found) > 40  # forward and backward
    assert set(found) == {("f32", "f32", True)}


@for_each("loss", [IN_BLOCKS, HARDEST_IN_BLOCKS])
def test_of_a_loss_in_tiles_round_a_ring_too(loss):
    """Of a stand-in for the encoder, whose own products ask for nothing."""
    batch, (trainable, frozen) = tiny_batch.make_batch(), tiny_batch.parameters()

    def encode(trainable, frozen, inputs):
        with jax.default_matmul_precision("highest"):
            return tiny_batch.encode(trainable, frozen, inputs)

    def value(trainable):
        return step.batch_loss(encode, trainable, frozen, batch, loss, recompute=True)[0]

    with jax.set_mesh(sharding.make_mesh(1, 2, 1, jax.devices()[:2])):
        found = products(jax.jit(jax.grad(value)).lower(trainable))
    assert len(found) > 8 and set(found) == {("f32", "f32", True)}


def test_of_distillation_int8_kernels_and_encoders_too(opened):
    backbone = backbones.language_only(opened("llava_onevision"), 6)
    found = products(lowered_step(backbone, DISTILLATION, tiles=0))
    assert set(found) == {("f32", "f32", True)}

    # Of int8 kernels computed in float32 too
    found = products(lowered_step(opened("llava_onevision"), CONTRASTIVE, frozen="int8"))
    assert set(found) == {("f32", "f32", True)}

    # Of the encoder of evaluation export and embedder too
    backbone = opened("phi3_v")
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    abstract_model = state.abstract_model(
        backbone,
        mesh,
        adapters=DORA,
        trainable=((".*", True),),
        frozen_dtype=jnp.dtype("float32"),
    )
    shapes = pair_shapes([Bucket(64, 3)], backbone.layout, batch_size=8, negatives=0, chunk_size=8)
    exact = Execution(jnp.dtype("float32"), "none", "xla")
    run = encoder_programs.program(forward.make_encode(abstract_model.graph, exact), mesh)
    with jax.set_mesh(mesh):
        found = products(run.lower(abstract_model.parameters, {}, abstract_rows(shapes, mesh)))
    assert len(found) > 10 and set(found) == {("f32", "f32", True)}


@for_each("family", ["llava_onevision", "bert"], quick=["llava_onevision"])
def test_bfloat16_stays_the_platforms_own(opened, family):
    """Only what is float32 in such a run, as norms of DoRA and the loss, asks for more."""
    found = set(products(lowered_step(opened(family), CONTRASTIVE, dtype="bfloat16")))
    assert ("bf16", "bf16", False) in found and ("f32", "f32", True) in found
    assert all(full == (a == b == "f32") for a, b, full in found)


def test_a_default_of_the_user_is_left_alone():
    before = jax.config.jax_default_matmul_precision
    with precision.asked(jnp.dtype("float32")):
        assert jax.config.jax_default_matmul_precision == "highest"
    assert jax.config.jax_default_matmul_precision == before
    assert precision.of(jnp.dtype("bfloat16")) is None
