"""Phi-3.5-Vision folders: rows as recorded from the original, weights, adapters, embeddings."""

import dataclasses
import io
import json
import pickle
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.backbones.checkpoints import DTYPES, assert_same, targets, tensors
from tests.backbones.images import encoded, noise
from tests.backbones.tiny_phi3_v import (
    GOLDEN,
    ROPE,
    TEXT,
    write_golden,
    write_phi3_v,
    write_weights,
)
from tests.models.oracle import load
from unime_jax import Embedder, paths, sharding
from unime_jax.backbones import Processing, open_backbone
from unime_jax.backbones.io import adapters, merging, weights
from unime_jax.backbones.phi3_v import hd_transform
from unime_jax.batch import Item, Media
from unime_jax.models import lora

PROCESSOR = GOLDEN / "processor"
RAW, CHAT = Processing(prompt="raw", crops=4), Processing(prompt="chat", crops=4)
FLOAT32 = np.dtype(np.float32)
WTE, EMBED = "model.vision_embed_tokens.wte.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return write_golden(tmp_path_factory.mktemp("phi3_v") / "golden")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_phi3_v(tmp_path_factory.mktemp("phi3_v") / "folder")
    write_weights(folder)
    return folder


def opened(folder, processing=None, max_length=4096):
    return open_backbone(str(folder), max_length=max_length, processing=processing)


def picture(width, height, seed=0):
    return Media(f"{seed}.png", encoded(noise(width, height, seed=seed)))


def item(text, *pictures):
    return Item(text, pictures)


# Rows


@pytest.mark.parametrize("one", json.loads((PROCESSOR / "layout.json").read_text()), ids=str)
def test_recorded_layouts(one):
    size = one["height"], one["width"]
    canvas = hd_transform.canvas_of(size, crops=one["num_crops"], tile=336)
    assert list(canvas.grid) == one["crop_grid_hw"]
    assert [336 * side for side in canvas.grid] == one["hd_size_hw"]
    slots = hd_transform.slots(canvas.grid, 24, 0)
    assert len(slots) == one["num_img_tokens"]
    rows, columns = canvas.grid
    patches = np.sort(slots[slots >= hd_transform.FIRST])  # each once
    np.testing.assert_array_equal(patches, 2 + np.arange(144 * (rows * columns + 1)))
    assert np.sum(slots == hd_transform.LINE_END) == 12 * (rows + 1)
    assert np.sum(slots == hd_transform.CROPS_END) == 1


RECORDED = json.loads((PROCESSOR / "pixels.json").read_text())["images"]


