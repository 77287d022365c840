"""The embed job: every distinct item once."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.backbones.tiny_texts import write_bert
from tests.jobs.embedding.corpus import (
    BLUE,
    EXACT,
    IDS,
    ITEMS,
    PREFIX,
    RED,
    SUFFIX,
    row,
    settings_of,
    vectors,
)
from tests.jobs.tiny_run import ROOT
from tests.models.oracle import picture
from tests.tables import for_each
from unime_jax import Embedder, sharding
from unime_jax.batch import Item, Media
from unime_jax.data import formats, schema
from unime_jax.data.embedding_store import item_id, open_embeddings
from unime_jax.data.quarantine import read_quarantine
from unime_jax.jobs import embed

open_dataset = formats.open_dataset  # which the fixtures replace


def test_what_the_embedder_makes_of_each_distinct_item(pair, given, straight):
    """In order, without duplicates, in blocks that are not all full."""
    store = open_embeddings(straight)
    assert list(store.ids) == IDS
    expected = embedded(pair, ITEMS)
    np.testing.assert_allclose(store.vectors(IDS), expected, atol=EXACT)
    apart = np.linalg.norm(expected[:, None] - expected, axis=-1) + 10 * np.eye(len(IDS))
    assert apart.min() > 100 * EXACT, "otherwise the order could not be seen"
    shapes = [np.load(straight / "vectors" / f"00000{n}.npy").shape for n in range(4)]
    assert shapes == [(4, 48)] * 3 + [(1, 48)]
    assert json.loads((straight / "config.json").read_text())["prefix"] == PREFIX

    # Provenance
    found = open_embeddings(straight).provenance
    assert found["backbone"] == str(pair.backbone.folder.resolve())
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= found["model"]["files"].keys()
    assert found["model"]["processing"]["prompt"] == "chat"
    assert (found["prefix"], found["suffix"]) == (PREFIX, SUFFIX)
    assert found["corpus"]["datasets"] == ["pairs"] and found["corpus"]["items"] == len(ITEMS)
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"].keys() == {"unime_jax", "jax", "flax", "transformers"}


def embedded(pair, items):
    elements = [{"text": text} | ({"image": image[1]} if image else {}) for text, image in items]
    return open_model(pair).encode(elements, prompt=PREFIX, suffix=SUFFIX)


def open_model(pair) -> Embedder:
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    folder = pair.backbone.folder
    return Embedder.from_pretrained(folder, dtype="float32", max_length=128, mesh=mesh)


def test_a_data_set_on_disk(monkeypatch, pair, given, data, tmp_path):
    """The miniature MMEB: texts, images, and both."""
    monkeypatch.setattr(formats, "open_dataset", open_dataset)
    given.data.folder, given.data.datasets = str(data), ("mini_mmeb/train",)
    splits = open_dataset(data / "mini_mmeb" / "train")
    names = sorted(splits)[:3]
    given.data.sides, given.data.splits = ("query", "positive"), tuple(names)
    given.batch_size, given.output.block = 16, 32
    given.prefix = given.suffix = ""
    embed.run(given, tmp_path / "run")
    examples = [
        schema.to_example(name, splits[name][i]) for name in names for i in range(len(splits[name]))
    ]
    items = {item_id(item): item for e in examples for item in (e.query, e.positive)}
    store = open_embeddings(tmp_path / "run")
    assert list(store.ids) == list(items)
    assert len(store) > 32, "several blocks"
    some = list(items.values())[:: len(items) // 15][:16]
    assert {bool(item.media) for item in some} == {True, False}
    found = np.stack([store.vector_of(item) for item in some])
    inputs = [{"text": i.text, "image": [image.data for image in i.media]} for i in some]
    np.testing.assert_allclose(found, open_model(pair).encode(inputs), atol=EXACT)


def test_sides_and_splits(given, tmp_path):
    for sides, splits, wanted in (
        (("query",), (), [0, 4, 9, 11]),
        (("positive",), ("b",), [5, 10]),
        (("negatives", "positive"), ("b", "a"), [10, 5, 12, 2, 3, 1, 6, 7, 8]),
    ):
        given.data.sides, given.data.splits = sides, splits
        items = embed.Items(list(embed._corpora(settings_of(given).data)))
        assert items.ids.tolist() == [IDS[i] for i in wanted], sides
        assert [item_id(items[i]) for i in range(len(items))] == items.ids.tolist(), sides

    # A split that is not there
    given.data.splits = ("aa",)
    with pytest.raises(ValueError, match=r"'aa' \(did you mean a\?\)"):
        embed.run(given, tmp_path)


def test_float16_and_int8(given, straight, tmp_path):
    given.output.dtype = "float16"
    embed.run(given, tmp_path / "half")
    assert np.load(tmp_path / "half" / "vectors" / "000000.npy").dtype == np.float16
    np.testing.assert_allclose(vectors(tmp_path / "half"), vectors(straight), atol=1e-3)

    # int8
    given.output.dtype = "float32"
    given.dtype = "int8"
    embed.run(given, tmp_path / "codes")
    cosines = np.sum(vectors(tmp_path / "codes") * vectors(straight), axis=1)
    assert (
        cosines.min() > 0.99 and np.abs(vectors(tmp_path / "codes") - vectors(straight)).max() > 0
    )
    assert open_embeddings(tmp_path / "codes").provenance["model"]["dtype"] == "int8"


def test_another_way_of_processing(pair, given, straight, tmp_path):
    processing = dataclasses.replace(pair.backbone.processing, prompt="raw")
    given.processing = dataclasses.asdict(processing)
    embed.run(given, tmp_path / "raw")
    assert open_embeddings(tmp_path / "raw").provenance["model"]["processing"]["prompt"] == "raw"
    assert np.abs(vectors(tmp_path / "raw") - vectors(straight)).max() > 100 * EXACT


def test_text_files(lines, tmp_path, pair):
    lines.data.texts = ("absent.txt",)
    with pytest.raises(ValueError, match="absent.txt is no text file that can be read"):
        embed.run(lines, tmp_path / "run")
    (tmp_path / "texts.txt").write_bytes(b"\xff")
    lines.data.texts = ("texts.txt",)
    with pytest.raises(ValueError, match="texts.txt is no text file"):
        embed.run(lines, tmp_path / "run")

    # Text files. A text a line; lines that say nothing are left out, and lines that came before.
    text = "water\r\n\nthe sea\nwater\n  \na\u2028b"
    (tmp_path / "texts.txt").write_bytes(text.encode())
    (tmp_path / "more.txt").write_text("land\nthe sea\n")
    lines.data.texts = ("texts.txt", "more.txt")
    embed.run(lines, tmp_path / "run")
    store = open_embeddings(tmp_path / "run")
    texts = ["water", "the sea", "a\u2028b", "land"]
    assert list(store.ids) == [item_id(text) for text in texts]
    expected = embedded(pair, [(text, None) for text in texts])
    np.testing.assert_allclose(vectors(tmp_path / "run"), expected, atol=EXACT)
    bad = read_quarantine(tmp_path / "run" / "quarantine.jsonl")
    assert [(item.id, item.reason) for item in bad] == [("1", "empty line"), ("4", "empty line")]


def nv_embed(folder):
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast"} | special
    shutil.copytree(ROOT / "tests" / "golden" / "nv_embed", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@for_each("write", [nv_embed, write_bert])
def test_text_teachers(lines, tmp_path, write):
    """Families that pool over tokens, of which NV-Embed leaves the instruction's out."""
    lines.backbone = str(write(tmp_path / "teacher"))
    lines.batch_size, lines.suffix = 16, ""
    embed.run(lines, tmp_path / "run")
    model = Embedder.from_pretrained(lines.backbone, dtype="float32", max_length=128)
    texts = [f"number {n}" for n in range(13)]
    expected = model.encode(texts, prompt=PREFIX)
    np.testing.assert_allclose(vectors(tmp_path / "run"), expected, atol=EXACT)
    bare = model.encode(texts)
    assert np.abs(bare - expected).max() > 100 * EXACT
    files = open_embeddings(tmp_path / "run").provenance["model"]["files"]
    assert write is nv_embed or "1_Pooling/config.json" in files


