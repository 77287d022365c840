"""The embed job: every distinct item once, whatever happens on the way."""

import copy
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import embed as experiment
from tests.backbones.checkpoints import tensors
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_texts import write_bert
from tests.jobs.tiny_run import ROOT
from tests.models.oracle import TEXT, VISION, Pair, pair_of, picture
from unime_jax import Embedder, config, config_reader, sharding
from unime_jax.batch import Item, Media
from unime_jax.data import formats, schema
from unime_jax.data.embedding_store import item_id, open_embeddings
from unime_jax.data.quarantine import read_quarantine
from unime_jax.jobs import embed

open_dataset = formats.open_dataset  # which the fixtures replace

EXACT = 2e-5  # largest absolute difference between unit vectors, float32
PREFIX, SUFFIX = "Represent: ", " in one word:"
RED, BLUE, GREEN = (picture(20, 24, seed) for seed in range(3))
WIDE = picture(28, 20, 3)


def row(query, positive, negatives=(), image=("", b""), negative_images=()):
    texts, images = list(negatives), list(negative_images)
    texts += [""] * (len(images) - len(texts))
    return {
        "qry": query,
        "qry_image_path": image[0],
        "qry_image": image[1],
        "pos_text": positive,
        "pos_image_path": "",
        "pos_image": b"",
        "neg_text": texts,
        "neg_image_path": [path for path, _ in images],
        "neg_image": [data for _, data in images],
    }


DATA = {
    "b": [
        row("what?", "a circle", ["a square", "a circle"], ("red.png", RED)),
        row("what?", "a square", ["a triangle"], ("blue.png", BLUE)),
        row("what?", "a circle", [], ("red.png", RED)),
    ],
    "a": [
        row("the sea", "water", negative_images=[("wide.png", WIDE), ("red.png", RED)]),
        row("the sea " * 30, "a circle", ["land", "mountain", "hill"]),
    ],
}
# Splits by name, rows in order, queries first; of equal items the first.
ITEMS = [
    ("the sea", None),
    ("water", None),
    ("", ("wide.png", WIDE)),
    ("", ("red.png", RED)),
    ("the sea " * 30, None),
    ("a circle", None),
    ("land", None),
    ("mountain", None),
    ("hill", None),
    ("what?", ("red.png", RED)),
    ("a square", None),
    ("what?", ("blue.png", BLUE)),
    ("a triangle", None),
]


def id_of(text, image):
    return item_id(Item(text, (Media(*image),) if image else ()))


IDS = [id_of(*item) for item in ITEMS]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("model")
    return pair_of(write_folder(folder, vision=VISION, text=TEXT))


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Most tests run on one device, on rows that are not on disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        patch.setattr(formats, "open_dataset", lambda folder: DATA)
        yield


@pytest.fixture
def splits(monkeypatch):
    """The rows, for tests that change them."""
    found = copy.deepcopy(DATA)
    monkeypatch.setattr(formats, "open_dataset", lambda folder: found)
    return found


@pytest.fixture
def given(pair):
    """In blocks of four items, of three shapes."""
    return make_config(pair)


def make_config(pair):
    config = experiment.get_config()
    config.backbone = str(pair.backbone.folder)
    config.max_length = 128
    config.batch_size = 2
    config.prefix, config.suffix = PREFIX, SUFFIX
    config.data.folder = "nowhere"
    config.data.datasets = ("pairs",)
    config.output.block = 4
    return config


def settings_of(given) -> config.EmbedConfig:
    return config_reader.read(config.EmbedConfig, given.to_dict())


def part(given, workdir, process, count) -> bool:
    """What one process of several does."""
    work = embed.begin(settings_of(given), workdir)
    return embed.embed(work, process_index=process, process_count=count)


@pytest.fixture(scope="module")
def straight(pair, tmp_path_factory):
    """A run that nothing disturbed. Read-only."""
    workdir = tmp_path_factory.mktemp("straight")
    embed.run(make_config(pair), workdir)
    return workdir


def content(workdir) -> dict[str, bytes]:
    """The files of the store."""
    files = [workdir / "ids.npy", *workdir.glob("vectors/*"), workdir / "embeddings.json"]
    return {file.relative_to(workdir).as_posix(): file.read_bytes() for file in files}


def vectors(workdir) -> np.ndarray:
    store = open_embeddings(workdir)
    return store.vectors(store.ids)


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


def embedded(pair, items):
    elements = [{"text": text} | ({"image": image[1]} if image else {}) for text, image in items]
    return open_model(pair).encode(elements, prompt=PREFIX, suffix=SUFFIX)


def open_model(pair) -> Embedder:
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    folder = pair.backbone.folder
    return Embedder.from_pretrained(folder, dtype="float32", max_length=128, mesh=mesh)