@pytest.mark.parametrize("one", RECORDED, ids=lambda one: one["image"])
def test_recorded_canvases_to_the_byte(golden, one):
    """Through the whole preprocessor."""
    data = (PROCESSOR / one["image"]).read_bytes()
    row = opened(golden, Processing(prompt="raw", crops=one["num_crops"])).preprocess(
        Item("<|image_1|>", (Media(one["image"], data),))
    )
    expected = np.asarray(Image.open(PROCESSOR / one["hd_image"]).convert("RGB"))
    rows, columns = (side // 336 for side in expected.shape[:2])
    assert len(row.patches) == 1 + rows * columns and not row.patches[0].any()
    pixels = row.patches[1:].reshape(rows, columns, 24, 24, 3, 14, 14)
    found = pixels.transpose(0, 2, 5, 1, 3, 6, 4).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
    assert np.all(row.patch_position[0] == [0, -1, -1])
    for tile, place in enumerate(row.patch_position[1:]):
        line, column = divmod(tile, columns)
        np.testing.assert_array_equal(place[0], [0, 24 * line, 24 * column])
        np.testing.assert_array_equal(place[25], [0, 24 * line + 1, 24 * column + 1])
    assert np.sum(row.slot >= 0) == one["num_img_tokens"]


def unrolled(runs):
    """Token ids, -k for a token of image k."""
    return [x for run in runs for x in ([run[0]] * run[1] if isinstance(run, list) else [run])]


@pytest.mark.parametrize(
    "one",
    json.loads((PROCESSOR / "interleave.json").read_text())["rows"],
    ids=lambda one: f"{one['length']}",
)
def test_recorded_token_ids(golden, one):
    """Pieces of text with their own BOS each, images by number."""
    sizes = one["images_wh"] or []
    images = [picture(width, height, i) for i, (width, height) in enumerate(sizes)]
    preprocess = opened(golden, Processing(prompt="raw", crops=one["num_crops"])).preprocess
    row = preprocess(item(one["prompt"], *images))
    expected = np.array(unrolled(one["input_ids_rle"]))
    is_image = row.slot[:, 0] >= 0
    np.testing.assert_array_equal(is_image, expected < 0)
    np.testing.assert_array_equal(row.tokens[~is_image], expected[~is_image])
    assert not row.tokens[is_image].any()
    first = 0
    for number, (width, height) in enumerate(sizes):
        canvas = hd_transform.canvas_of((height, width), crops=one["num_crops"], tile=336)
        found = row.slot[expected == -1 - number, 0]
        np.testing.assert_array_equal(found, hd_transform.slots(canvas.grid, 24, first))
        first += 1 + canvas.grid[0] * canvas.grid[1]
    assert first == (0 if row.patches is None else len(row.patches))
    assert row.truncated == row.orphan_images == 0


SENTENCE = "Summary above sentence in one word:"
IMAGE = "Summary above image in one word:"


def test_chat_prompts_are_unimes(folder):
    prompt = opened(folder, CHAT).preprocess.prompt
    text = prompt.rendered(item(f"A dog.\n{SENTENCE}"))
    assert text == f"<|user|>\nA dog.\n{SENTENCE}<|end|>\n<|assistant|>\n"
    text = prompt.rendered(item(f"<|image_1|>\n{IMAGE}", picture(9, 9)))
    assert text == f"<|user|>\n<|image_1|>\n{IMAGE}<|end|>\n<|assistant|>\n"
    text = prompt.rendered(item("compare", picture(9, 9), picture(8, 9)))
    assert text == "<|user|>\n<|image_1|>\n<|image_2|>\ncompare<|end|>\n<|assistant|>\n"


def test_chat_tokens_begin_each_piece_with_a_bos(folder):
    """As the tokenizer makes of each piece alone; its special tokens take the line end along."""
    preprocess = opened(folder, CHAT).preprocess
    row = preprocess(item(IMAGE, picture(28, 28)))
    backend = preprocess.prompt.tokenizer
    before, after = (
        backend.encode(piece).ids for piece in ("<|user|>\n", f"\n{IMAGE}<|end|>\n<|assistant|>\n")
    )
    images = len(row.tokens) - len(before) - len(after)
    assert row.tokens.tolist() == before + [0] * images + after
    assert before[0] == after[0] == backend.token_to_id("<s>") and images == 27  # 2 x 2 crops


def places(folder, text, count):
    """The rendered text of an item with so many images, and how many are missing."""
    preprocess = opened(folder, RAW).preprocess
    one = item(text, *(picture(9, 9, i) for i in range(count)))
    row = preprocess(one)
    shown = preprocess.prompt.shown(one)
    assert np.sum(row.slot >= 0) == 27 * len(shown)  # a square image is 2 x 2 crops
    assert (0 if row.patches is None else len(row.patches)) == 5 * count
    return preprocess.prompt.rendered(one), row.orphan_images


@pytest.mark.parametrize(
    ("text", "count", "rendered", "missing_images"),
    [
        ("<|image_2|> then <|image_1|>", 2, "<|image_2|> then <|image_1|>", 0),
        ("<|image_1|> and <|image_1|>", 1, "<|image_1|> and <|image_1|>", 0),
        ("no place", 2, "<|image_1|>\n<|image_2|>\nno place", 0),
        ("<|image_2|> only", 2, "<|image_1|>\n<|image_2|> only", 0),
        ("<|image_1|>\nan orphan", 0, "an orphan", 1),
        ("<|image_1|> <|image_3|>\n<|image_01|>", 1, "<|image_1|> ", 2),
        ("<|image<|image_7|>_1|>", 1, "<|image_1|>", 1),
        ("<|image_12|><|image_1|>", 1, "<|image_1|>", 1),
    ],
)
def test_numbers_of_images_count(folder, text, count, rendered, missing_images):
    assert places(folder, text, count) == (rendered, missing_images)


def test_long_texts_are_cut_inside(folder):
    """Never image tokens, the template, or what is pooled."""
    preprocess = opened(folder, CHAT, max_length=80).preprocess
    one = item("word " * 100, picture(28, 28))
    row, short = preprocess(one), preprocess(item("word", picture(28, 28)))
    assert len(row.tokens) == 80 and row.truncated > 50
    np.testing.assert_array_equal(row.tokens[-2:], short.tokens[-2:])
    assert np.sum(row.slot >= 0) == 27
    with pytest.raises(ValueError, match="image tokens, prompt template .* max_length is 30"):
        opened(folder, CHAT, max_length=30).preprocess(one)


def test_lines_are_no_images(folder):
    preprocess = opened(folder, RAW).preprocess
    with pytest.raises(ValueError, match="3000 x 1 pixels .* nothing of its height"):
        preprocess(item("", picture(1, 3000)))


def test_image_size_and_crops(folder):
    preprocess = opened(folder, Processing(prompt="raw", image_size=(20, 40), crops=8)).preprocess
    row = preprocess(item("", picture(31, 7)))
    assert len(row.patches) == 1 + 2 * 4
    own = opened(folder, Processing(prompt="raw")).preprocess
    assert len(own(item("", picture(7, 7))).patches) == 1 + 4  # preprocessor_config.json says 4


def test_preprocessors_are_picklable(folder):
    preprocess = opened(folder, CHAT).preprocess
    one = item("<|image_1|> a", picture(20, 30))
    a, b = preprocess(one), pickle.loads(pickle.dumps(preprocess))(one)
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(embd_layer={"hd_transform_order": "glb_sub"}), "embd_layer.embedding_cls"),
        (dict(img_processor={"name": "siglip"}), "img_processor.name"),
        (dict(rope_scaling={"type": "yarn"}), "rope_scaling.type is 'yarn'"),
        (dict(ROPE, rope_scaling=ROPE["rope_scaling"] | {"long_factor": [1.0]}), "long factors"),
        (dict(sliding_window=100), "sliding_window is 100"),
        (dict(hidden_act="relu"), "hidden_act"),
    ],
)
def test_what_is_not_done_is_said(tmp_path, changes, message):
    write_phi3_v(tmp_path, text=TEXT | ROPE | changes)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path)


