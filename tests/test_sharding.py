"""Meshes, the sharding of every parameter, and a sharded model that computes the same."""

import dataclasses
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.backbones.tiny_families import DECODER
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.backbones.tiny_qwen3 import write_qwen3_vl_published
from tests.models.oracle import EXACT, make_pair, packed, pair_of, picture
from tests.tables import for_each
from tests.test_aot import TEXT as TEXT_7B
from tests.test_aot import VISION as VISION_7B
from unime_jax import paths, sharding
from unime_jax.backbones import open_backbone
from unime_jax.backbones.qwen2_vl import qwen2_vl
from unime_jax.batch import Item, Media
from unime_jax.models import lora

MESHES = [(1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2)]


def make_mesh(*shape):
    return sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])


@for_each(
    ("asked", "made"),
    [
        ((8, 1, 1), (8, 1, 1)),
        ((2, 2, 2), (2, 2, 2)),
        ((-1, 1, 1), (8, 1, 1)),
        ((-1, 2, 2), (2, 2, 2)),
        ((1, -1, 1), (1, 8, 1)),
        ((1, 2, -1), (1, 2, 4)),
        ((8, 1, -1), (8, 1, 1)),
    ],
)
def test_mesh_sizes(asked, made):
    mesh = sharding.make_mesh(*asked)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), made))
    assert sharding.row_shards(mesh) == made[0] * made[1]
    assert mesh.devices.size == 8


@for_each(
    "asked", [(4, 1, 1), (3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 8, 1), (-1, 0, 1), (-2, -4, 1)]
)
def test_impossible_meshes_are_explained(asked):
    with pytest.raises(ValueError) as error:
        sharding.make_mesh(*asked)
    data, fsdp, tensor = asked
    text = str(error.value)
    assert f"mesh.data={data} x mesh.fsdp={fsdp} x mesh.tensor={tensor}" in text
    assert "8 device(s)" in text


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of one of several slices, as far as a mesh looks at it."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "chip"


