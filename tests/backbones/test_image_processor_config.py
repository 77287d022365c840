"""Image-processor settings: of two files the one that transformers 5 reads counts."""

import json
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from transformers import AutoImageProcessor

from tests.backbones.images import encoded, noise
from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_llava_qwen import write_llava_qwen
from tests.backbones.tiny_phi3_v import write_phi3_v
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.backbones.tiny_qwen3 import write_qwen3_vl
from tests.tables import for_each
from unime_jax.backbones import Backbone, open_backbone
from unime_jax.backbones.backbone import Preprocessor
from unime_jax.backbones.preprocessing import image_processor_config
from unime_jax.backbones.preprocessing.image_processor_config import (
    AREAS,
    FILE,
    KEYS,
    NESTED,
    PROCESSOR_FILE,
)
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.batch import Item, Media
from unime_jax.export import folder as export_folder
from unime_jax.models.vlm import normalise

WRITE = {
    "llava_onevision": write_folder,
    "llava_next": write_llava_next,
    "qwen2_vl": write_qwen2_vl,
    "qwen3_vl": write_qwen3_vl,
}
ITEM = Item("<|image_1|>\nx", (Media("a.png", encoded(noise(61, 37))),))


def read(file: pathlib.Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def edit(file: pathlib.Path, **changes: Any) -> None:
    content = read(file) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def opened(folder: pathlib.Path, processing: Processing | None = None) -> Backbone:
    return open_backbone(str(folder), max_length=9999, processing=processing)


def pixels(backbone: Backbone) -> np.ndarray:
    """What the model sees of ITEM, patch by patch."""
    model: Any = jax.eval_shape(backbone.make_model, jax.random.key(0))
    patches = backbone.preprocess(ITEM).patches
    return np.asarray(normalise(patches.reshape(-1, patches.shape[-1]), model.pixels))


def assert_as_transformers(folder: pathlib.Path) -> None:
    """The pixels are those of transformers' image processor, which finds its files itself."""
    backbone = opened(folder)
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    preprocess: Preprocessor = backbone.preprocess
    expected = preprocess.as_patches(theirs([[noise(61, 37)]], return_tensors="np"))
    found = pixels(backbone)
    np.testing.assert_allclose(found[: len(expected)], expected, atol=1e-5)


def nest(folder: pathlib.Path, **changes: Any) -> None:
    """What transformers 5 saves: the settings in processor_config.json, the old file as it was."""
    edit(folder / PROCESSOR_FILE, **{NESTED: read(folder / FILE) | changes})


def written(folder: pathlib.Path, model_type: str) -> pathlib.Path:
    return WRITE[model_type](folder)


@for_each("model_type", WRITE)
def test_what_a_processor_saved_counts(tmp_path, model_type, caplog):
    """The case of an image processor that was changed and saved by transformers 5."""
    folder = written(tmp_path, model_type)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    processor.image_mean = [0.1, 0.2, 0.3]
    edit(folder / PROCESSOR_FILE, **{NESTED: json.loads(processor.to_json_string())})
    before = read(folder / FILE)["image_mean"]
    assert_as_transformers(folder)
    assert opened(folder).preprocess.prompt is not None
    assert f"image_mean is [0.1, 0.2, 0.3] and {before}" in caplog.text
    assert "The first counts, as in transformers 5; transformers 4 reads the second" in caplog.text
    (folder / FILE).unlink()
    caplog.clear()
    assert_as_transformers(folder)
    assert "disagree" not in caplog.text


@for_each("model_type", WRITE)
@for_each(
    "changes",
    [
        {"image_std": [0.3, 0.4, 0.5], "resample": 2},
        {"rescale_factor": 1 / 127.5, "image_mean": 0.5, "image_std": 0.25},
    ],
)
def test_every_setting_of_the_file_that_counts(tmp_path, model_type, changes):
    folder = written(tmp_path, model_type)
    nest(folder, **changes)
    assert_as_transformers(folder)


@for_each("model_type", WRITE)
def test_defaults_are_those_of_the_familys_own_class(tmp_path, model_type):
    # What the file lacks is the class's default, and not what the other file says.
    folder = written(tmp_path, model_type)
    nest(folder)
    content = read(folder / PROCESSOR_FILE)
    for key in ("resample", "rescale_factor", "do_normalize", "do_convert_rgb"):
        content[NESTED].pop(key, None)
    (folder / PROCESSOR_FILE).write_text(json.dumps(content))
    edit(folder / FILE, resample=2, rescale_factor=0.5, do_normalize=False)
    assert_as_transformers(folder)

    # Settings of another class are refused.
    (tmp_path := tmp_path / "other").mkdir()
    folder = written(tmp_path, model_type)
    nest(folder, image_processor_type="CLIPImageProcessor")
    message = f"{PROCESSOR_FILE}: image_processor_type is 'CLIPImageProcessor'; this family has"
    with pytest.raises(ValueError, match=message):
        opened(folder)
    kind = read(folder / FILE)["image_processor_type"].removesuffix("Pil")
    for suffix in ("", "Fast", "Pil"):
        nest(folder, image_processor_type=kind + suffix)
        opened(folder)


@for_each("model_type", WRITE)
@for_each("key", ["image_mean", "resample", "rescale_factor", "do_normalize"])
def test_null_is_no_default(tmp_path, model_type, key):
    """transformers fails, or leaves the step out without a word."""
    folder = written(tmp_path, model_type)
    nest(folder, **{key: None})
    with pytest.raises(ValueError, match=f"{PROCESSOR_FILE}: {key} is (null|missing)"):
        opened(folder)


def test_sizes_are_those_of_the_file_that_counts_in_any_spelling(tmp_path, caplog):
    # Pixels of Qwen2-VL are those of the file that counts.
    folder = write_qwen2_vl(tmp_path)
    own = read(folder / FILE)
    size = {"shortest_edge": own.pop("min_pixels"), "longest_edge": own.pop("max_pixels")}
    edit(folder / PROCESSOR_FILE, **{NESTED: own | {"size": size}})
    assert_as_transformers(folder)
    assert "disagree" not in caplog.text  # the same in two spellings
    size["longest_edge"] = 4096
    edit(folder / PROCESSOR_FILE, **{NESTED: own | {"size": size}})
    assert opened(folder).preprocess.pixels == (256, 4096)
    assert_as_transformers(folder)
    assert "size is {'shortest_edge': 256, 'longest_edge': 4096} and" in caplog.text

    # Pinpoints are those of the file that counts.
    (tmp_path := tmp_path / "next").mkdir()
    folder = write_llava_next(tmp_path)
    nest(folder)
    edit(folder / FILE, image_grid_pinpoints=[[28, 28]])  # would be refused: not config.json's
    assert_as_transformers(folder)

    # Crops of Phi-3-V are those of the file that counts.
    (tmp_path := tmp_path / "next").mkdir()
    folder = write_phi3_v(tmp_path / "phi3_v")
    nest(folder, num_crops=2, image_mean=[0.1, 0.2, 0.3])
    processing = Processing(prompt="raw", crops=None)
    backbone = opened(folder, processing)
    assert backbone.preprocess.crops == 2
    model: Any = jax.eval_shape(backbone.make_model, jax.random.key(0))
    assert model.pixels.mean == (0.1, 0.2, 0.3)
    edit(folder / PROCESSOR_FILE, **{NESTED: None})
    assert opened(folder, processing).preprocess.crops == read(folder / FILE)["num_crops"]
    edit(folder / FILE, rescale_factor=0.5)
    with pytest.raises(ValueError, match="rescale_factor is 0.5; the original's code does not rea"):
        opened(folder)

    (tmp_path := tmp_path / "next").mkdir()
    # Sizes may be numbers.
    folder = write_llava_next(tmp_path)
    edit(folder / FILE, size=28, crop_size=28)
    assert_as_transformers(folder)

    # LLaVA-NeXT's class cuts 224 pixels out of every tile where nothing is said.
    (tmp_path := tmp_path / "crop").mkdir()
    folder = write_llava_next(tmp_path)
    content = read(folder / FILE)
    del content["do_center_crop"], content["crop_size"]
    (folder / FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="crop_size is {'height': 224, 'width': 224}, but it must"):
        opened(folder)


@for_each("content", ["[]", "{", '{"image_processor": "x"}'])
def test_a_damaged_file_is_named(tmp_path, content):
    folder = write_llava_next(tmp_path)
    (folder / PROCESSOR_FILE).write_text(content)
    with pytest.raises(ValueError, match=f"{PROCESSOR_FILE}( is not JSON|: image| holds a list)"):
        opened(folder)


def test_processor_keys_that_do_not_fit_the_model_are_said(tmp_path, caplog):
    folder = write_llava_next(tmp_path)
    edit(folder / PROCESSOR_FILE, patch_size=14, num_additional_image_tokens=0)
    with caplog.at_level(logging.WARNING):
        opened(folder)
    assert "num_additional_image_tokens is 0, and by config.json 1" in caplog.text
    assert "patch_size is 14, and by config.json 7" in caplog.text


# Exports


def exported(backbone: Backbone, target: pathlib.Path) -> pathlib.Path:
    """The files of an export beside its weights."""
    target.mkdir()
    export_folder.copy_files(backbone.folder, target)
    if backbone.convert:
        backbone.convert(target)
    image_processor_config.write(
        target,
        settings=backbone.image_processor_changes,
        processor=backbone.processor_config,
    )
    return target


def assert_alike(folder: pathlib.Path) -> None:
    """Both files say the same, in every spelling."""
    nested, own = read(folder / PROCESSOR_FILE)[NESTED], read(folder / FILE)
    for key in (*KEYS, *AREAS):
        assert nested.get(key) == own.get(key), key
    assert not own["image_processor_type"].endswith("Pil")


@for_each("model_type", WRITE)
def test_exports_have_one_truth(model_type, tmp_path):
    folder = written(tmp_path, model_type)
    nest(folder, image_mean=[0.1, 0.2, 0.3])
    edit(folder / FILE, a_key_of_the_wrong_file=1)
    edit(folder / PROCESSOR_FILE, patch_size=99)
    expected = pixels(opened(folder))
    for name in ("once", "again"):
        folder = exported(opened(folder), tmp_path / name)
        nested, own = read(folder / PROCESSOR_FILE)[NESTED], read(folder / FILE)
        assert nested == own and own["image_mean"] == [0.1, 0.2, 0.3]
        assert "a_key_of_the_wrong_file" not in own
        assert_as_transformers(folder)
        np.testing.assert_array_equal(pixels(opened(folder)), expected)
    if read(folder / "config.json")["model_type"] == "llava_next":
        assert read(folder / PROCESSOR_FILE)["patch_size"] == 7


def test_exports_have_the_overrides_of_a_run_and_the_files_that_others_read(tmp_path, caplog):
    # Overrides of a run are in both files.
    folder = write_qwen2_vl(tmp_path / "folder")
    nest(folder)
    processing = Processing(prompt="raw", pixels=(512, 2048))
    folder = exported(opened(folder, processing), tmp_path / "exported")
    assert_alike(folder)
    assert opened(folder).preprocess.pixels == (512, 2048)
    assert_as_transformers(folder)
    processing = Processing(prompt="raw", pixels=(1024, 4096))  # and overruled once more
    folder = exported(opened(folder, processing), tmp_path / "again")
    assert_alike(folder)
    assert opened(folder).preprocess.pixels == (1024, 4096)
    assert "disagree" not in caplog.text

    folder = write_llava_next(tmp_path / "llava_next")
    nest(folder, image_processor_type="LlavaNextImageProcessorPil")
    processing = Processing(prompt="raw", pinpoints=((28, 28),))
    folder = exported(opened(folder, processing), tmp_path / "llava_exported")
    assert_alike(folder)
    assert read(folder / FILE)["image_grid_pinpoints"] == [[28, 28]]

    # Older transformers know preprocessor_config.json alone, and the oldest min_pixels and
    # max_pixels alone.
    (tmp_path := tmp_path / "newer").mkdir()
    folder = write_qwen2_vl(tmp_path / "folder")
    own = read(folder / FILE)
    size = {"shortest_edge": own.pop("min_pixels"), "longest_edge": own.pop("max_pixels")}
    edit(folder / PROCESSOR_FILE, **{NESTED: own | {"size": size}})
    (folder / FILE).unlink()
    folder = exported(opened(folder), tmp_path / "exported")
    found = read(folder / FILE)
    assert (found["min_pixels"], found["max_pixels"], found["size"]) == (256, 1024, size)

    # LLaVE's folders are read without them; its exports have those of LLaVA-OneVision.
    (tmp_path := tmp_path / "other").mkdir()
    folder = write_llava_qwen(tmp_path / "llave")
    edit(folder / PROCESSOR_FILE, chat_template="x", **{NESTED: {"image_mean": [0.1, 0.2, 0.3]}})
    folder = exported(opened(folder), tmp_path / "exported")
    assert NESTED not in read(folder / PROCESSOR_FILE)
    assert "chat_template" not in read(folder / PROCESSOR_FILE)
    assert_as_transformers(folder)