def test_a_folder_that_asks_for_a_prompt_and_a_dimension(lines, tmp_path):
    """Those of sentence-transformers, unless the config has its own; None: as the folder says."""
    folder = write_bert(tmp_path / "teacher")
    asked = {"prompts": {"q": "find: "}, "default_prompt_name": "q", "truncate_dim": 10}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(asked))
    lines.backbone, lines.batch_size, lines.suffix = str(folder), 16, ""
    texts = [f"number {n}" for n in range(13)]
    model = Embedder.from_pretrained(folder, dtype="float32")
    choices = [
        ({"prefix": None, "max_length": None}, {}, 32),
        ({"prefix": "", "truncate_dim": 5}, {"prompt": "", "truncate_dim": 5}, 32),
    ]
    for number, (keys, arguments, longest) in enumerate(choices):
        with lines.ignore_type():
            lines.update(keys)
        embed.run(lines, tmp_path / str(number))
        expected = model.encode(texts, **arguments)
        assert expected.shape[1] == arguments.get("truncate_dim", 10)
        np.testing.assert_allclose(vectors(tmp_path / str(number)), expected, atol=EXACT)
        provenance = open_embeddings(tmp_path / str(number)).provenance
        assert provenance["prefix"] == arguments.get("prompt", "find: ")
        assert provenance["model"]["max_length"] == longest