def test_the_published_tower_needs_no_file(tmp_path):
    """CLIP ViT-L/14-336, which config.json only names."""
    write_phi3_v(tmp_path, vision=None)
    backbone = opened(tmp_path)
    _, shapes = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    layers = "vision_tower.encoder.layers"
    assert shapes[f"{layers}.mlp.fc1.kernel"].shape == (23, 1024, 4096)
    assert shapes["vision_tower.embeddings.position_embedding.embedding"].shape == (577, 1024)
    assert backbone.layout.patches == 576 and backbone.layout.patch_bytes == 588
    assert backbone.names.is_unused(
        "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.23.mlp.fc1.bias"
    )


def test_no_code_of_a_folder_runs_and_nobody_is_asked(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "folder")
    for name in ("configuration_phi3_v.py", "processing_phi3_v.py", "modeling_phi3_v.py"):
        (tmp_path / "folder" / name).write_text("raise RuntimeError('this must not run')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    assert opened(tmp_path / "folder").dimension == 16


# Weights


def with_tensors(folder, target, given, shards=1):
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    if shards == 1:
        save_file(given, target / "model.safetensors", metadata={"format": "pt"})
        return opened(target)
    weight_map = {name: f"part-{i % shards}.safetensors" for i, name in enumerate(given)}
    for file in set(weight_map.values()):
        part = {name: x for name, x in given.items() if weight_map[name] == file}
        save_file(part, target / file, metadata={"format": "pt"})
    index = json.dumps({"weight_map": weight_map})
    (target / "model.safetensors.index.json").write_text(index)
    return opened(target)


@pytest.mark.parametrize("absent", [None, WTE, EMBED])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back_changes_no_bit(folder, tmp_path, dtype, shards, absent):
    """Under the folder's own names: fused layers, and either name of the embeddings or both."""
    given = {n: x.astype(DTYPES[dtype]) for n, x in tensors(folder).items() if n != absent}
    backbone = with_tensors(folder, tmp_path / "given", given, shards)
    mesh = sharding.make_mesh(2, 2, 2) if shards == 3 else None
    parameters = backbone.load(targets(backbone, mesh, DTYPES[dtype]))
    (tmp_path / "saved").mkdir()
    backbone.save_weights(tmp_path / "saved", parameters, DTYPES[dtype])
    assert_same(tensors(tmp_path / "saved"), given)


def test_the_recorded_checkpoint_comes_back(golden, tmp_path):
    backbone = opened(golden)
    backbone.save_weights(tmp_path, load(backbone), FLOAT32)
    assert_same(tensors(tmp_path), tensors(golden))


def test_fused_layers_are_read_as_their_parts(folder):
    found, given = load(opened(folder)), tensors(folder)
    layer = "language_model.layers"
    for i in range(2):
        fused = [found[f"{layer}.self_attn.{x}_proj.kernel"][i].T for x in "qkv"]
        assert [len(x) for x in fused] == [16, 8, 8]
        expected = given[f"model.layers.{i}.self_attn.qkv_proj.weight"]
        np.testing.assert_array_equal(np.concatenate(fused), expected)
        fused = [found[f"{layer}.mlp.{x}_proj.kernel"][i].T for x in ("gate", "up")]
        expected = given[f"model.layers.{i}.mlp.gate_up_proj.weight"]
        np.testing.assert_array_equal(np.concatenate(fused), expected)


def test_trained_embeddings_are_written_under_both_names(folder, tmp_path):
    backbone = opened(folder)
    parameters = {path: 2 * x for path, x in load(backbone).items()}
    backbone.save_weights(tmp_path, parameters, FLOAT32)
    saved, given = tensors(tmp_path), tensors(folder)
    for name in (WTE, EMBED):
        np.testing.assert_array_equal(saved[name], 2 * given[name])
    np.testing.assert_array_equal(saved["lm_head.weight"], given["lm_head.weight"])


def test_shards_of_fused_layers(folder, tmp_path):
    backbone = opened(folder)
    weights.save(tmp_path, load(backbone), backbone.names, FLOAT32, shard_bytes=5_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 5
    given = tensors(folder)
    saved = tensors(tmp_path)
    unused = {n for n in given if backbone.names.is_unused(n)}
    assert_same(saved, {n: x for n, x in given.items() if n not in unused | {WTE}})


def test_misfits_are_listed(folder, tmp_path):
    given = tensors(folder)
    given[WTE] = given[WTE] + 1
    given["model.layers.0.self_attn.qkv_proj.weight"] = np.ones((31, 16), np.float32)
    del given["model.layers.1.mlp.gate_up_proj.weight"]
    backbone = with_tensors(folder, tmp_path / "given", given)
    with pytest.raises(ValueError) as error:
        load(backbone)
    text = str(error.value)
    assert "(3 problem(s))" in text
    assert re.search(r"differ +model.embed_tokens.weight and model.*, which are the same", text)
    assert "qkv_proj.weight: (31, 16) in the file, (32, 16) in the model" in text
    assert "missing     model.layers.1.mlp.gate_up_proj.weight (48, 16)" in text


# Adapters


class Tree(torch.nn.Module):
    """Linear layers by the names of a checkpoint's modules, without what is between them."""

    def __init__(self, given):
        super().__init__()
        for name, weight in given.items():
            module, (*path, leaf, _) = self, name.split(".")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            linear = torch.nn.Linear(*weight.shape[::-1], bias=False)
            linear.weight.data = torch.tensor(weight)
            module.add_module(leaf, linear)


def linears(folder):
    return {n: x for n, x in tensors(folder).items() if re.search(r"_proj\.weight$", n)}


VLM2VEC = [
    "qkv_proj",
    "o_proj",
    "gate_up_proj",
    "down_proj",
    "k_proj",
    "q_proj",
    "out_proj",
    "v_proj",
]


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
@pytest.mark.parametrize("dora", [False, True])
def test_published_adapters_are_merged_as_peft_does(folder, tmp_path, dora, mesh):
    """VLM2Vec's targets; adapters of the layer of the tower that is not read are ignored."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=VLM2VEC, use_dora=dora)
    model = peft.get_peft_model(Tree(linears(folder)), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
            elif "lora_" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter" / merging.CONFIG).read_text())
    record["base_model_name_or_path"] = str(folder)
    (tmp_path / "adapter" / merging.CONFIG).write_text(json.dumps(record))
    merged = {n: np.array(x) for n, x in model.merge_and_unload().state_dict().items()}
    assert merged.keys() == linears(folder).keys() and len(merged) == 4 * 2 + 4 * 3

    given = tensors(folder)
    expected = load(with_tensors(folder, tmp_path / "merged", given | merged))
    backbone = opened(tmp_path / "adapter")
    found = backbone.load(targets(backbone, sharding.make_mesh(*mesh) if mesh else None))
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-5, atol=1e-6, err_msg=path)
    (tmp_path / "saved").mkdir()
    backbone.save_weights(tmp_path / "saved", load(backbone), FLOAT32)
    saved = tensors(tmp_path / "saved")
    assert saved.keys() == given.keys()
    for name, x in (given | merged).items():
        np.testing.assert_allclose(saved[name], x, rtol=1e-5, atol=1e-6, err_msg=name)


ALL = r"(language_model|vision_tower)\..*\.(q|k|v|o|down|out|gate|up)_proj"
SOME = r"language_model\..*\.(q|v|up|o)_proj"


@pytest.mark.parametrize("targets_", [ALL, SOME])
@pytest.mark.parametrize("dora", [False, True])
def test_trained_adapters_are_one_per_fused_layer(folder, tmp_path, dora, targets_):
    """Read again by ours and by PEFT, they give the model that was trained."""
    backbone = opened(folder)
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    model = paths.merge(graph, load(backbone))
    config = lora.LoraConfig(3, 5.0, dora, ((targets_, True), (".*", False)))
    lora.add(model, config, key=jax.random.key(0))
    graph, parameters = paths.split(model)
    rng = np.random.default_rng(0)
    for path, x in parameters.items():
        if path.endswith(".lora_b"):
            parameters[path] = jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32)
        elif path.endswith(".lora_magnitude"):
            parameters[path] = x * jnp.asarray(rng.uniform(0.7, 1.3, x.shape), jnp.float32)
    adapters.save(tmp_path / "adapter", backbone, parameters, config, dtype=FLOAT32)
    model = paths.merge(graph, parameters)
    lora.merge(model, jnp.float32)
    _, expected = paths.split(model)
    found = load(opened(tmp_path / "adapter"))
    changed = 0
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-5, atol=1e-6, err_msg=path)
        changed += np.abs(found[path] - load(backbone)[path]).max() > 0.01
    assert changed == (7 + 4 if targets_ == ALL else 4)

    written = load_file(tmp_path / "adapter" / merging.WEIGHTS)
    stem = "base_model.model.model.layers.1."
    ranks = {"self_attn.qkv_proj": 9 if targets_ == ALL else 6, "self_attn.o_proj": 3}
    ranks["mlp.gate_up_proj"] = 6 if targets_ == ALL else 3
    for layer, rank in ranks.items():
        assert len(written[f"{stem}{layer}.lora_A.weight"]) == rank, layer
        assert (f"{stem}{layer}.lora_magnitude_vector" in written) == dora
    expected_file = with_saved(backbone, tmp_path / "whole", expected)
    theirs = peft.PeftModel.from_pretrained(Tree(linears(folder)), tmp_path / "adapter")
    for name, x in theirs.merge_and_unload().state_dict().items():
        np.testing.assert_allclose(x, expected_file[name], rtol=1e-5, atol=1e-6, err_msg=name)


def with_saved(backbone, folder, parameters):
    folder.mkdir()
    backbone.save_weights(folder, parameters, FLOAT32)
    return tensors(folder)


# Embeddings

ELEMENTS = [
    "a red circle left of a blue square",
    {"image": noise(40, 31, seed=1)},
    {"text": "<|image_1|>\nRepresent the given image", "image": noise(20, 61, seed=2)},
    {
        "text": "what is <|image_2|> beside <|image_1|>?",
        "image": [noise(9, 30), noise(30, 30, seed=3)],
    },
    "word " * 40,  # more than the 64 positions of short factors
    {"text": "<|image_1|> or <|image_1|>", "image": noise(33, 12, seed=4)},
]


@pytest.fixture(scope="module")
def embedder(folder):
    return Embedder.from_pretrained(folder, dtype="float32", max_length=300)


def test_embeddings_do_not_depend_on_their_neighbours(embedder):
    together = embedder.encode(ELEMENTS)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    alone = np.concatenate([embedder.encode([element]) for element in ELEMENTS])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    again = embedder.encode(ELEMENTS[::-1], batch_size=2)[::-1]
    np.testing.assert_allclose(together, again, atol=2e-6)
    assert np.max(together @ together.T - np.eye(len(ELEMENTS))) < 0.999


def test_images_go_by_their_number(embedder):
    a, b = noise(9, 30), noise(30, 30, seed=3)
    one, other, renamed = embedder.encode(
        [
            {"text": "<|image_1|> beside <|image_2|>", "image": [a, b]},
            {"text": "<|image_2|> beside <|image_1|>", "image": [a, b]},
            {"text": "<|image_2|> beside <|image_1|>", "image": [b, a]},
        ]
    )
    np.testing.assert_allclose(one, renamed, atol=2e-6)
    assert one @ other < 0.9999


def test_chat_and_half_precision(folder):
    chat = Embedder.from_pretrained(folder, dtype="float32", max_length=300, processing=CHAT)
    half = Embedder.from_pretrained(folder, dtype="bfloat16", max_length=300, processing=CHAT)
    exact, rounded = chat.encode(ELEMENTS), half.encode(ELEMENTS)
    assert np.all(np.sum(exact * rounded, axis=1) > 0.99)


def test_encoded_bytes_and_files_are_the_same(embedder, tmp_path):
    stream = io.BytesIO()
    noise(30, 20).save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    found = embedder.encode([{"image": stream.getvalue()}, {"image": tmp_path / "a.png"}])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