def test_provenance(pair, given, straight):
    found = open_embeddings(straight).provenance
    assert found["backbone"] == str(pair.backbone.folder.resolve())
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= found["model"]["files"].keys()
    assert found["model"]["processing"]["prompt"] == "chat"
    assert (found["prefix"], found["suffix"]) == (PREFIX, SUFFIX)
    assert found["corpus"]["datasets"] == ["pairs"] and found["corpus"]["items"] == len(ITEMS)
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"].keys() == {"unime_jax", "jax", "flax", "transformers"}


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
    given = [{"text": i.text, "image": [image.data for image in i.media]} for i in some]
    np.testing.assert_allclose(found, open_model(pair).encode(given), atol=EXACT)


@pytest.mark.parametrize(
    ("sides", "splits", "wanted"),
    [
        (("query",), (), [0, 4, 9, 11]),
        (("positive",), ("b",), [5, 10]),
        (("negatives", "positive"), ("b", "a"), [10, 5, 12, 2, 3, 1, 6, 7, 8]),
    ],
)
def test_sides_and_splits(given, sides, splits, wanted):
    given.data.sides, given.data.splits = sides, splits
    corpora = list(embed._corpora(settings_of(given).data))
    items = embed.Items(corpora)
    assert items.ids.tolist() == [IDS[i] for i in wanted]
    assert [item_id(items[i]) for i in range(len(items))] == items.ids.tolist()


def test_a_split_that_is_not_there(given, tmp_path):
    given.data.splits = ("aa",)
    with pytest.raises(ValueError, match=r"'aa' \(did you mean a\?\)"):
        embed.run(given, tmp_path)


def test_float16(given, straight, tmp_path):
    given.output.dtype = "float16"
    embed.run(given, tmp_path / "half")
    assert np.load(tmp_path / "half" / "vectors" / "000000.npy").dtype == np.float16
    np.testing.assert_allclose(vectors(tmp_path / "half"), vectors(straight), atol=1e-3)


def test_int8(given, straight, tmp_path):
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


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_processes_share_the_blocks(given, straight, tmp_path, order):
    """In whatever order they end, the last one completes the folder; bit for bit the same."""
    workdir = tmp_path / "shared"
    assert [part(given, workdir, p, 3) for p in order] == [False, False, True]
    assert content(workdir) == content(straight)


def test_resumed_by_another_number_of_processes(given, straight, tmp_path):
    workdir = tmp_path / "resumed"
    assert not part(given, workdir, 1, 3)
    (kept,) = workdir.glob("vectors/*.npy")
    assert kept.name == "000001.npy"
    written = kept.stat().st_mtime_ns
    embed.run(given, workdir)
    assert kept.stat().st_mtime_ns == written
    assert content(workdir) == content(straight)


def test_resumed_on_other_devices(monkeypatch, given, straight, tmp_path):
    """Whole blocks stay as they are, the others are the same up to rounding."""
    workdir = tmp_path / "resumed"
    part(given, workdir, 0, 2)
    before = content_of_blocks(workdir)
    monkeypatch.setattr(jax, "local_devices", jax.devices)
    assert len(jax.local_devices()) == 8
    embed.run(given, workdir)
    after = content_of_blocks(workdir)
    assert len(before) == 2 and len(after) == 4 and before.items() <= after.items()
    assert list(open_embeddings(workdir).ids) == IDS
    np.testing.assert_allclose(vectors(workdir), vectors(straight), atol=EXACT)


def content_of_blocks(workdir):
    return {file.name: file.read_bytes() for file in workdir.glob("vectors/*.npy")}


def test_a_complete_folder_reads_no_weights(monkeypatch, given, straight, tmp_path):
    before = content(straight)
    monkeypatch.setattr(embed, "Embedder", None)
    embed.run(given, shutil.copytree(straight, tmp_path / "copy"))
    assert content(tmp_path / "copy") == before


def killed_runs(given, workdir, moments) -> list[int]:
    return forked("killed", given, workdir, moments)


