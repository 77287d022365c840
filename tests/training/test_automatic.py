"""Values that follow from the backbone: of every family, by shapes alone, and their record."""

import dataclasses
import json
import re

import pytest

from experiments import base, own
from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_llava_qwen import write_llava_qwen
from tests.backbones.tiny_phi3_v import write_phi3_v
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.backbones.tiny_texts import write_bert, write_nv_embed
from tests.tables import for_each
from tests.test_aot import SIZES
from unime_jax import config, config_reader, sharding
from unime_jax.batch import Item
from unime_jax.data.settings import Bucket
from unime_jax.training import automatic, measured_buckets
from unime_jax.training.setup import set_up


def settings_of(**changes) -> config.TrainConfig:
    values = own.get_config()
    values.update_from_flattened_dict(changes)
    return config_reader.read(config.TrainConfig, values.to_dict())


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, -1, 1)


def trace(folder, mesh, **changes):
    changes |= {"backbone": str(folder), "data.buckets": (Bucket(64, 0), Bucket(2048, 9))}
    return set_up(settings_of(**changes), mesh)


def check_adapters(made, layers):
    """Of rank 16 on so many linear layers, all those of the decoder or encoder and no others."""
    chosen = made.settings
    assert chosen.lora.rank == 16 and chosen.optimizer.learning_rate == 1e-4
    assert chosen.execution.dtype == chosen.execution.frozen_dtype == "bfloat16"
    assert chosen.export.dtype == "bfloat16"
    trained = made.abstract_model.trainable
    assert all(path.endswith((".lora_a", ".lora_b")) for path in trained)
    kernels = {p.removesuffix(".kernel") for p in made.abstract_model.parameters if "kernel" in p}
    decoder = {p for p in kernels if p.startswith(("language_model.", "embedding_model.", "enc"))}
    assert len(decoder) == layers
    assert {re.sub(r"\.lora_[ab]$", "", path) for path in trained} == decoder


def test_a_7b_has_adapters_on_its_decoder_alone(mesh, tmp_path):
    """No weights are there to be read."""
    check_adapters(trace(SIZES["llava_onevision_7b"][0](tmp_path), mesh), 7)


FAMILIES = [
    (write_folder, 7),
    (write_llava_next, 7),
    (write_llava_qwen, 7),
    (write_qwen2_vl, 7),
    (write_phi3_v, 7),
    (write_nv_embed, 7),
    (write_bert, 6),
]


@for_each("write, layers", FAMILIES)
def test_the_adapters_of_every_family(write, layers, mesh, tmp_path, monkeypatch):
    monkeypatch.setattr(automatic, "LARGE", 1000)  # as the smallest are in tests
    check_adapters(trace(write(tmp_path / "folder"), mesh), layers)


def test_a_small_model_is_trained_whole_and_what_is_given_stays(mesh, tmp_path):
    made = trace(write_bert(tmp_path), mesh)
    assert made.abstract_model.trainable == made.abstract_model.parameters.keys()
    assert made.settings.lora.rank == 0 and made.settings.execution.dtype == "float32"
    assert not automatic.left_open(made.settings)
    adapted = trace(tmp_path, mesh, **{"lora.rank": 4})
    assert adapted.settings.optimizer.learning_rate == 1e-4
    assert {path.rpartition(".")[2] for path in adapted.abstract_model.trainable} == {
        "lora_a",
        "lora_b",
    }
    assert all(path.startswith("encoder.layer.") for path in adapted.abstract_model.trainable)

    # What is given stays.
    (tmp_path := tmp_path / "given").mkdir()
    given = {
        "lora.rank": 2,
        "optimizer.learning_rate": 3e-3,
        "trainable": ((r".*lora_b", True), (".*", False)),
        "execution.frozen_dtype": "bfloat16",
        "export.dtype": "bfloat16",
    }
    chosen = trace(write_bert(tmp_path), mesh, **given).settings
    assert chosen.lora.rank == 2 and chosen.optimizer.learning_rate == 3e-3
    assert chosen.trainable == given["trainable"]
    assert chosen.execution.frozen_dtype == chosen.export.dtype == "bfloat16"
    assert chosen.execution.dtype == "float32"


