"""The 7B steps at full size, without weights or TPU: they trace, and libtpu compiles them."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import plan, stage1, stage2
from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_phi3_v import write_phi3_v
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.backbones.tiny_qwen3 import write_qwen3_vl_published
from tests.jobs.tiny_run import ROOT
from tests.tables import for_each
from unime_jax import backbones, config, config_reader, sharding
from unime_jax.data import length_sample
from unime_jax.data.settings import Bucket
from unime_jax.losses import contrastive
from unime_jax.planning import chips, compiler
from unime_jax.planning.program import Program, train_program
from unime_jax.training import automatic

VISION = dict(  # SigLIP so400m without its last layer
    hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16
)
CLIP = dict(  # ViT-L/14
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
)
TEXT = dict(  # Qwen2-7B
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152128,
)
MISTRAL = dict(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=32064,
)
PHI3 = dict(
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=32064,
    max_position_embeddings=131072,
    original_max_position_embeddings=4096,
    rope_scaling={"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
)
ROPE = {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
NEXT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def write_onevision_7b(folder: pathlib.Path) -> pathlib.Path:
    return write_folder(folder, tile=384, patch=14, grid=6, vision=VISION, text=TEXT | ROPE)


def write_next_7b(folder: pathlib.Path) -> pathlib.Path:
    return write_llava_next(
        folder,
        decoder="mistral",
        tile=336,
        patch=14,
        pinpoints=NEXT_PINPOINTS,
        vision=CLIP,
        text=MISTRAL,
    )


def write_qwen2_vl_7b(folder: pathlib.Path) -> pathlib.Path:
    return write_qwen2_vl(
        folder,
        patch=14,
        min_pixels=56 * 56,
        max_pixels=14 * 14 * 4 * 16384,
        mrope_section=(16, 24, 24),
        vision=dict(embed_dim=1280, depth=32, num_heads=16, mlp_ratio=4),
        text=TEXT | {"vocab_size": 152064},
    )


def write_phi3_v_4b(folder: pathlib.Path) -> pathlib.Path:
    return write_phi3_v(folder, vision=None, text=PHI3)


TEACHER = 4096  # NV-Embed-v2's width
# By variant of the experiments: its config.json, and its parameters (no head; CLIP without its
# last layer), in billions.
SIZES = {
    "llava_onevision_7b": (write_onevision_7b, 7.5, 7.6),
    "llava_next_7b": (write_next_7b, 7.4, 7.5),
    "qwen2_vl_7b": (write_qwen2_vl_7b, 7.7, 7.8),
    "phi3_v_4b": (write_phi3_v_4b, 4.0, 4.1),
}
# Of stage 2 alone, from what a plan has of them.
PLANNED = ("qwen2_5_vl_7b", "qwen2_5_vl_3b")
HBM = 16e9  # bytes of one TPU v5e chip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, pathlib.Path]:
    """By variant, its model's config.json with a stand-in tokenizer; no weights."""
    return {name: write(tmp_path_factory.mktemp("7b")) for name, (write, *_) in SIZES.items()}


# What recipes leave to data and devices, named where a test is of something else.
TEXTS = (Bucket(tokens=128, tiles=0), Bucket(tokens=512, tiles=0, share=0.25))
NAMED = {
    stage1: {"chunk_size": 384, "data.buckets": (Bucket(64, 0), Bucket(128, 0))},
    stage2: {"chunk_size": 16, "data.buckets": (*TEXTS, Bucket(1792, 9))},
}
KEPT = {"execution.remat": "full", "execution.kept_chunks": (), "execution.merged_chunks": 1}


def draw(experiment, variant, folder, devices, changes=(), where=None) -> Program:
    """The step of an experiment's variant on these devices, as the planner has it.

    `changes` are pairs of a config key and a value. What the recipe leaves open is `NAMED`, or, for
    a slice `where`, chosen by the recipe's lengths and the memory of its chips.
    """
    changed = experiment.get_config(variant)
    assert changed.execution.frozen_dtype == "bfloat16" and changed.execution.remat == "auto"
    named = {} if where else NAMED[experiment] | KEPT
    changed.update_from_flattened_dict(named | dict(changes))
    settings = config_reader.read(config.TrainConfig, changed.to_dict())
    longest = max((bucket.tokens for bucket in settings.data.buckets), default=None)
    backbone = backbones.open_backbone(
        str(folder), max_length=longest, processing=settings.processing
    )
    mesh = sharding.make_mesh(1, len(devices), 1, devices)
    if where:
        recipe = f"{experiment.__name__.rpartition('.')[2]}:{variant}"
        sample = length_sample.read(plan.EXPECTED[recipe]["lengths"])
        size = int(where.chip.hbm)
        settings = automatic.with_lengths(settings, backbone, mesh, size, sample)
        settings = automatic.with_memory(settings, backbone, mesh, size)
    return train_program(settings, backbone, mesh, teacher=TEACHER)


