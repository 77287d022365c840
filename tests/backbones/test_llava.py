"""LLaVA folders: processing of a run, wrong or missing files, no torch."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.backbones.images import encoded
from tests.backbones.llava_cases import CHAT, MARKED, RAW, picture, several
from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.tables import for_each
from unime_jax.backbones import open_backbone
from unime_jax.backbones.preprocessing.images import decode_images
from unime_jax.batch import Item, Media

# Processing


@for_each("name", ["onevision", "next-raw", "next-chat"])
def test_a_fixed_resolution_is_a_resize_before_everything_else(llavas, name):
    """As in the originals: the processor sees an image that already has the size."""
    case = llavas[name]
    processing = dataclasses.replace(case.backbone.processing, image_size=(56, 30))
    fixed = open_backbone(str(case.folder), max_length=10_000, processing=processing)
    item = several((40, 23), (128, 97))
    resized = [
        image.resize((30, 56), Image.Resampling.BICUBIC) for image in decode_images(item, None)
    ]
    media = tuple(Media(f"{i}.png", encoded(image)) for i, image in enumerate(resized))
    for ours, theirs in (
        (fixed.preprocess(item), case.preprocess(Item(MARKED, media))),
        (fixed.preprocess(several((40, 23))), case.preprocess(Item(MARKED, media[:1]))),
    ):
        for field in ("tokens", "slot", "patches"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))

    # So is one with a name.
    named, sized = (
        open_backbone(
            str(case.folder),
            max_length=10_000,
            processing=dataclasses.replace(case.backbone.processing, **{key: size}),
        )
        for key, size in {"resolution": "low", "image_size": (128, 128)}.items()
    )
    ours, theirs = named.preprocess(item).patches, sized.preprocess(item).patches
    np.testing.assert_array_equal(ours, theirs)


def test_processing_is_the_families_own_or_that_of_the_run(llavas):
    # Pinpoints of a run replace the checkpoint's.
    for name in ("onevision", "next-raw"):
        case, pinpoints = llavas[name], ((28, 28),)
        processing = dataclasses.replace(case.backbone.processing, pinpoints=pinpoints)
        backbone = open_backbone(str(case.folder), max_length=10_000, processing=processing)
        assert len(backbone.preprocess(picture(120, 90)).patches) == 2
        assert backbone.config_changes == {"image_grid_pinpoints": pinpoints}
        assert backbone.image_processor_changes == {"image_grid_pinpoints": pinpoints}
        assert case.backbone.config_changes == case.backbone.image_processor_changes == {}
        wrong = dataclasses.replace(processing, pinpoints=((28, 30),))
        with pytest.raises(ValueError, match="^pinpoints are .* multiples of .* 28"):
            open_backbone(str(case.folder), max_length=99, processing=wrong)

    # The families' own processing.
    assert llavas["onevision"].backbone.processing == CHAT
    assert llavas["next-raw"].backbone.processing == RAW


# Folders


def write(name: str, folder: pathlib.Path) -> pathlib.Path:
    return write_folder(folder) if name == "onevision" else write_llava_next(folder)


@for_each("name", ["onevision", "next"])
@for_each("file", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(tmp_path, name, file):
    (write(name, tmp_path) / file).unlink()
    with pytest.raises(ValueError, match=f"{tmp_path} has no {file}"):
        open_backbone(str(tmp_path), max_length=99)


WRONG = [
    ("onevision", "config.json", "vision_aspect_ratio", "square"),
    ("onevision", "config.json", "vision_feature_select_strategy", "default"),
    ("onevision", "config.json", "image_grid_pinpoints", [[28, 30]]),
    ("onevision", "config.json", "image_grid_pinpoints", []),
    ("onevision", "config.json", "image_token_index", 3),
    ("onevision", "config.json", "projector_hidden_act", "softmax"),
    ("onevision", "preprocessor_config.json", "image_grid_pinpoints", [[28, 28]]),
    ("onevision", "preprocessor_config.json", "size", {"height": 14, "width": 14}),
    ("onevision", "preprocessor_config.json", "do_convert_rgb", False),
    ("onevision", "preprocessor_config.json", "image_mean", None),
    ("next", "config.json", "vision_feature_select_strategy", "full"),
    ("next", "config.json", "vision_feature_layer", [-2, -1]),
    ("next", "config.json", "vision_feature_layer", 0),
    ("next", "config.json", "vision_feature_layer", -4),
    ("next", "preprocessor_config.json", "size", {"shortest_edge": 14}),
    ("next", "preprocessor_config.json", "crop_size", {"height": 14, "width": 14}),
    ("next", "preprocessor_config.json", "crop_size", None),
    ("next", "preprocessor_config.json", "do_normalize", False),
]


@for_each("name, file, key, value", WRONG)
def test_a_wrong_key_is_named(tmp_path, name, file, key, value):
    path = write(name, tmp_path) / file
    content = {**json.loads(path.read_text()), key: value}
    if value is None:
        del content[key]
    path.write_text(json.dumps(content))
    key = "image token" if key == "image_token_index" else key
    with pytest.raises(ValueError, match=rf"(?s){file}.*{key}|{key}.*{file}"):
        open_backbone(str(tmp_path), max_length=99)


@for_each("name", ["onevision", "next"])
def test_a_newer_folder_has_its_image_processor_in_processor_config(tmp_path, name):
    folder = write(name, tmp_path)
    before = open_backbone(str(folder), max_length=999).preprocess(picture())
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    after = open_backbone(str(folder), max_length=999).preprocess(picture())
    np.testing.assert_array_equal(before.patches, after.patches)
    np.testing.assert_array_equal(before.tokens, after.tokens)