def test_bad_items_are_left_out(given, splits, straight, tmp_path):
    """Rows with bad headers whole; what shows when an item is used, that item alone."""
    splits["b"][:0] = [
        row("where?", "lost", [], ("absent.png", b"")),
        row("where?", "broken", [], ("broken.png", BLUE[:50])),
        row("which?", "too big", [], ("big.png", picture(28, 28, 5))),
        row("which?", "half", [], (["red.png", "half.png"], [RED, BLUE[:50]])),
    ]
    workdir = tmp_path / "run"
    work = embed.begin(settings_of(given), workdir)
    preprocess = work.backbone.preprocess

    def picky(item):
        if [image.path for image in item.media] == ["big.png"]:
            raise ValueError("an image takes more tokens than there may be")
        return preprocess(item)

    picky.prompt = preprocess.prompt
    backbone = dataclasses.replace(work.backbone, preprocess=picky)
    work = dataclasses.replace(work, backbone=backbone)
    assert embed.embed(work, process_index=0, process_count=1)
    store = open_embeddings(workdir)
    assert list(store.ids) == [*IDS[:9], *map(item_id, ("broken", "too big", "half")), *IDS[9:]]
    sizes = [len(np.load(file)) for file in sorted(workdir.glob("vectors/*.npy"))]
    assert sizes == [4, 4, 2, 3, 3]
    np.testing.assert_allclose(store.vectors(IDS), vectors(straight), atol=EXACT)
    bad = read_quarantine(workdir / "quarantine.jsonl")
    assert [(b.source, b.id, b.path, b.reason.split(":")[0]) for b in bad] == [
        ("pairs/b", "0", "absent.png", "query"),
        ("pairs/b", "1", "broken.png", bad[1].reason.split(":")[0]),
        ("pairs/b", "2", "big.png", "an image takes more tokens than there may be"),
        ("pairs/b", "3", "half.png", bad[3].reason.split(":")[0]),
    ]
    assert "image 2 of 2: the image 'half.png' cannot be read: OSError" in bad[3].reason
    assert "the image 'broken.png' cannot be read: OSError" in bad[1].reason
    embed.embed(work, process_index=0, process_count=1)
    assert read_quarantine(workdir / "quarantine.jsonl") == bad


def test_too_many_bad_items_stop_it(given, splits, tmp_path):
    splits["b"] += [row("where?", "lost", [], ("absent.png", b""))] * 300
    with pytest.raises(ValueError, match="300 of 305 examples read were unusable"):
        embed.run(given, tmp_path / "run")
    assert not list((tmp_path / "run").glob("vectors/*"))

    # Nothing to embed
    splits["a"], splits["b"] = [], [row("where?", "lost", [], ("absent.png", b""))]
    with pytest.raises(ValueError, match="nothing to embed in 1 rows, the first of 1 .*absent.png"):
        embed.run(given, tmp_path)
    assert [item.path for item in read_quarantine(tmp_path / "quarantine.jsonl")] == ["absent.png"]


def test_every_image_of_an_item_has_a_path_to_know_it_by():
    for paths in (("", "b.png"), ("a.png", "")):
        images = tuple(Media(path, b"1") for path in paths)
        with pytest.raises(ValueError, match="an image of the item 'two' has no path"):
            item_id(Item("two", images))


def test_a_mesh_that_does_not_fit(given, tmp_path):
    given.mesh.fsdp = 3
    with pytest.raises(ValueError, match="does not give the 1 device"):
        embed.run(given, tmp_path)


def test_vectors_that_are_not_finite_are_not_written(given, pair, tmp_path):
    """The error names the item, and nothing that could be taken for its vector is left."""
    folder = shutil.copytree(pair.backbone.folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["language_model.model.norm.weight"][0] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    given.backbone = str(folder)
    with pytest.raises(ValueError, match=r"item '.*': its embedding is not finite .*norm.weight"):
        embed.run(given, tmp_path / "run")
    assert not list((tmp_path / "run").glob("vectors/*"))
