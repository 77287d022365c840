"""Weights from Hugging Face files and back: every bit, every family, every spelling, every mesh."""

import functools
import itertools
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText

from tests.backbones.checkpoints import (
    DTYPES,
    PAIRS,
    assert_same,
    family,
    on_the_hub,
    spellings,
    targets,
    tensors,
    write,
)
from tests.models.oracle import load
from tests.tables import every_pair, every_value, for_each
from unime_jax import backbones, sharding
from unime_jax.backbones.io import names, tensor_files, weights

SPELLINGS = ("saved", "modules", "hub")


# Of four columns any two meet: tables of names, files and dtypes are handled one after the other.
FORMS = PAIRS, SPELLINGS, DTYPES, (1, 3)


@for_each(
    "model_type, spelling, dtype, shards", itertools.product(*FORMS), quick=every_pair(*FORMS)
)
def test_there_and_back_changes_no_bit(pairs, model_type, tmp_path, spelling, dtype, shards):
    """What the embedder does not use comes along; names stay the folder's own."""
    pair = pairs(model_type)
    given = {name: x.astype(DTYPES[dtype]) for name, x in spellings(pair)[spelling].items()}
    backbone = write(pair, tmp_path / "given", given, shards)
    parameters = backbone.load(targets(backbone, dtype=DTYPES[dtype]))
    assert all(x.dtype == DTYPES[dtype] for x in parameters.values())
    (tmp_path / "saved").mkdir()
    backbone.save_weights(tmp_path / "saved", parameters, DTYPES[dtype])
    assert_same(tensors(tmp_path / "saved"), given)


@for_each("model_type", PAIRS)
def test_the_checkpoints_have_tensors_that_are_only_carried(pairs, model_type):
    """So that the test above shows that they are."""
    pair = pairs(model_type)
    backbone, found = pair.backbone, spellings(pair)["hub"]
    entries = names.table({p: x.shape for p, x in pair.parameters.items()}, backbone.names)
    carried = found.keys() - {name for entry in entries for name in entry.names}
    if family(pair) == "llava_next":  # the last but one of three layers is read
        tower = "vision_tower.vision_model"
        unread = {name for name in found if name.startswith(f"{tower}.encoder.layers.2.")}
        assert len(unread) == 16 and unread < carried
        assert f"{tower}.post_layernorm.weight" in found.keys() - carried
        carried -= unread
    head = "lm_head" if family(pair).startswith("qwen") else "language_model.lm_head"
    assert carried == {f"{head}.weight"}


@for_each("model_type", PAIRS)
@for_each("spelling", SPELLINGS)
def test_every_spelling_reads_the_same(pairs, model_type, tmp_path, spelling):
    pair = pairs(model_type)
    backbone = write(pair, tmp_path / "given", spellings(pair)[spelling])
    assert_same(load(backbone), pair.parameters)


@for_each(  # no family has a conversion of its own
    "model_type, source", itertools.product(PAIRS, DTYPES), quick=every_value(PAIRS, DTYPES)
)
def test_dtypes_of_file_memory_and_export_are_independent(pairs, model_type, tmp_path, source):
    """A half-precision file trained in float32 comes back as it was; or wider, if asked for."""
    pair = pairs(model_type)
    given = {n: x.astype(DTYPES[source]) for n, x in spellings(pair)["hub"].items()}
    backbone = write(pair, tmp_path / "given", given)
    parameters = load(backbone)
    assert all(x.dtype == np.float32 for x in parameters.values())
    for dtype in {source, "float32"}:
        folder = tmp_path / f"as-{dtype}"
        folder.mkdir()
        backbone.save_weights(folder, parameters, DTYPES[dtype])
        unused = backbone.names.is_unused
        expected = {n: x if unused(n) else x.astype(DTYPES[dtype]) for n, x in given.items()}
        assert_same(tensors(folder), expected)


SHARD_BYTES = weights.SHARD_BYTES, 20_000


@for_each(
    "model_type, spelling, shard_bytes",
    itertools.product(PAIRS, SPELLINGS, SHARD_BYTES),
    quick=every_value(PAIRS, SPELLINGS, SHARD_BYTES),  # that any two meet, the first test sees
)
def test_transformers_loads_what_is_saved(
    pairs, model_type, tmp_path, spelling, shard_bytes, monkeypatch
):
    pair = pairs(model_type)
    backbone = write(pair, tmp_path / "given", spellings(pair)[spelling])
    changed = {path: 2 * x for path, x in pair.parameters.items()}
    saved = tmp_path / "saved"
    shutil.copytree(backbone.folder, saved, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr(weights, "save", functools.partial(weights.save, shard_bytes=shard_bytes))
    backbone.save_weights(saved, changed, np.dtype(np.float32))
    assert (len(list(saved.glob("*.safetensors"))) > 2) == (shard_bytes == 20_000)

    model, info = AutoModelForImageTextToText.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values()), info
    held = weights.Checkpoint(backbone.folder, backbone.names).carried()
    carried = {name for name, _ in held}  # a tied head is in the file, or it is the embeddings
    for name, before in pair.torch_model.state_dict().items():
        expected = before if on_the_hub(family(pair), name) in carried else 2 * before
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=0, atol=0)


