"""Features of a frozen tower, computed once a step: the same losses, weights and image tokens."""

import collections
import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_phi3_v import write_phi3_v
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.models.noise import drawn
from tests.models.oracle import EXACT, TEXT, VISION
from tests.tables import for_each
from tests.training.test_mesh_invariance import DORA, NONE, PAIRS, examples
from tests.training.tiny_batch import LOSS
from unime_jax import backbones, paths, sharding
from unime_jax.data.packing import pack, prepare
from unime_jax.data.shapes import Bucket, pair_shapes
from unime_jax.models import forward, frozen_vision
from unime_jax.planning import estimate
from unime_jax.planning.counting import hlo
from unime_jax.training import kept_features, loop, state, step
from unime_jax.training.settings import ExecutionConfig

FAMILIES = {
    "llava_onevision": lambda f: write_folder(f, vision=VISION, text=TEXT),
    "qwen2_vl": write_qwen2_vl,
    "phi3_v": write_phi3_v,
}
DECODER = dataclasses.replace(
    DORA, dora=False, targets=((r"language_model\..*_proj", True), (".*", False))
)
INFONCE = dataclasses.replace(
    LOSS, hard_negatives=None, false_negative_margin=None, hardness=0.0, symmetric=False
)
ADAPTERS = ((r".*\.lora_.*", True), (".*", False))
PROJECTOR = ((r"(vision_tower|visual\.(blocks|patch_embed))\..*", False), (".*", True))
STEPS, RATE = 2, 3e-4
# Texts have a bucket without tiles; in both there are chunks without rows.
BUCKETS = (Bucket(32, 0), Bucket(136, 5))
KEPT = ExecutionConfig("float32", "float32", "none", "xla", recompute=True, keep_features=None)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A family's backbone by name, opened once."""
    made = {}

    def get(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family) / "folder"
            folder.mkdir()
            FAMILIES[family](folder)
            made[family] = backbones.open_backbone(str(folder), max_length=256)
        return made[family]

    return get


def modelled(backbone, mesh, adapters, trainable, frozen="float32"):
    return state.abstract_model(
        backbone, mesh, adapters=adapters, trainable=trainable, frozen_dtype=jnp.dtype(frozen)
    )


def batch_of(backbone, mesh):
    """Shapes, and a batch of texts and images."""
    shapes = shapes_of(backbone)
    rows = [prepare(example, backbone.preprocess, shapes) for example in examples()]
    return loop.to_device(pack(rows, shapes, ["pictures"])[0], mesh)


def shapes_of(backbone, buckets=BUCKETS):
    return pair_shapes(buckets, backbone.layout, batch_size=PAIRS, negatives=1, chunk_size=4)


def steps(model, parameters, batch, mesh, vision):
    """Losses of the steps, what they have trained, and their program."""
    optimizer = optax.sgd(RATE, momentum=0.9)
    now = state.make_state(model, parameters, optimizer, mesh)
    run = step.make_train_step(
        forward.make_encode(model.graph, EXACT),
        optimizer,
        optax.constant_schedule(RATE),
        INFONCE,
        recompute=True,
        vision=vision,
    )
    placed = jax.tree.map(lambda x: x.sharding, now), sharding.replicated(mesh)
    losses = []
    with jax.set_mesh(mesh):
        compiled = jax.jit(run, out_shardings=placed).lower(now, batch).compile()
        for _ in range(STEPS):
            now, metrics = compiled(now, batch)
            losses.append(float(metrics["loss"]))
    return losses, jax.device_get(now.trainable), compiled.as_text()


def collectives(text):
    """How often each collective is in a program, by its result."""
    kinds = "|".join(hlo.COLLECTIVES)
    return collections.Counter(re.findall(rf" = (\S+) ({kinds})(?:-start)?\(", text))


def equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_steps_are_bitwise_those_that_compute_features_twice(opened):
    """LoRA on an int8 decoder, on a mesh; with texts, and chunks without rows."""
    backbone, mesh = opened("llava_onevision"), sharding.make_mesh(2, 2, 1, jax.devices()[:4])
    model, batch = modelled(backbone, mesh, DECODER, ADAPTERS, "int8"), batch_of(backbone, mesh)
    parameters = drawn(model.parameters)
    assert [group.patches is None for group in batch.groups] == [True, False]
    assert not any(group.live[-1].any() for group in batch.groups)

    vision = kept_features.choose(KEPT, model, EXACT, shapes_of(backbone), mesh)
    assert vision is not None
    losses, trained, twice = steps(model, parameters, batch, mesh, None)
    ours, found, once = steps(model, parameters, batch, mesh, vision)
    assert ours == losses and len(set(losses)) == STEPS
    equal(found, trained)
    # Rows stay where they are: nothing travels that did not, and the tower's weights do once.
    assert collectives(once) < collectives(twice)
    # The planner knows how often each loop runs.
    program = types.SimpleNamespace(groups=batch.groups, kept=(0, 0), merged=1)
    assert estimate.traffic(program, (1, 1), once).unknown_loops == 0
    # Features are made of chunks that are kept as well, so that loop runs though no other does.
    program = types.SimpleNamespace(groups=batch.groups, kept=(9, 9), merged=1)
    assert estimate.traffic(program, (1, 2), once).hbm > estimate.traffic(program, (1, 1), once).hbm


# Stages are all families' own tower and projector, one after the other, which models/ compares.
@for_each("family", FAMILIES, quick=["qwen2_vl"])
def test_a_family_reads_its_features_in_the_place_of_patches(opened, family):
    """Both stages, chunk by chunk, give the image tokens that patches give."""
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    backbone = opened(family)
    model, group = modelled(backbone, mesh, NONE, PROJECTOR), batch_of(backbone, mesh).groups[1]

    @jax.jit
    def tables(parameters, group):
        own, kept = paths.merge(model.graph, parameters), []
        for stage in range(2):
            compute = frozen_vision.FrozenVision(model.graph, EXACT, stage)
            kept.append(frozen_vision.with_features(compute, {}, parameters, group))
            assert kept[-1].patches is None and kept[-1].patch_position is None
        tower, tokens = (forward.chunk_at(inputs, 1).vision for inputs in kept)
        second = forward.chunk_at(group, 1)
        expected = own.vision_features(second.patches, second.patch_position, EXACT)
        return own.project(tower, EXACT), tokens, expected, kept[1].vision

    projected, tokens, expected, all_chunks = tables(drawn(model.parameters), group)
    equal(projected, expected)
    equal(tokens, expected)
    assert np.any(expected.table)
    assert not np.any(all_chunks.table[-1])  # there are no rows


def test_what_is_kept(opened, monkeypatch, caplog):
    """Of the stages that nothing trained is read by, the one with the smaller features."""
    mesh = sharding.make_mesh(1, 4, 1, jax.devices()[:4])

    def stage(family, adapters, trainable, buckets=BUCKETS, **changes):
        backbone = opened(family)
        model = modelled(backbone, mesh, adapters, trainable)
        settings = dataclasses.replace(KEPT, **changes)
        kept = kept_features.choose(settings, model, EXACT, shapes_of(backbone, buckets), mesh)
        return None if kept is None else kept.stage

    adapters, projector = (DECODER, ADAPTERS), (NONE, PROJECTOR)
    assert stage("llava_onevision", *adapters) == 0  # 32 numbers of a patch, 48 of a token
    assert stage("qwen2_vl", *adapters) == 1  # four patches are one token
    assert stage("qwen2_vl", *projector) == 0
    assert stage("llava_onevision", *projector) == 0
    assert stage("llava_onevision", DORA, ADAPTERS) is None  # the tower has adapters
    assert stage("llava_onevision", NONE, ((".*", True),)) is None
    with pytest.raises(
        ValueError, match=r"keep_features=True: .* for example vision_tower\..*lora"
    ):
        stage("llava_onevision", DORA, ADAPTERS, keep_features=True)
    assert stage("llava_onevision", *adapters, recompute=False) is None
    assert stage("llava_onevision", *adapters, keep_features=False) is None
    assert stage("llava_onevision", *adapters, BUCKETS[:1], keep_features=True) is None

    # Six chunks of four rows over four devices; five tiles of 16 patches of 32 numbers a row.
    size = 6 * 5 * 16 * 32 * 4
    monkeypatch.setattr(kept_features, "LIMIT", size)
    assert stage("llava_onevision", *adapters) == 0
    monkeypatch.setattr(kept_features, "LIMIT", size - 1)
    with caplog.at_level("INFO"):
        assert stage("llava_onevision", *adapters) is None
    assert "keep_features=True" in caplog.text
    assert stage("llava_onevision", *adapters, keep_features=True) == 0
