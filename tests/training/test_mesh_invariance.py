"""Some steps on every mesh of 1, 2, 4 and 8 devices: the same losses and parameters."""

import dataclasses
import itertools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_phi3_v import write_phi3_v
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.models.noise import drawn
from tests.models.oracle import EXACT, TEXT, VISION, picture
from tests.planning.collectives import GATHER, read_collectives
from unime_jax import backbones, sharding
from unime_jax.batch import Example, Item, Media
from unime_jax.data.packing import pack, prepare
from unime_jax.data.shapes import Bucket, pair_shapes
from unime_jax.models import forward, lora
from unime_jax.training import loop, objectives, state, step

FAMILIES = {
    "llava_onevision": lambda f: write_folder(f, vision=VISION, text=TEXT),
    "llava_next": lambda f: write_llava_next(f, decoder="mistral"),
    "qwen2_vl": write_qwen2_vl,
    "phi3_v": write_phi3_v,
}
PAIRS, RATE = 8, 3e-4  # a faster fall makes more of what rounds otherwise
DORA = lora.LoraConfig(
    rank=4,
    alpha=8.0,
    dora=True,
    targets=((r".*(language_model|vision_tower|visual)\..*(_proj|qkv)", True), (".*", False)),
)
NONE = lora.LoraConfig(rank=0, alpha=1.0, dora=False, targets=())
LOSS = objectives.Contrastive(
    objective="contrastive",
    temperature=0.05,
    hard_negatives=4,
    false_negative_margin=0.2,
    hardness=2.0,
    symmetric=True,
    column_block=None,
    mask_same_target=True,
)
# Choices and weights of negatives on a mesh are test_step.py's.
PLAIN = dataclasses.replace(
    LOSS, hard_negatives=None, false_negative_margin=None, hardness=0.0, symmetric=False
)
MESHES = [
    shape for shape in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(shape) in (2, 4, 8)
]


def folder_of(family, path):
    path.mkdir(parents=True, exist_ok=True)
    FAMILIES[family](path)
    return path


def examples(pairs=range(PAIRS)):
    """Pairs of texts, images and both; two queries have one target."""
    found = []
    for i in pairs:
        image = picture(28 + 9 * i, 70 - 5 * i, i)
        query = Item(f"<|image_1|>\nWhat is shown, number {i}?", (Media(f"{i}.png", image),))
        target = (
            Item(f"the answer is {i // 2}")
            if i < 4
            else Item("<|image_1|>", (Media(f"{i}.png", image),))
        )
        negative = Item(f"not {i} but {i * i}")
        found.append(Example("pictures", str(i), query, target, (negative,)))
    return found


def shaken(path, value):
    """With noise: biases that are zero would have values of the size of the steps' rounding."""
    noise = np.random.default_rng(zlib.crc32(path.encode())).normal(size=value.shape) * 0.05
    return jax.device_put(np.asarray(value) + noise.astype(np.float32), value.sharding)


def make_step(
    backbone,
    shape,
    *,
    adapters,
    trainable,
    loss,
    draws,
    pairs=range(PAIRS),
    tiles=5,
    chunk_size=8,
):
    """A mesh, the step on it, its state before the first, and a batch.

    Parameters are drawn on the mesh, or noise of the host.
    """
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    abstract_model = state.abstract_model(
        backbone, mesh, adapters=adapters, trainable=trainable, frozen_dtype=jnp.dtype("float32")
    )
    if draws:
        parameters = state.make_parameters(
            backbone, abstract_model, adapters=adapters, init="random", seed=0
        )
        parameters = {path: shaken(path, value) for path, value in parameters.items()}
    else:
        parameters = drawn(abstract_model.parameters)
    longest = 256
    for _ in range(2):  # the second time without padding that all rows have
        shapes = pair_shapes(
            [Bucket(longest, tiles)],
            backbone.layout,
            batch_size=len(pairs),
            negatives=1,
            chunk_size=chunk_size,
        )
        rows = [prepare(example, backbone.preprocess, shapes) for example in examples(pairs)]
        longest = max(len(row.tokens) for example in rows for row in example.rows)
    batch = loop.to_device(pack(rows, shapes, ["pictures"])[0], mesh)
    # Momentum, not Adam: where a gradient is zero but for rounding, Adam makes that a whole step.
    optimizer = optax.sgd(RATE, momentum=0.9)
    now = state.make_state(abstract_model, parameters, optimizer, mesh)
    train_step = jax.jit(
        step.make_train_step(
            forward.make_encode(abstract_model.graph, EXACT),
            optimizer,
            optax.constant_schedule(RATE),
            loss,
            recompute=True,
        ),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, now), sharding.replicated(mesh)),
    )
    return mesh, train_step, now, batch