def test_slices_share_out_the_data_axis_only():
    chips = [Chip(i, i // 8) for i in range(16)]
    for shape in ((2, 8, 1), (4, 2, 2), (-1, 4, 1)):
        mesh = sharding.make_mesh(*shape, devices=chips[::-1])
        slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
        half = len(slices) // 2
        assert (slices[:half] == 0).all() and (slices[half:] == 1).all()
    with pytest.raises(ValueError, match="mesh.data=1 cannot be shared out over 2 slices"):
        sharding.make_mesh(1, 16, 1, devices=chips)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:4x4", "v5p:2x2x4"])
@pytest.mark.parametrize("slices", [1, 2])
def test_meshes_of_tpu_slices(name, slices):
    """Every split of 16 chips, of parts of a torus axis, too."""
    pytest.importorskip("libtpu")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    from jax.experimental import topologies

    several = {"num_slices": slices} if slices > 1 else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **several).devices
    for data, fsdp in itertools.product((1, 2, 4, 8, 16), repeat=2):
        if data * fsdp > 16:
            continue
        mesh = sharding.make_mesh(data * slices, fsdp, -1, devices)
        assert mesh.devices.shape == (data * slices, fsdp, 16 // (data * fsdp))


# LLaVA-OneVision-7B. Kernels are [layers, in, out]: what a block computes first is cut by output,
# what it computes last by input ("tensor"); the other side is cut by "fsdp".
FIRST, LAST, WHOLE = P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp"), P()
TEXT = {
    "embed_tokens.embedding": ((152128, 3584), P("tensor", "fsdp")),
    "layers.input_layernorm.weight": ((28, 3584), WHOLE),
    "layers.self_attn.q_proj.kernel": ((28, 3584, 3584), FIRST),
    "layers.self_attn.q_proj.bias": ((28, 3584), WHOLE),
    "layers.self_attn.k_proj.kernel": ((28, 3584, 512), FIRST),
    "layers.self_attn.k_proj.bias": ((28, 512), WHOLE),
    "layers.self_attn.v_proj.kernel": ((28, 3584, 512), FIRST),
    "layers.self_attn.v_proj.bias": ((28, 512), WHOLE),
    "layers.self_attn.o_proj.kernel": ((28, 3584, 3584), LAST),
    "layers.post_attention_layernorm.weight": ((28, 3584), WHOLE),
    "layers.mlp.gate_proj.kernel": ((28, 3584, 18944), FIRST),
    "layers.mlp.up_proj.kernel": ((28, 3584, 18944), FIRST),
    "layers.mlp.down_proj.kernel": ((28, 18944, 3584), LAST),
    "norm.weight": ((3584,), WHOLE),
}
TOWER = {
    "embeddings.patch_embedding.kernel": ((588, 1152), P(None, "fsdp")),
    "embeddings.patch_embedding.bias": ((1152,), WHOLE),
    "embeddings.position_embedding.embedding": ((729, 1152), WHOLE),
    "encoder.layers.layer_norm1.weight": ((26, 1152), WHOLE),
    "encoder.layers.layer_norm1.bias": ((26, 1152), WHOLE),
    "encoder.layers.self_attn.q_proj.kernel": ((26, 1152, 1152), FIRST),
    "encoder.layers.self_attn.q_proj.bias": ((26, 1152), WHOLE),
    "encoder.layers.self_attn.k_proj.kernel": ((26, 1152, 1152), FIRST),
    "encoder.layers.self_attn.k_proj.bias": ((26, 1152), WHOLE),
    "encoder.layers.self_attn.v_proj.kernel": ((26, 1152, 1152), FIRST),
    "encoder.layers.self_attn.v_proj.bias": ((26, 1152), WHOLE),
    "encoder.layers.self_attn.out_proj.kernel": ((26, 1152, 1152), LAST),
    "encoder.layers.self_attn.out_proj.bias": ((26, 1152), WHOLE),
    "encoder.layers.layer_norm2.weight": ((26, 1152), WHOLE),
    "encoder.layers.layer_norm2.bias": ((26, 1152), WHOLE),
    "encoder.layers.mlp.fc1.kernel": ((26, 1152, 4304), FIRST),
    "encoder.layers.mlp.fc1.bias": ((26, 4304), WHOLE),
    "encoder.layers.mlp.fc2.kernel": ((26, 4304, 1152), LAST),
    "encoder.layers.mlp.fc2.bias": ((26, 1152), WHOLE),
    "post_layernorm.weight": ((1152,), WHOLE),
    "post_layernorm.bias": ((1152,), WHOLE),
}
PROJECTOR = {
    "linear_1.kernel": ((1152, 3584), P("fsdp", "tensor")),
    "linear_1.bias": ((3584,), WHOLE),
    "linear_2.kernel": ((3584, 3584), P("tensor", "fsdp")),
    "linear_2.bias": ((3584,), WHOLE),
}
MODEL_7B = (
    {f"language_model.{path}": entry for path, entry in TEXT.items()}
    | {f"vision_tower.{path}": entry for path, entry in TOWER.items()}
    | {f"multi_modal_projector.{path}": entry for path, entry in PROJECTOR.items()}
    | {"image_newline": ((3584,), WHOLE)}
)
ADAPTERS_7B = {  # of rank 16 on two layers, cut where the kernel's own side is
    "self_attn.q_proj.lora_a": ((28, 3584, 16), P(None, "fsdp", None)),
    "self_attn.q_proj.lora_b": ((28, 16, 3584), P(None, None, "tensor")),
    "self_attn.q_proj.lora_magnitude": ((28, 3584), WHOLE),
    "mlp.down_proj.lora_a": ((28, 18944, 16), P(None, "tensor", None)),
    "mlp.down_proj.lora_b": ((28, 16, 3584), P(None, None, "fsdp")),
    "mlp.down_proj.lora_magnitude": ((28, 3584), WHOLE),
}


@pytest.fixture(scope="module")
def shapes_7b(tmp_path_factory):
    """Shapes of LLaVA-OneVision-7B with DoRA on two kinds of layers; nothing is computed."""
    folder = write_folder(
        tmp_path_factory.mktemp("7b"), tile=384, patch=14, grid=6, vision=VISION_7B, text=TEXT_7B
    )
    backbone = open_backbone(str(folder), max_length=1024)
    targets = ((r"language_model.*(q_proj|down_proj)", True), (".*", False))

    def make():
        model = backbone.make_model(jax.random.key(0))
        adapters = lora.LoraConfig(rank=16, alpha=32.0, dora=True, targets=targets)
        lora.add(model, adapters, key=jax.random.key(1))
        return model

    _, parameters = paths.split(jax.eval_shape(make))
    return {path: leaf.shape for path, leaf in parameters.items()}


@for_each("mesh", [(2, 4, 1), (2, 2, 2)])
def test_every_parameter_of_the_7b_model(shapes_7b, mesh):
    adapters = {f"language_model.layers.{path}": entry for path, entry in ADAPTERS_7B.items()}
    found = sharding.parameter_shardings(make_mesh(*mesh), shapes_7b)
    assert {p: (shapes_7b[p], found[p].spec) for p in found} == MODEL_7B | adapters


# Qwen2-VL-7B's tower. The fused matrix is not cut by output: heads, queries and keys would part.
QWEN_TOWER = {
    "patch_embed.proj.kernel": ((1176, 1280), P(None, "fsdp")),
    "blocks.norm1.weight": ((32, 1280), WHOLE),
    "blocks.norm1.bias": ((32, 1280), WHOLE),
    "blocks.attn.qkv.kernel": ((32, 1280, 3840), P(None, "fsdp", None)),
    "blocks.attn.qkv.bias": ((32, 3840), WHOLE),
    "blocks.attn.qkv.lora_a": ((32, 1280, 16), P(None, "fsdp", None)),
    "blocks.attn.qkv.lora_b": ((32, 16, 3840), WHOLE),
    "blocks.attn.proj.kernel": ((32, 1280, 1280), LAST),
    "blocks.attn.proj.bias": ((32, 1280), WHOLE),
    "blocks.attn.proj.lora_a": ((32, 1280, 16), P(None, "tensor", None)),
    "blocks.attn.proj.lora_b": ((32, 16, 1280), P(None, None, "fsdp")),
    "blocks.norm2.weight": ((32, 1280), WHOLE),
    "blocks.norm2.bias": ((32, 1280), WHOLE),
    "blocks.mlp.fc1.kernel": ((32, 1280, 5120), FIRST),
    "blocks.mlp.fc1.bias": ((32, 5120), WHOLE),
    "blocks.mlp.fc2.kernel": ((32, 5120, 1280), LAST),
    "blocks.mlp.fc2.bias": ((32, 1280), WHOLE),
    "merger.ln_q.weight": ((1280,), WHOLE),
    "merger.ln_q.bias": ((1280,), WHOLE),
    "merger.linear_1.kernel": ((5120, 5120), P("fsdp", "tensor")),
    "merger.linear_1.bias": ((5120,), WHOLE),
    "merger.linear_2.kernel": ((5120, 3584), P("tensor", "fsdp")),
    "merger.linear_2.bias": ((3584,), WHOLE),
}


@for_each("mesh", [(2, 4, 1), (2, 2, 2)])
def test_every_parameter_of_the_qwens_towers(tmp_path, mesh):
    """Its decoder's parameters are named as the other families'."""
    folder = write_qwen2_vl(
        tmp_path,
        patch=14,
        mrope_section=(16, 24, 24),
        vision=dict(embed_dim=1280, depth=32, num_heads=16, mlp_ratio=4),
        text={key: TEXT_7B[key] for key in DECODER},
    )
    backbone = open_backbone(str(folder), max_length=1024)

    def make():
        model = backbone.make_model(jax.random.key(0))
        targets = ((r"visual\.blocks\.attn\..*", True), (".*", False))
        adapters = lora.LoraConfig(rank=16, alpha=32.0, dora=False, targets=targets)
        lora.add(model, adapters, key=jax.random.key(1))
        return model

    _, parameters = paths.split(jax.eval_shape(make))
    shapes = {path: leaf.shape for path, leaf in parameters.items()}
    found = sharding.parameter_shardings(make_mesh(*mesh), shapes)
    expected = {f"visual.{path}": entry for path, entry in QWEN_TOWER.items()}
    expected |= {p: entry for p, entry in MODEL_7B.items() if p.startswith("language_model.")}
    assert {p: (shapes[p], found[p].spec) for p in found} == expected
    check_qwen3_vl(tmp_path, make_mesh(*mesh))


# Those that Qwen3-VL-2B has beside the names above: its other mergers are a stack.
QWEN3_VL_2B = {
    "visual.patch_embed.proj.bias": ((1024,), WHOLE),
    "visual.pos_embed.embedding": ((2304, 1024), WHOLE),
    "visual.blocks.mlp.linear_fc1.kernel": ((24, 1024, 4096), FIRST),
    "visual.blocks.mlp.linear_fc1.bias": ((24, 4096), WHOLE),
    "visual.blocks.mlp.linear_fc2.kernel": ((24, 4096, 1024), LAST),
    "visual.blocks.mlp.linear_fc2.bias": ((24, 1024), WHOLE),
    "visual.merger.norm.weight": ((1024,), WHOLE),
    "visual.merger.norm.bias": ((1024,), WHOLE),
    "visual.merger.linear_fc1.kernel": ((4096, 4096), P("fsdp", "tensor")),
    "visual.merger.linear_fc1.lora_a": ((4096, 16), WHOLE),
    "visual.merger.linear_fc1.lora_b": ((16, 4096), WHOLE),
    "visual.merger.linear_fc1.bias": ((4096,), WHOLE),
    "visual.merger.linear_fc2.kernel": ((4096, 2048), P("tensor", "fsdp")),
    "visual.merger.linear_fc2.bias": ((2048,), WHOLE),
    "visual.deepstack_merger_list.norm.weight": ((3, 4096), WHOLE),
    "visual.deepstack_merger_list.norm.bias": ((3, 4096), WHOLE),
    "visual.deepstack_merger_list.linear_fc1.kernel": ((3, 4096, 4096), FIRST),
    "visual.deepstack_merger_list.linear_fc1.lora_a": ((3, 4096, 16), P(None, "fsdp", None)),
    "visual.deepstack_merger_list.linear_fc1.lora_b": ((3, 16, 4096), P(None, None, "tensor")),
    "visual.deepstack_merger_list.linear_fc1.bias": ((3, 4096), WHOLE),
    "visual.deepstack_merger_list.linear_fc2.kernel": ((3, 4096, 2048), LAST),
    "visual.deepstack_merger_list.linear_fc2.bias": ((3, 2048), WHOLE),
    "language_model.layers.self_attn.q_norm.weight": ((28, 128), WHOLE),
    "language_model.layers.self_attn.k_norm.weight": ((28, 128), WHOLE),
}


def check_qwen3_vl(folder, mesh):
    """Of both published sizes the number of parameters, and of one the rules of all new names."""
    counts = {"2b": 2_127_532_032, "8b": 8_144_793_840}
    for size, count in counts.items():
        backbone = open_backbone(
            str(write_qwen3_vl_published(folder / size, size)), max_length=1024
        )
        model = jax.eval_shape(backbone.make_model, jax.random.key(0))
        assert sum(leaf.size for leaf in paths.split(model)[1].values()) == count

    def make():
        model = open_backbone(str(folder / "2b"), max_length=1024).make_model(jax.random.key(0))
        targets = ((r".*merger.*linear_fc1", True), (".*", False))
        adapters = lora.LoraConfig(rank=16, alpha=32.0, dora=False, targets=targets)
        lora.add(model, adapters, key=jax.random.key(1))
        return model

    _, parameters = paths.split(jax.eval_shape(make))
    shapes = {path: leaf.shape for path, leaf in parameters.items()}
    found = sharding.parameter_shardings(mesh, shapes)
    known = {f"visual.{path}" for path in QWEN_TOWER} | MODEL_7B.keys()
    new = {p: (shapes[p], found[p].spec) for p in found if p not in known}
    assert new == {p: x for p, x in QWEN3_VL_2B.items() if p not in known}
    assert QWEN3_VL_2B.keys() <= found.keys()


def test_a_device_holds_its_share_of_the_7b_model(shapes_7b):
    """On 8 devices that do not replicate, an eighth, but for norms and biases."""
    placed = sharding.parameter_shardings(make_mesh(1, 4, 2), shapes_7b)
    mine = sum(np.prod(placed[p].shard_shape(shape)) for p, shape in shapes_7b.items())
    total = sum(np.prod(shape) for shape in shapes_7b.values())
    assert 7.9e9 > total > 7.4e9
    assert mine < total / 8 * 1.01

    # Axes that do not divide stay whole and too many are an error
    # Axes that do not divide stay whole.
    mesh = make_mesh(2, 2, 2)
    for shape, expected in [
        ((3, 6, 4), P(None, "fsdp", "tensor")),
        ((3, 6, 5), P(None, "fsdp", None)),
        ((3, 7, 4), P(None, None, "tensor")),
        ((3, 7, 5), P(None, None, None)),
    ]:
        assert sharding.fit(FIRST, shape, mesh) == expected
    assert sharding.fit(P(), (3,), mesh) == P()

    # A rule with more axes than the array is an error.
    with pytest.raises(ValueError, match=r"names 3 axes, but the array has shape \(4, 4\)"):
        sharding.parameter_shardings(make_mesh(2, 2, 2), {"a": (4, 4)}, [(".*", FIRST)])
    with pytest.raises(ValueError, match="sharding rules"):
        sharding.parameter_shardings(make_mesh(2, 2, 2), {"a": (4, 4)}, [("b", P())])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model, a chunk of eight texts, images and mixed items, and their embeddings."""
    pair = make_pair(tmp_path_factory.mktemp("sharding") / "folder", grid=2)
    items = [Item("a red circle left of a blue square"), Item("What is in the picture?")]
    for i, (width, height) in enumerate(
        [(28, 28), (56, 28), (30, 90), (64, 64), (41, 43), (9, 70)]
    ):
        text = "<|image_1|>\nRepresent the given image." if i % 2 else "<|image_1|>\n"
        items.append(Item(text, (Media(f"{i}.png", picture(width, height, i)),)))
    inputs, _ = packed(pair, items, 150, 5)
    graph, _ = paths.split(pair.model)
    expected = jax.jit(lambda p, i: paths.merge(graph, p)(i, EXACT))(pair.parameters, inputs)
    return graph, pair.parameters, inputs, np.asarray(expected)


@for_each("shape", MESHES[1:])  # embedders are compared with transformers on the first
def test_a_sharded_model_computes_the_same(model, shape):
    graph, parameters, inputs, expected = model
    mesh = make_mesh(*shape)
    placed = sharding.parameter_shardings(mesh, {p: x.shape for p, x in parameters.items()})
    sharded = {path: jax.device_put(np.asarray(x), placed[path]) for path, x in parameters.items()}
    kernel = sharded["language_model.layers.self_attn.q_proj.kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (3, 48 // shape[1], 48 // shape[2])
    rows = jax.sharding.NamedSharding(mesh, P(sharding.ROWS))
    spread = jax.tree.map(lambda x: jax.device_put(np.asarray(x), rows), inputs)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda p, i: paths.merge(graph, p)(i, EXACT))(sharded, spread)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.fixture(scope="module")
def qwen2_vl_model(tmp_path_factory):
    """As `model`, of Qwen2-VL with sizes that every mesh divides; an item has two images."""
    folder = tmp_path_factory.mktemp("sharding_qwen2_vl") / "folder"
    text = DECODER | dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    vision = dict(embed_dim=32, depth=2, num_heads=4, mlp_ratio=2)
    write_qwen2_vl(folder, mrope_section=(1, 1, 2), vision=vision, text=text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen2_vl, "TILE", 32)
        pair = pair_of(folder)
    items = [Item("a red circle left of a blue square"), Item("What is in the picture?")]
    for i, (width, height) in enumerate([(28, 28), (56, 28), (30, 90), (64, 64), (9, 70)]):
        items.append(Item("<|image_1|>\nwhat?", (Media(f"{i}.png", picture(width, height, i)),)))
    two = Media("5.png", picture(60, 30, 5)), Media("6.png", picture(41, 43, 6))
    items.append(Item("<|image_1|> and <|image_2|>", two))
    inputs, _ = packed(pair, items, 100, 5)
    graph, _ = paths.split(pair.model)
    expected = jax.jit(lambda p, i: paths.merge(graph, p)(i, EXACT))(pair.parameters, inputs)
    return graph, pair.parameters, inputs, np.asarray(expected)


@pytest.mark.slow
@for_each("shape", [(2, 2, 2)])
def test_a_sharded_qwen2_vl_computes_the_same(qwen2_vl_model, shape):
    graph, parameters, inputs, expected = qwen2_vl_model
    mesh = make_mesh(*shape)
    placed = sharding.parameter_shardings(mesh, {p: x.shape for p, x in parameters.items()})
    sharded = {path: jax.device_put(np.asarray(x), placed[path]) for path, x in parameters.items()}
    kernel = sharded["visual.blocks.attn.qkv.kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 32 // shape[1], 96)
    rows = jax.sharding.NamedSharding(mesh, P(sharding.ROWS))
    spread = jax.tree.map(lambda x: jax.device_put(np.asarray(x), rows), inputs)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda p, i: paths.merge(graph, p)(i, EXACT))(sharded, spread)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_to_global_and_replicated():
    mesh = make_mesh(2, 2, 2)
    chunks = np.arange(2 * 8 * 3).reshape(2, 8, 3)
    out = sharding.to_global(chunks, sharding.chunked_rows(mesh))
    np.testing.assert_array_equal(out, chunks)
    assert out.sharding.shard_shape(out.shape) == (2, 2, 3)  # every chunk over all row shards
    assert jax.device_put(jnp.ones(3), sharding.replicated(mesh)).is_fully_replicated