def traced(program: Program):
    """The new state and the metrics, by shapes."""
    with jax.set_mesh(program.mesh):
        return jax.eval_shape(program.run, *program.arguments)


def check_trace(program: Program):
    new, metrics = traced(program)
    now = program.arguments[0]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), now
    )
    assert metrics["loss"].shape == ()


# A family each: the night has all, by every test of these.
@for_each("variant", SIZES, quick=["llava_onevision_7b"])
def test_the_7b_step_traces(folders, variant):
    """Shapes, rules and shardings fit at full size; nothing is allocated."""
    program = draw(stage2, variant, folders[variant], jax.devices())
    trainable, frozen = program.parameters
    size = sum(leaf.size for leaf in (trainable | frozen).values())
    _, least, most = SIZES[variant]
    assert least * 1e9 < size < most * 1e9
    assert 0 < sum(leaf.size for leaf in trainable.values()) < 0.01 * size
    check_trace(program)


@pytest.mark.slow
def test_a_7b_step_of_16384_pairs_traces_in_tiles(tmp_path):
    changes = {"batch_size": 16384, "loss.column_block": 1024, "data.negatives": 1}
    folder = write_onevision_7b(tmp_path)
    check_trace(draw(stage2, "llava_onevision_7b", folder, jax.devices(), changes.items()))


INT8 = ("execution.frozen_dtype", "int8")
ON_INT8 = [
    (stage2, "qwen2_vl_7b"),
    *(
        pytest.param(experiment, variant, marks=pytest.mark.slow)
        for experiment in (stage1, stage2)
        for variant in SIZES
        if (experiment, variant) != (stage2, "qwen2_vl_7b")
    ),
]


@pytest.mark.parametrize(("experiment", "variant"), ON_INT8)
def test_the_7b_step_traces_on_an_int8_base(tmp_path, experiment, variant):
    """All that is frozen takes little more than a byte a parameter, embeddings aside."""
    folder = SIZES[variant][0](tmp_path)
    program = draw(experiment, variant, folder, jax.devices(), [INT8])
    _, frozen = program.parameters
    codes = {path for path, x in frozen.items() if x.dtype == jnp.int8}
    assert {path.rpartition(".")[2] for path in codes} == {"kernel"}
    assert not any(path.endswith(".kernel") for path in frozen.keys() - codes)
    count = sum(x.size for x in frozen.values())
    embeddings = frozen["language_model.embed_tokens.embedding"].size
    size = sum(x.size * x.dtype.itemsize for x in frozen.values())
    assert size < 1.01 * (count + embeddings)
    check_trace(program)


@for_each("variant", SIZES, quick=["phi3_v_4b"])
def test_the_7b_distillation_step_traces(folders, variant):
    """The language component alone, 768 triples; its adapters are all that is trained."""
    program = draw(stage1, variant, folders[variant], jax.devices())
    trainable, frozen = program.parameters
    assert all(path.startswith("language_model.") for path in trainable | frozen)
    assert {path.rpartition(".")[2] for path in trainable} == {"lora_a", "lora_b"}
    assert program.groups[0].teacher.shape[-1] == TEACHER
    check_trace(program)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "variant"),
    [*((e, v) for v in SIZES for e in (stage1, stage2)), *((stage2, v) for v in PLANNED)],
    ids=lambda x: x if isinstance(x, str) else x.__name__.rpartition(".")[2],
)
def test_the_7b_step_compiles_for_tpu_v5e_4x4(folders, variant, experiment, tmp_path):
    """On 16 chips of 16 GB: LoRA with 768 triples of sentences; DoRA with 1024 pairs, images of
    336, 384 or up to 672 pixels a side. Buckets, chunks and remat are those that are chosen.
    """
    pytest.importorskip("libtpu")
    where = chips.parse("v5e:4x4")
    planned = ROOT / "experiments" / "plans" / "models" / variant
    folder = planned if variant in PLANNED else folders[variant]
    program = draw(experiment, variant, folder, compiler.devices(where), where=where)
    compiled = compiler.compile_program(program, where, tmp_path)
    assert not compiled.too_large and compiled.peak < HBM
    # Attention is a kernel's, of the longest rows at least: no array of rows, heads and scores.
    assert program.execution.attention == "splash" and "splash_mha_dkv" in compiled.text
    # Stage 1's rows are about as long as a head is wide: there a shape does not tell.
    longest = program.shapes.buckets[-1].tokens
    scores = rf"\[(?:\d+,){{2,}}{longest},{longest}\]"
    assert experiment is stage1 or not re.search(scores, compiled.text)