def run(backbone, shape, *, steps, **settings):
    """Losses of the steps, all parameters before them, and what was trained, on the host.

    And the compiled step.
    """
    mesh, train_step, now, batch = make_step(backbone, shape, **settings)
    losses = []
    with jax.set_mesh(mesh):
        before = jax.device_get(now.trainable | now.frozen)
        program = train_step.lower(now, batch).compile()
        for _ in range(steps):
            now, metrics = program(now, batch)
            losses.append(float(metrics["loss"]))
    return losses, before, jax.device_get(now.trainable), program


SETTINGS = {
    "all": dict(adapters=NONE, trainable=((".*", True),), loss=LOSS),
    "dora": dict(adapters=DORA, trainable=((r".*\.lora_.*", True), (".*", False)), loss=LOSS),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A family's backbone, and its run on one device; made once."""
    made = {}

    def get(family, settings, **options):
        if (family, settings) not in made:
            folder = folder_of(family, tmp_path_factory.mktemp(family) / "folder")
            backbone = backbones.open_backbone(str(folder), max_length=256)
            made[family, settings] = (
                backbone,
                run(backbone, (1, 1, 1), **options, **SETTINGS[settings]),
            )
        return made[family, settings]

    return get


def assert_same(run_alone, run_on_mesh):
    losses, before, trained, _ = run_alone
    found, _, ours, _ = run_on_mesh
    assert losses[-1] < losses[0] - 1e-3
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    moved = 0
    for path, theirs in trained.items():
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours[path], theirs, atol=1e-5 * scale, rtol=1e-5, err_msg=path)
        moved += np.abs(theirs - before[path]).max() > 1e-4 * scale
    assert moved > len(trained) / 2


# Both in one compilation: adapters beside everything that they adapt, but a frozen tower. Some
# kernels have them that are cut by columns, and some by rows. On one device the loss is dense.
WIDTH, LAYERS, RANK = 40, 5, 3  # no other size here is one of these
BOTH = dict(
    adapters=dataclasses.replace(
        DORA, rank=RANK, targets=((r".*\.(q|out|down)_proj", True), (".*", False))
    ),
    trainable=((r"vision_tower\..*(bias|kernel)", False), (".*", True)),
    pairs=range(2, 6),
    tiles=2,  # of a canvas of one, and of the whole
    chunk_size=4,
    draws=False,
    steps=2,
)


def test_a_mesh_of_three_axes(tmp_path):
    """What is drawn on any mesh is the same by test_state.py.

    Parameters are gathered a layer at a time. Embeddings are gathered nowhere: a loss in tiles
    sends them round a ring.
    """
    sizes = dict(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS)
    sizes["num_attention_heads"] = 4
    write_folder(tmp_path, grid=1, vision=sizes, text=sizes | dict(num_key_value_heads=2))
    backbone = backbones.open_backbone(str(tmp_path), max_length=256)
    found = run(backbone, (2, 2, 2), **BOTH, loss=dataclasses.replace(PLAIN, column_block=8))
    assert_same(run(backbone, (1, 1, 1), **BOTH, loss=PLAIN), found)

    all_kinds = read_collectives(found[-1].as_text())
    gathered = [(shape, depth) for kind, shape, depth in all_kinds if kind == GATHER]
    assert not [shape for shape, _ in gathered if len(shape) == 3 and shape[0] == LAYERS]
    layers = [math.prod(shape) for shape, depth in gathered if depth > 1]
    assert max(layers) == WIDTH * 2 * WIDTH // 2
    pairs, chunk, rows = 4, 4, 12
    embeddings = {(rows, WIDTH), (pairs, WIDTH), (rows // chunk, chunk, WIDTH), (pairs, rows)}
    kinds = (GATHER, "all-to-all", "all-reduce")
    assert not embeddings & {shape for kind, shape, _ in all_kinds if kind in kinds}
    assert "collective-permute" in {kind for kind, *_ in all_kinds}


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("settings", ["all", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_on_every_mesh(alone, family, settings, shape):
    options = dict(draws=True, steps=5)
    backbone, run_alone = alone(family, settings, **options)
    assert_same(run_alone, run(backbone, shape, **options, **SETTINGS[settings]))
