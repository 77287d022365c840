"""Qwen2-VL folders: rows against transformers' processor, settings, names and full sizes."""

import dataclasses
import functools
import io
import json
import pickle
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2VLForConditionalGeneration,
)

from tests.backbones.images import encoded, noise
from tests.backbones.tiny_families import DECODER, write_qwen2_vl
from tests.models.oracle import load, pair_of
from unime_jax import paths
from unime_jax.backbones import Processing, open_backbone
from unime_jax.backbones.io import weights
from unime_jax.backbones.qwen2_vl import qwen2_vl
from unime_jax.batch import Item, Media
from unime_jax.data.packing import fill_buckets
from unime_jax.data.shapes import BatchShapes, Bucket

RAW, CHAT = Processing(prompt="raw"), Processing(prompt="chat")
START, PAD, END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"), max_pixels=100 * 64)


@pytest.fixture(scope="module")
def torch_model(folder):
    return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))


def opened(folder, processing=None, max_length=512):
    return open_backbone(str(folder), max_length=max_length, processing=processing)


def picture(width, height, seed=0):
    return Media(f"{seed}.png", encoded(noise(width, height, seed=seed)))


def item(text, *pictures):
    return Item(text, pictures)


@functools.cache
def three(folder, processing):
    """Our preprocessor, transformers' image processor and its tokenizer."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return (
        opened(folder, processing).preprocess,
        processor,
        AutoTokenizer.from_pretrained(folder),
    )


def check_row(folder, processing, one, torch_model):
    """Every field of a row against transformers' steps."""
    preprocess, processor, tokenizer = three(folder, processing)
    row, text = preprocess(one), preprocess.prompt.rendered(one)
    assert text.count(PAD) == len(one.media)
    images = [Image.open(io.BytesIO(image.data)) for image in one.media]
    seen = processor(images, do_rescale=False, do_normalize=False, return_tensors="np")
    grids = seen["image_grid_thw"]
    pieces = text.split(PAD)
    for i, (_, height, width) in enumerate(grids):
        pieces[i] += PAD * (height * width // 4)
    ids = tokenizer("".join(pieces))["input_ids"]
    assert row.tokens.tolist() == ids
    is_image = row.tokens == torch_model.config.image_token_id
    assert row.slot.shape == (len(ids), 1) and row.slot_weight is None
    np.testing.assert_array_equal(row.slot[:, 0] >= 0, is_image)
    # What the slots point at, four patches each, are the processor's patches in order.
    patches, place = row.patches.reshape(-1, 48), row.patch_position.reshape(-1, 3)
    used = (4 * row.slot[is_image] + np.arange(4)).ravel()
    theirs = seen["pixel_values"].reshape(-1, 3, 2, 16)[:, :, 0].reshape(-1, 48)
    np.testing.assert_array_equal(patches[used], theirs)
    counts = [int(np.prod(grid)) for grid in grids]
    np.testing.assert_array_equal(place[used, 0], np.repeat(np.arange(len(grids)), counts))
    rest = np.setdiff1d(np.arange(len(place)), used)
    assert (place[rest] == -1).all() and not patches[rest].any()
    # Every image starts a tile.
    assert {row.patch_position[n, 0, 0] for n in range(len(row.patches))} == set(range(len(grids)))
    positions, _ = torch_model.model.get_rope_index(
        torch.tensor([ids]),
        torch.tensor(is_image.astype(np.int32))[None],
        image_grid_thw=torch.tensor(grids),
    )
    plain = processing.prompt == "raw" and not processing.grid_positions
    expected = np.arange(len(ids))[:, None].repeat(3, 1) if plain else positions[:, 0].T
    np.testing.assert_array_equal(row.positions, expected)


@pytest.mark.parametrize("processing", [RAW, CHAT, dataclasses.replace(RAW, grid_positions=True)])
@given(st.lists(st.tuples(st.integers(2, 150), st.integers(2, 150)), min_size=1, max_size=3))
@settings(max_examples=12)
def test_rows_equal_transformers(folder, torch_model, processing, sizes):
    pictures = [picture(width, height, i) for i, (width, height) in enumerate(sizes)]
    one = item("<|image_1|>\nis left of <|image_2|> in the picture", *pictures)
    check_row(folder, processing, one, torch_model)


KINDS = {
    "RGBA": encoded(noise(40, 23, "RGBA")),
    "L": encoded(noise(40, 23, "L")),
    "P": encoded(noise(40, 23).quantize(16), transparency=3),
    "JPEG": encoded(noise(40, 23), "JPEG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image(folder, torch_model, kind):
    one = Item("<|image_1|>\nwhat?", (Media("a", KINDS[kind]),))
    check_row(folder, RAW, one, torch_model)


def test_normalised_bytes_are_the_processors_pixels(folder):
    one = item("<|image_1|>", picture(60, 41))
    backbone = opened(folder)
    row = backbone.preprocess(one)
    pixels = jax.eval_shape(backbone.make_model, jax.random.key(0)).pixels
    mean, std = (np.repeat(x, 16) for x in (pixels.mean, pixels.std))
    normal = (row.patches.reshape(-1, 48) * pixels.scale - mean) / std
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    image = Image.open(io.BytesIO(one.media[0].data))
    theirs = processor([image], return_tensors="np")["pixel_values"].reshape(-1, 3, 2, 16)
    np.testing.assert_allclose(
        normal[: len(theirs)], theirs[:, :, 0].reshape(-1, 48), atol=1e-6, rtol=0
    )


def test_text_rows(folder):
    for processing in (RAW, CHAT):
        row = opened(folder, processing).preprocess(Item("a red circle"))
        np.testing.assert_array_equal(
            row.positions, np.arange(len(row.tokens))[:, None].repeat(3, 1)
        )
        assert row.patches is None and row.patch_position is None and (row.slot == -1).all()


def test_rows_and_columns_follow_vision_start_also_in_raw_text(folder):
    """Of two images, the one that stands after the token; the other is numbered like text."""
    backbone = opened(folder, RAW)
    one = item(f"{START}<|image_1|>{END} or <|image_2|>", picture(40, 23, 0), picture(60, 41, 1))
    row = backbone.preprocess(one)
    counts = [(row.patch_position[..., 0] == i).sum() // 4 for i in range(2)]
    first, second = np.split(np.flatnonzero(row.slot[:, 0] >= 0), [counts[0]])
    assert len(set(row.positions[first, 0])) == 1 < len(set(row.positions[first, 1]))
    assert (row.positions[second] == row.positions[second, :1]).all()
    assert (np.diff(row.positions[second, 0]) == 1).all()
    height, width = 3, 5  # 40 x 23 pixels in tokens of 8 x 8
    assert counts[0] == height * width
    after = row.positions[first[-1] + 1]
    assert after.tolist() == [row.positions[first[0], 0] + width] * 3


def test_rows_fit_the_layout(folder):
    backbone = opened(folder)
    items = [Item("a text"), item("<|image_1|>", picture(100, 100), picture(20, 9, 1))]
    shapes = BatchShapes((Bucket(256, 5),), backbone.layout, 2, 2)
    groups, _ = fill_buckets([backbone.preprocess(one) for one in items], shapes)
    assert groups[0].patches.shape[-2:] == (256, 48)
    assert (groups[0].patch_position[0, 0] == -1).all()
    numbers = groups[0].patch_position[0, 1, :, :, 0]
    assert (numbers[0] >= 0).all() and (numbers == 0).sum() == 400 - 400 % 16  # two tiles
    assert (numbers[2] == 1).sum() == 2 * 3 * 4 and (numbers[3:] == -1).all()


@pytest.mark.parametrize(
    ("size", "tokens", "tiles"),
    [((224, 224), 64, 1), ((336, 336), 144, 3), ((672, 672), 576, 9), ((1344, 1344), 2304, 36)],
)
def test_tokens_and_tiles_at_real_sizes(real, size, tokens, tiles):
    row = real.preprocess(item("<|image_1|>", picture(*size)))
    assert (row.slot >= 0).sum() == tokens and len(row.patches) == tiles
    assert row.patches.shape[1:] == (256, 588)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Geometry of the published models, limits included."""
    folder = write_qwen2_vl(
        tmp_path_factory.mktemp("real"), patch=14, min_pixels=3136, max_pixels=12845056
    )
    return opened(folder, max_length=4096)


def test_a_row_that_is_too_long(real):
    short = dataclasses.replace(
        real.preprocess, prompt=dataclasses.replace(real.preprocess.prompt, max_length=600)
    )
    text = " ".join(["a red circle"] * 20)
    row = short(item(f"<|image_1|>\n{text}", picture(672, 672)))
    assert len(row.tokens) == len(row.positions) == len(row.slot) == 600
    assert row.truncated > 0 and (row.slot >= 0).sum() == 576
    with pytest.raises(ValueError, match="are 2305 tokens, and max_length is 600"):
        short(item(f"<|image_1|>\n{text}", picture(1344, 1344)))


def test_items_that_are_no_rows_are_named(folder):
    preprocess = opened(folder).preprocess
    with pytest.raises(ValueError, match=r"'a text' with image '0.png': .*1 x 300 .* a line"):
        preprocess(item("a text", picture(300, 1)))
    with pytest.raises(ValueError, match="'b.png' is missing"):
        preprocess(Item("a text", (Media("b.png"),)))


def test_orphans_are_counted_and_left_out(folder):
    row = opened(folder).preprocess(Item("<|image_1|>\na text"))
    assert row.orphan_images == 1 and row.patches is None
    assert row.tokens.tolist() == opened(folder).preprocess(Item("a text")).tokens.tolist()


def test_a_fixed_resolution_comes_first(folder):
    backbone = opened(folder, dataclasses.replace(RAW, image_size=(40, 24)))
    one = noise(90, 33)
    direct = opened(folder).preprocess(item("x", Media("a", encoded(one.resize((24, 40))))))
    row = backbone.preprocess(item("x", Media("a", encoded(one))))
    np.testing.assert_array_equal(row.patches, direct.patches)
    assert (row.slot >= 0).sum() == 15


def test_it_survives_pickling(folder):
    preprocess = opened(folder).preprocess
    one = item("<|image_1|>\na text", picture(60, 41))
    ours, theirs = preprocess(one), pickle.loads(pickle.dumps(preprocess))(one)
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    np.testing.assert_array_equal(ours.patches, theirs.patches)


def test_neither_torch_nor_torchvision_is_needed(folder, tmp_path):
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'tensorflow'): sys.modules[name] = None\n"
        "from unime_jax.backbones import open_backbone\n"
        "from unime_jax.batch import Item, Media\n"
        "image = open(sys.argv[2], 'rb').read()\n"
        "preprocess = open_backbone(sys.argv[1], max_length=999).preprocess\n"
        "print(len(preprocess(Item('x', (Media('a.png', image),))).patches))"
    )
    (tmp_path / "a.png").write_bytes(encoded(noise(100, 100)))
    found = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["2"]


# Settings


def edit(folder, file, **changes):
    """Changes keys of a JSON file of the folder; None removes one."""
    content = json.loads((folder / file).read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / file).write_text(json.dumps(kept))


SPELLINGS = {
    "hub": dict(),
    "newer": dict(
        min_pixels=None, max_pixels=None, size={"shortest_edge": 256, "longest_edge": 1024}
    ),
    "both": dict(size={"shortest_edge": 256, "longest_edge": 1024}),
    "half": dict(min_pixels=None, size={"shortest_edge": 256, "longest_edge": 99999}),
    "silent": dict(min_pixels=None, max_pixels=None),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_pixels_in_every_spelling(tmp_path, spelling):
    """Read as transformers reads them; and overruled so that it does what we do."""
    folder = write_qwen2_vl(tmp_path, min_pixels=256, max_pixels=1024)
    edit(folder, "preprocessor_config.json", **SPELLINGS[spelling])

    def grids(processing):
        preprocess = opened(folder, processing).preprocess
        theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
        for size in ((8, 8), (40, 23), (100, 150)):
            image = noise(*size)
            grid = theirs([image], return_tensors="np")["image_grid_thw"][0]
            assert preprocess._grid(image) == tuple(grid[1:])

    grids(RAW)
    assert opened(folder, RAW).image_processor_changes == {}
    overruled = dataclasses.replace(RAW, pixels=(512, 4096))
    changes = opened(folder, overruled).image_processor_changes
    before = json.loads((folder / "preprocessor_config.json").read_text())
    if spelling != "silent":
        assert set(changes) <= set(before) | {"min_pixels"}  # no third spelling
    edit(folder, "preprocessor_config.json", **changes)
    grids(overruled)
    grids(RAW)


def test_a_newer_folder_has_its_image_processor_in_processor_config(folder, tmp_path):
    newer = shutil.copytree(folder, tmp_path / "newer")
    settings = json.loads((newer / "preprocessor_config.json").read_text())
    (newer / "preprocessor_config.json").unlink()
    (newer / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    one = item("<|image_1|>", picture(60, 41))
    found, expected = (opened(f).preprocess(one).patches for f in (newer, folder))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("preprocessor_config.json", {"patch_size": 14}, "patch_size is 14, but it must be 4"),
        ("preprocessor_config.json", {"merge_size": 3}, "merge_size is 3"),
        ("preprocessor_config.json", {"temporal_patch_size": 1}, "temporal_patch_size is 1"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize is False"),
        ("preprocessor_config.json", {"size": {"height": 3}}, "must have 'shortest_edge'"),
        ("preprocessor_config.json", {"min_pixels": 9999}, "pixels are 9999 to 6400"),
        ("config.json", {"rope_scaling": {"type": "default"}}, "mrope_section must be three"),
        (
            "config.json",
            {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}},
            "add up to half a head, 4, and is ",
        ),
        ("config.json", {"hidden_act": "relu"}, "text_config.hidden_act is 'relu'"),
        ("config.json", {"hidden_size": 32}, "vision_config.hidden_size is 16"),
    ],
)
def test_a_folder_that_asks_for_something_else(folder, tmp_path, file, changes, message):
    wrong = shutil.copytree(folder, tmp_path / "wrong")
    edit(wrong, file, **changes)
    with pytest.raises(ValueError, match=message):
        opened(wrong)


def test_pixels_that_are_no_range(folder):
    with pytest.raises(ValueError, match="processing.pixels are 9 to 3"):
        opened(folder, dataclasses.replace(RAW, pixels=(9, 3)))


def test_the_familys_own_processing(folder):
    assert opened(folder).processing == RAW


# Weights

NAMES = {
    "hub": lambda name: name,
    "nested": lambda name: (
        name
        if name.startswith("lm_head")
        else "model." + name
        if name.startswith("visual")
        else name.replace("model.", "model.language_model.", 1)
    ),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spelling", NAMES)
def test_there_and_back_changes_no_bit(tmp_path, spelling, tied):
    folder = write_qwen2_vl(tmp_path / "given", text=DECODER | {"tie_word_embeddings": tied})
    pair = pair_of(folder)
    given = {NAMES[spelling](n): x for n, x in load_file(folder / weights.SINGLE).items()}
    assert ("lm_head.weight" in given) != tied
    assert ("model.language_model.norm.weight" in given) == (spelling == "nested")
    save_file(given, folder / weights.SINGLE, metadata={"format": "pt"})
    backbone = opened(folder)
    parameters = load(backbone)
    for path, value in parameters.items():
        np.testing.assert_array_equal(value, pair.parameters[path])
    saved = shutil.copytree(
        folder, tmp_path / "saved", ignore=shutil.ignore_patterns("*.safetensors")
    )
    backbone.save_weights(saved, parameters, np.dtype(np.float32))
    found = load_file(saved / weights.SINGLE)
    assert found.keys() == given.keys()
    for name in given:
        assert found[name].shape == given[name].shape, name
        assert found[name].tobytes() == given[name].tobytes(), name
    model, info = Qwen2VLForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values()), info
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, pair.torch_model.state_dict()[name], rtol=0, atol=0)


SIZES = {  # of the published config.json files
    "2b": (dict(hidden_size=1536, intermediate_size=8960, num_attention_heads=12), 2, 151936),
    "7b": (dict(hidden_size=3584, intermediate_size=18944, num_attention_heads=28), 4, 152064),
}
PARAMETERS = {"2b": 2_208_985_600, "7b": 8_291_375_616 - 152064 * 3584}  # without a head


@pytest.mark.parametrize("size", SIZES)
def test_every_parameter_at_full_size(tmp_path, size):
    """Names and shapes of transformers' model, which only has its language-model head on top."""
    widths, kv_heads, vocabulary = SIZES[size]
    folder = write_qwen2_vl(
        tmp_path,
        patch=14,
        mrope_section=(16, 24, 24),
        vision=dict(embed_dim=1280, depth=32, num_heads=16, mlp_ratio=4),
        text=widths
        | dict(
            num_hidden_layers=28,
            num_key_value_heads=kv_heads,
            vocab_size=vocabulary,
            tie_word_embeddings=size == "2b",
        ),
    )
    backbone = opened(folder)
    model = jax.eval_shape(backbone.make_model, jax.random.key(0))
    attention = model.language_model.layers.self_attn
    assert backbone.dimension == widths["hidden_size"] and attention.head_dim == 128
    assert attention.q_proj.bias is not None and model.language_model.rope_theta == 1e6
    _, shapes = paths.split(model)
    entries = weights.table({path: x.shape for path, x in shapes.items()}, backbone.names)
    ours = {NAMES["nested"](name): entry.shape for entry in entries for name in entry.names}
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    theirs = {name: tuple(x.shape) for name, x in model.named_parameters()}
    head = {} if size == "2b" else {"lm_head.weight": (vocabulary, widths["hidden_size"])}
    assert ours | head == theirs
    assert sum(x.size for x in shapes.values()) == PARAMETERS[size]


def test_the_tile_is_what_the_layout_says(folder, monkeypatch):
    assert opened(folder).layout.patches == qwen2_vl.TILE == 256
    monkeypatch.setattr(qwen2_vl, "TILE", 32)
    backbone = opened(folder)
    row = backbone.preprocess(item("x", picture(40, 40)))
    assert backbone.layout.patches == 32 and row.patches.shape == (4, 32, 48)
    monkeypatch.setattr(qwen2_vl, "TILE", 30)
    with pytest.raises(ValueError, match="do not fill a tile of 30"):
        opened(folder)
