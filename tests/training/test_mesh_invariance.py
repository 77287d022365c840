"""Some steps on every mesh of 1, 2, 4 and 8 devices: the same losses and parameters."""

import dataclasses
import itertools
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


def make_step(backbone, shape, *, adapters, trainable, loss, draws, pairs=range(PAIRS)):
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
            [Bucket(longest, 5)],
            backbone.layout,
            batch_size=len(pairs),
            negatives=1,
            chunk_size=8,
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
    """Losses of the steps, all parameters before them, and what was trained, on the host."""
    mesh, train_step, now, batch = make_step(backbone, shape, **settings)
    losses = []
    with jax.set_mesh(mesh):
        before = jax.device_get(now.trainable | now.frozen)
        for _ in range(steps):
            now, metrics = train_step(now, batch)
            losses.append(float(metrics["loss"]))
    return losses, before, jax.device_get(now.trainable)


SETTINGS = {
    "all": dict(adapters=NONE, trainable=((".*", True),), loss=LOSS),
    "dora": dict(adapters=DORA, trainable=((r".*\.lora_.*", True), (".*", False)), loss=LOSS),
    # Both in one compilation: adapters beside everything that they adapt, but a frozen tower. Some
    # kernels have them that are cut by columns, and some by rows.
    "both": dict(
        adapters=dataclasses.replace(
            DORA, targets=((r".*\.(q|out|down)_proj", True), (".*", False))
        ),
        trainable=((r"vision_tower\..*(bias|kernel)", False), (".*", True)),
        loss=PLAIN,
        pairs=range(2, 6),
    ),
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


def check(alone, family, settings, shape, **options):
    backbone, (losses, before, trained) = alone(family, settings, **options)
    found, _, ours = run(backbone, shape, **options, **SETTINGS[settings])
    assert losses[-1] < losses[0] - 1e-3
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    moved = 0
    for path, theirs in trained.items():
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours[path], theirs, atol=1e-5 * scale, rtol=1e-5, err_msg=path)
        moved += np.abs(theirs - before[path]).max() > 1e-4 * scale
    assert moved > len(trained) / 2


def test_a_mesh_of_three_axes(alone):
    """What is drawn on any mesh is the same by test_state.py."""
    check(alone, "llava_onevision", "both", (2, 2, 2), draws=False, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("settings", ["all", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_on_every_mesh(alone, family, settings, shape):
    check(alone, family, settings, shape, draws=True, steps=5)