def environment() -> dict[str, str]:
    """Of processes that have one device, as this one seems to have."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    return os.environ | {"XLA_FLAGS": flags}


def forked(what, given, workdir, argument) -> list[int]:
    file = workdir.with_suffix(".json")
    file.write_text(json.dumps(given.to_dict()))
    command = [sys.executable, "-m", "tests.jobs.forked_embed", what, file, workdir]
    done = subprocess.run(
        [*command, json.dumps(argument)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def lines(given, tmp_path):
    """The config on a text file, which other processes can read, too."""
    (tmp_path / "texts.txt").write_text("".join(f"number {n}\n" for n in range(13)))
    given.data.folder, given.data.datasets = str(tmp_path), ()
    given.data.texts = ("texts.txt",)
    return given


def test_killed_at_any_moment(lines, tmp_path):
    """Files of a run: the record, ids and vectors of each block, all ids, the record again."""
    moments = [
        (1, "half"),  # of the record
        (1, "after"),
        (1, "after"),  # of a block's ids
        (2, "half"),  # of its vectors
        (3, "half"),  # of the next one's ids
        (6, "unnamed"),  # of the last one's vectors
        (3, "half"),  # of all ids
        (2, "unnamed"),  # of the record that says that the folder is complete
        (2, "after"),  # of it, but nothing is tidied up
    ]
    assert killed_runs(lines, tmp_path / "straight", []) == [0]
    statuses = killed_runs(lines, tmp_path / "killed", moments)
    assert statuses == [-signal.SIGKILL] * len(moments) + [0]
    assert content(tmp_path / "killed") == content(tmp_path / "straight")
    store = open_embeddings(tmp_path / "killed")
    assert list(store.ids) == [item_id(f"number {n}") for n in range(13)]
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def test_the_command_line_killed_from_outside(lines, tmp_path):
    """At no moment that was chosen."""
    workdir = tmp_path / "run"
    flags = [
        f"--config.backbone={lines.backbone}",
        f"--config.data.folder={tmp_path}",
        "--config.data.datasets=()",
        '--config.data.texts=("texts.txt",)',
        "--config.output.block=1",
        "--config.batch_size=1",
    ]
    command = [sys.executable, "-m", "unime_jax.main", "--config=experiments/embed.py", *flags]
    process = subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not list(workdir.glob("vectors/*.npy")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="not complete, .* run the command that writes it again"):
        open_embeddings(workdir)
    resumed = experiment.get_config()
    resumed.backbone = lines.backbone
    resumed.data.update(lines.data)
    resumed.output.block = 1
    embed.run(resumed, workdir)
    assert len(open_embeddings(workdir)) == 13


def test_two_processes_that_know_of_each_other(lines, tmp_path):
    """As on a pod; each has its own devices only, and writes to the same folder."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    assert forked("pair", lines, tmp_path / "pair", port) == [0, 0]
    embed.run(lines, tmp_path / "alone")
    assert list(open_embeddings(tmp_path / "pair").ids) == [
        item_id(f"number {n}") for n in range(13)
    ]
    np.testing.assert_allclose(vectors(tmp_path / "pair"), vectors(tmp_path / "alone"), atol=EXACT)


def test_another_run_is_refused(pair, given, splits, straight, tmp_path):
    """The message says what changed; nothing is written."""
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)

    def refused(*messages):
        before = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
        with pytest.raises(ValueError, match="begun with something else") as error:
            embed.run(given, workdir)
        for message in messages:
            assert message in str(error.value)
        after = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
        assert after == before

    given.prefix = ""
    refused('provenance.prefix: "Represent: " before, "" now')
    given.prefix = PREFIX
    given.max_length = 100
    refused("provenance.model.max_length: 128 before, 100 now")
    given.max_length = 128
    given.output.dtype = "float16"
    refused('dtype: "float32" before, "float16" now')
    given.output.dtype = "float32"
    splits["b"][0]["pos_text"] = "an ellipse"
    refused("provenance.corpus.ids: ", "provenance.corpus.items: 13 before, 14 now")
    splits["b"][0]["pos_text"] = "a circle"
    other = tmp_path / "other"
    shutil.copytree(pair.backbone.folder, other)
    given.backbone = str(other)
    embed.run(given, workdir)  # the same files elsewhere are the same model
    weights = tensors(other)
    next(iter(weights.values())).flat[0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    refused("provenance.model.files.model.safetensors: ")


def test_text_files(pair, lines, tmp_path):
    """A text a line; lines that say nothing are left out, and lines that came before."""
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


@pytest.mark.parametrize("write", [nv_embed, write_bert])
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


def test_text_files_that_cannot_be_read(lines, tmp_path):
    lines.data.texts = ("absent.txt",)
    with pytest.raises(ValueError, match="absent.txt is no text file that can be read"):
        embed.run(lines, tmp_path / "run")
    (tmp_path / "texts.txt").write_bytes(b"\xff")
    lines.data.texts = ("texts.txt",)
    with pytest.raises(ValueError, match="texts.txt is no text file"):
        embed.run(lines, tmp_path / "run")


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


def test_nothing_to_embed(given, splits, tmp_path):
    splits["a"], splits["b"] = [], [row("where?", "lost", [], ("absent.png", b""))]
    with pytest.raises(ValueError, match="nothing to embed in 1 rows, the first of 1 .*absent.png"):
        embed.run(given, tmp_path)
    assert [item.path for item in read_quarantine(tmp_path / "quarantine.jsonl")] == ["absent.png"]


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