@for_each("model_type", PAIRS)
def test_shards_and_their_index(pairs, model_type, tmp_path):
    pair = pairs(model_type)
    weights.save(
        tmp_path, pair.parameters, pair.backbone.names, DTYPES["float32"], shard_bytes=20_000
    )
    index = json.loads((tmp_path / tensor_files.INDEX).read_text())
    files = sorted(path.name for path in tmp_path.iterdir())
    count = len(files) - 1
    expected = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert files == [*expected, tensor_files.INDEX] and count > 2
    sizes = {}
    for file in expected:
        part = load_file(tmp_path / file)
        sizes[file] = sum(x.nbytes for x in part.values())
        assert len(part) == 1 or sizes[file] <= 20_000
        assert all(index["weight_map"][name] == file for name in part)
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert len(index["weight_map"]) == len(tensors(tmp_path))


@for_each("model_type", PAIRS)
def test_a_backbone_without_weights_saves_published_names(pairs, model_type, tmp_path):
    """As after training from scratch; only what nothing trained is missing."""
    pair = pairs(model_type)
    folder = tmp_path / "given"
    shutil.copytree(pair.backbone.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    backbone = backbones.open_backbone(str(folder), max_length=4096)
    backbone.save_weights(folder, pair.parameters, np.dtype(np.float32))
    own = spellings(pair)["hub"].keys()
    unused = {name for name in own if backbone.names.is_unused(name)}
    assert tensors(folder).keys() == own - unused
    _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    missing = {on_the_hub(family(pair), name) for name in info["missing_keys"]}
    tied = pair.torch_model.config.tie_word_embeddings
    assert missing == (set() if tied else unused) and not info["unexpected_keys"]


MESHES = (2, 4, 1), (2, 2, 2), (1, 1, 8)


@for_each(  # a part is cut by one function, whatever the family
    "model_type, shape", itertools.product(PAIRS, MESHES), quick=every_value(PAIRS, MESHES)
)
def test_sharded_read_equals_unsharded_read(pairs, model_type, shape):
    pair = pairs(model_type)
    wanted = targets(pair.backbone, sharding.make_mesh(*shape))
    read = pair.backbone.load(wanted)
    assert_same(read, pair.parameters)
    assert all(read[path].sharding == wanted[path].sharding for path in wanted)


@for_each("model_type", PAIRS)
def test_sharded_parameters_are_saved_whole(pairs, model_type, tmp_path):
    pair = pairs(model_type)
    parameters = pair.backbone.load(targets(pair.backbone, sharding.make_mesh(2, 2, 2)))
    pair.backbone.save_weights(tmp_path, parameters, np.dtype(np.float32))
    assert_same(tensors(tmp_path), tensors(pair.backbone.folder))


class Counted:
    """A lazy tensor that reports how much of it is copied."""

    def __init__(self, view, report):
        self._view, self._report = view, report

    def __len__(self):
        return len(self._view)

    def __getitem__(self, index):
        return Counted(self._view[index], self._report)

    def reshape(self, *shape):
        return Counted(self._view.reshape(*shape), self._report)

    def __array__(self, dtype=None, copy=None):
        self._report(self._view.nbytes)
        return np.asarray(self._view, dtype)


@for_each("model_type", PAIRS)
def test_each_byte_is_read_once_and_layer_by_layer(pairs, model_type, monkeypatch):
    """Devices that hold the same part share a read; nobody reads a whole tensor to cut it."""
    pair = pairs(model_type)
    reads = {}
    open_tensor = weights.Checkpoint.open

    def counted(self, name):
        parts = reads.setdefault(name, [])
        parts.append(0)

        def report(size):
            parts[-1] += size

        return Counted(open_tensor(self, name), report)

    monkeypatch.setattr(weights, "THREADS", 1)  # so that `report` counts for the newest part
    monkeypatch.setattr(weights.Checkpoint, "open", counted)
    assert_same(
        pair.backbone.load(targets(pair.backbone, sharding.make_mesh(2, 2, 2))), pair.parameters
    )
    held = {pair.backbone.names.published(n): x for n, x in tensors(pair.backbone.folder).items()}
    used = {name: x for name, x in held.items() if not pair.backbone.names.is_unused(name)}
    assert reads.keys() == used.keys()
    assert {name: sum(parts) for name, parts in reads.items()} == {
        name: x.nbytes for name, x in used.items()
    }
    inside = dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), "model")
    inside |= {"qwen3_vl": "model.language_model"}
    q_proj = f"{inside.get(family(pair), 'language_model.model')}.layers.1.self_attn.q_proj.weight"
    assert reads[q_proj] == [held[q_proj].nbytes // 4] * 4


@for_each("model_type", PAIRS)
def test_half_precision_is_rounded_once(pairs, model_type, tmp_path):
    """From a float32 file straight to the target's dtype, whatever is transposed on the way."""
    pair = pairs(model_type)
    backbone = write(pair, tmp_path / "given", spellings(pair)["hub"])
    read = backbone.load(targets(backbone, dtype=DTYPES["bfloat16"]))
    expected = {p: np.asarray(x).astype(ml_dtypes.bfloat16) for p, x in pair.parameters.items()}
    assert_same(jax.device_get(read), expected)


@for_each("shape", [(1, 1), (3, 200), (200, 3), (129, 65)])
@for_each("target", DTYPES.values())
@for_each("source", DTYPES.values())
def test_transposing_in_strips(shape, source, target):
    x = np.random.default_rng(0).normal(size=shape).astype(source)
    found = np.empty(shape[::-1], target)
    names.copy_transposed(found, x)
    np.testing.assert_array_equal(found, x.T.astype(target))