@pytest.mark.slow
def test_a_7b_step_on_an_int8_base_compiles_for_one_tpu_v5e_chip(tmp_path):
    """LLaVA-OneVision-7B with DoRA and 1024 pairs, a row of the longest bucket at a time."""
    pytest.importorskip("libtpu")
    where = chips.parse("v5e:1x1")
    folder = write_onevision_7b(tmp_path)
    changes = [INT8, ("chunk_size", 1)]
    program = draw(stage2, "llava_onevision_7b", folder, compiler.devices(where), changes)
    compiled = compiler.compile_program(program, where, tmp_path)
    assert not compiled.too_large and compiled.peak < HBM
    # The matmuls read codes: there is no float copy of a kernel, not even of one layer.
    assert not re.findall(r"(?:bf16|f32)\[(?:3584,18944|18944,3584)", compiled.text)


ONE_CHIP = [INT8, ("batch_size", 256)]
QWEN3_VL = [
    ("qwen3_vl_2b", "2b", "v5e:4x4", []),
    ("qwen3_vl_embedding_2b", "2b", "v5e:4x4", []),
    ("qwen3_vl_8b", "8b", "v5e:4x4", []),
    ("qwen3_vl_2b", "2b", "v6e:1x1", ONE_CHIP),
]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "size", "topology", "changes"), QWEN3_VL)
def test_a_qwen3_vl_step_compiles_for_tpus(tmp_path, variant, size, topology, changes):
    """1024 pairs with images of up to 672 pixels a side; on one chip 256, on an int8 base."""
    pytest.importorskip("libtpu")
    where = chips.parse(topology)
    folder = write_qwen3_vl_published(tmp_path / size, size)
    program = draw(stage2, variant, folder, compiler.devices(where), changes, where=where)
    compiled = compiler.compile_program(program, where, tmp_path / "cache")
    assert not compiled.too_large and compiled.peak < (2 if "v6e" in topology else 1) * HBM
    assert program.execution.attention == "splash"


V5P = {"loss.column_block": 1024, "batch_size": 262144, "chunk_size": 1024}


@pytest.mark.slow
def test_a_loss_of_262144_pairs_compiles_for_tpu_v5p_4x4x4():
    """At a 7B model's width, and with little more than the gradients beside the embeddings."""
    pytest.importorskip("libtpu")
    mesh = sharding.make_mesh(1, -1, 1, compiler.devices(chips.parse("v5p:4x4x4")))
    pairs, width = V5P["batch_size"], TEXT["hidden_size"]
    x = jax.ShapeDtypeStruct(
        (pairs, width), jnp.float32, sharding=NamedSharding(mesh, P(sharding.ROWS))
    )
    for options, vectors in (
        (dict(hard_negatives=8, false_negative_margin=0.1), 3),
        (dict(hardness=9.0, symmetric=True), 7),
    ):

        def loss(queries, candidates, options=options):
            return contrastive(
                queries, candidates, **options, column_block=V5P["loss.column_block"]
            )[0]

        with jax.set_mesh(mesh):
            program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(x, x).compile()
        temporaries = program.memory_analysis().temp_size_in_bytes
        # Times what a chip has of the queries; a row of scores alone is 73 times a row of these.
        assert temporaries < vectors * pairs // 64 * width * 4, options


@pytest.mark.slow
def test_a_step_of_262144_pairs_compiles_for_tpu_v5p_4x4x4(tmp_path):
    """Of a small model: what grows with the batch is all there, and so are the passes."""
    pytest.importorskip("libtpu")
    where = chips.parse("v5p:4x4x4")
    folder = write_qwen2_vl(tmp_path / "model")
    program = draw(stage2, "qwen2_vl_7b", folder, compiler.devices(where), V5P.items())
    compiled = compiler.compile_program(program, where, tmp_path / "cache")
    assert not compiled.too_large and compiled.peak < HBM
    assert "collective-permute" in compiled.text