RATES = [(7 * 10**9, 0, 3.6e-6), (9 * 10**8, None, 1e-5), (10**8, None, 3e-5), (10**6, None, 3e-4)]


@for_each("parameters, rank, rate", RATES)
def test_all_weights_have_a_rate_by_their_number(parameters, rank, rate):
    values = automatic.by_size(settings_of(**{"lora.rank": rank}), parameters)
    assert values["optimizer.learning_rate"] == rate and values["lora.rank"] == 0
    assert values["trainable"] == ((".*", True),)
    assert values["export.dtype"] == ("bfloat16" if parameters > 10**9 else "float32")


CHUNKS = [
    (Bucket(2048, 0), 1, 16),
    (Bucket(2048, 9), 1, 4),  # patches are more than tokens
    (Bucket(2048, 9), 8, 32),  # as many on each device
    (Bucket(24, 0), 1, 64),
    (Bucket(24, 0), 48, 288),  # a batch has no more
    (Bucket(10**6, 0), 4, 4),
]


@for_each("largest, shards, rows", CHUNKS)
def test_chunks_are_as_large_as_rows_allow(largest, shards, rows):
    settings = settings_of(**{"data.buckets": (Bucket(16, 0), largest)})
    assert automatic.chunk_rows(settings, 729, shards) == rows


def test_buckets_of_a_distillation_are_those_of_texts_with_the_suffix(mesh, tmp_path, monkeypatch):
    """Packed where the model is wide, so that attention over the other texts hardly counts."""
    rows = {"train": [{"qry": "red " * (1 + n % 30), "pos_text": "blue"} for n in range(90)]}
    suffix = " in one word:"
    changes = {"backbone": str(write_folder(tmp_path)), "data.suffix": suffix, "batch_size": 64}
    values = own.get_config()
    values.update_from_flattened_dict(changes | {"data.teacher": "vectors"})
    values.loss = base.distillation()
    chosen, allowed = {}, measured_buckets._pack
    monkeypatch.setattr(
        measured_buckets,
        "_pack",
        lambda backbone: dataclasses.replace(allowed(backbone), width=4096),
    )
    for packing in ("off", "auto"):
        values.data.packing = packing
        made = set_up(config_reader.read(config.TrainConfig, values.to_dict()), mesh, rows)
        chosen[packing] = made.settings.data.buckets
        longest = made.preprocess(Item("red " * 30, suffix=suffix))
        assert not longest.truncated and len(longest.tokens) <= chosen[packing][-1].tokens
    shortest = len(made.preprocess(Item("blue", suffix=suffix)).tokens)
    assert shortest <= chosen["off"][0].tokens < shortest + 8
    assert all(bucket.texts == 1 for bucket in chosen["off"])
    packed = chosen["auto"][0]
    assert packed.texts > 1 and packed.tokens >= 2 * shortest, chosen


def test_a_record_is_read_as_it_was_written_or_named(tmp_path):
    values = automatic.by_size(settings_of(), 10**8)
    values["data.buckets"] = (Bucket(24, 0), Bucket(96, 2, 1.0))
    text = json.dumps(values, default=dataclasses.asdict)
    text = text.replace(', "rows": 0, "texts": 1', "")  # fields that came later
    assert "texts" not in text
    (tmp_path / automatic.FILE).write_text(text)
    assert automatic.read(tmp_path) == values
    assert automatic.read(tmp_path / "elsewhere") == {}

    # A damaged record is named
    for text, message in DAMAGED.items():
        (tmp_path / automatic.FILE).write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            automatic.read(tmp_path)
        assert str(tmp_path / automatic.FILE) in str(error.value)


DAMAGED = {
    "{": "automatic.json",
    '{"lora.rnk": 4}': "lora.*rnk|rnk",
    '{"seed.x": 4}': "repair it; or remove it",
    '{"lora.rank": "4"}': "config.lora.rank must be of type int, not '4'",
    '{"data.buckets": [{"tokens": 8}]}': r"missing key config.data.buckets\[0\].tiles",
}
