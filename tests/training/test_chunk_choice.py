"""Chunk size, remat and kept chunks by memory: of a tiny model on eight devices of some size."""

import dataclasses
import types

import pytest

from experiments import own
from tests.backbones.tiny_folders import write_folder
from unime_jax import backbones, config, config_reader, sharding
from unime_jax.data.settings import Bucket
from unime_jax.training import activations, automatic, chunk_choice

TOKENS, SHARDS, MOST = 128, 8, 16  # MOST rows of TOKENS on a device, 2,048 tokens


@pytest.fixture(scope="module", autouse=True)
def counted_once():
    """What a row keeps does not depend on the memory: each program is traced once for all tests."""
    known, count = {}, activations.bytes_of_a_row

    def bytes_of_a_row(encode, trainable, frozen, bucket, layout):
        key = encode, frozenset(trainable), bucket
        if key not in known:
            known[key] = count(encode, trainable, frozen, bucket, layout)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "bytes_of_a_row", bytes_of_a_row)
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    values = own.get_config()
    changes = {"batch_size": 256, "lora.rank": 0, "trainable": ((".*", True),)}
    changes |= {"execution.dtype": "float32", "execution.frozen_dtype": "float32"}
    changes |= {"data.buckets": (Bucket(32, 0), Bucket(TOKENS, 0)), "execution.attention": "xla"}
    changes |= {"optimizer.learning_rate": 1e-3, "optimizer.warmup_steps": 1}
    values.update_from_flattened_dict(changes)
    settings = config_reader.read(config.TrainConfig, values.to_dict())
    folder = write_folder(tmp_path_factory.mktemp("model"))
    backbone = backbones.open_backbone(str(folder), max_length=TOKENS)
    return settings, backbone, sharding.make_mesh(1, -1, 1)


def test_what_fits_is_chosen_with_the_least_that_is_computed_again(given):
    settings, backbone, mesh = given
    memories = [2**19, *(int(2**22 * 1.2**n) for n in (0, 4, 6, 7)), 2**30]
    choices = [chunk_choice.choose(settings, backbone, mesh, m, MOST) for m in memories]
    remats = [choice.remat for choice in choices]
    assert remats[0] == "full" and remats[-1] == "none" and "dots" in remats
    for choice in choices:
        assert choice.chunk_size % SHARDS == 0 and choice.chunk_size <= MOST * SHARDS
        assert f"remat {choice.remat!r}" in choice.reason
        # Enough rows to be worth it, or there is no room for them
        rows = choice.chunk_size // SHARDS
        assert rows * TOKENS == chunk_choice.ENOUGH_TOKENS or choice.remat == "full"
    assert choices[0].chunk_size == SHARDS

    # Memory that is left keeps chunks of the largest bucket, all of them in the end
    assert choices[0].kept_chunks == () and choices[0].merged_chunks == 1
    rows = settings.batch_size * (2 + settings.data.negatives)
    chunks = rows * TOKENS // (chunk_choice.ENOUGH_TOKENS * SHARDS)
    assert choices[-1].kept_chunks == (0, chunks) and choices[-1].merged_chunks == 4

    # What is given stays
    execution = dataclasses.replace(settings.execution, remat="attention", kept_chunks=(1, 2))
    fixed = dataclasses.replace(settings, chunk_size=16, execution=execution)
    choice = chunk_choice.choose(fixed, backbone, mesh, memories[-1], MOST)
    assert choice.chunk_size == 16 and choice.remat == "attention" and choice.kept_chunks == (1, 2)
    execution = dataclasses.replace(settings.execution, kept_chunks=())
    nothing_kept = dataclasses.replace(settings, execution=execution)
    choice = chunk_choice.choose(nothing_kept, backbone, mesh, memories[-1], MOST)
    assert choice.chunk_size == MOST * SHARDS and choice.kept_chunks == ()


def test_features_of_a_frozen_tower_leave_less_room_for_chunks(given):
    settings, backbone, mesh = given
    data = dataclasses.replace(settings.data, buckets=(Bucket(32, 0), Bucket(TOKENS, 8)))
    kept = {}
    for keep in (True, False):
        execution = dataclasses.replace(settings.execution, remat="full", keep_features=keep)
        changed = dataclasses.replace(
            settings,
            data=data,
            execution=execution,
            trainable=((r"language_model\..*", True), (".*", False)),
        )
        choice = chunk_choice.choose(changed, backbone, mesh, int(1.3 * 2**24), MOST)
        kept[keep] = sum(choice.kept_chunks)
    assert 0 < kept[True] < kept[False], kept


def test_memory_that_is_not_known_gives_what_it_always_gave(given):
    settings, backbone, mesh = given
    assert chunk_choice.capacity(mesh) is None  # CPUs
    rows = automatic.chunk_rows(settings, backbone.layout.patches, SHARDS)
    values = automatic.by_devices(settings, backbone, mesh, None)
    assert values == {
        "chunk_size": rows,
        "execution.remat": "full",
        "execution.kept_chunks": (),
        "execution.merged_chunks": 1,
    }

    device = types.SimpleNamespace(
        platform="gpu", process_index=0, memory_stats=lambda: {"bytes_limit": 2**32}
    )
    grid = types.SimpleNamespace(devices=types.SimpleNamespace(flat=[device]))
    assert chunk_choice.capacity(grid) == 2**32
    filled = automatic.with_memory(settings, backbone, mesh, 2**32)
    assert filled.execution.remat == "none" and filled.chunk_size
    assert not set(automatic.left_open(filled)) & set(automatic.OF_DEVICES)
    assert automatic.with_memory(filled, backbone, mesh, 1) is filled
