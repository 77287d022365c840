"""The check that transformers makes the same inputs of an export's files."""

import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from tests.backbones.images import encoded, noise
from tests.backbones.tiny_families import MISTRAL_LM_TEMPLATE, write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_phi3_v import write_phi3_v
from tests.backbones.tiny_qwen import write_qwen2_5_vl, write_qwen2_vl
from tests.backbones.tiny_texts import write_bert, write_nv_embed
from tests.tables import for_each
from unime_jax.backbones import Backbone, Processing, open_backbone
from unime_jax.backbones.preprocessing import chat_templates, image_processor_config
from unime_jax.batch import Item, Media
from unime_jax.export import folder as export_folder
from unime_jax.export.transformers_check import check

WRITE = {
    "llava_onevision": write_folder,
    "vicuna": write_llava_next,
    "mistral": lambda folder: write_llava_next(folder, decoder="mistral"),
    "qwen2_vl": write_qwen2_vl,
    "qwen2_5_vl": write_qwen2_5_vl,
}
RAW, CHAT = Processing(prompt="raw"), Processing(prompt="chat")
IMAGE = Media("a.png", encoded(noise(61, 37)))
ITEMS = [
    Item("a red circle, \u4e2d\u6587 </s>"),
    Item("<|image_1|>\nRepresent the given image", (IMAGE,)),
    Item("<|image_1|> or <|image_2|>", (IMAGE, Media("b.png", encoded(noise(20, 90))))),
    Item("<|image_1|>\nmarked, and there is none"),
    Item("long " * 200),
]


def exported(folder: pathlib.Path, target: pathlib.Path, processing: Processing) -> Backbone:
    """The files of an export beside its weights, opened as one."""
    backbone = open_backbone(str(folder), max_length=200, processing=processing)
    target.mkdir()
    export_folder.copy_files(folder, target)
    image_processor_config.write(
        target, settings=backbone.image_processor_changes, processor=backbone.processor_config
    )
    chat_templates.write(target)
    changes = {key: list(value) for key, value in backbone.config_changes.items()}
    edit(target / "config.json", **changes)
    return open_backbone(str(target), max_length=200, processing=processing)


def edit(file: pathlib.Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


@for_each("family", WRITE)
@for_each(
    "processing",
    [
        RAW,
        CHAT,
        Processing(prompt="verbatim"),
        dataclasses.replace(RAW, image_size=(40, 56)),
        dataclasses.replace(RAW, missing_images="token", resolution="low"),
    ],
)
def test_exports_pass(tmp_path, family, processing, caplog):
    folder = tmp_path / "folder"
    folder.mkdir()
    backbone = exported(WRITE[family](folder), tmp_path / "exported", processing)
    check(backbone.folder, backbone, ITEMS)
    assert "not compared" not in caplog.text


def test_overrides_of_a_run_pass(tmp_path, caplog):
    folder = write_qwen2_vl(tmp_path / "qwen2_vl")
    overruled = dataclasses.replace(RAW, pixels=(512, 2048))
    backbone = exported(folder, tmp_path / "one", overruled)
    check(backbone.folder, backbone, ITEMS)
    folder = write_llava_next(tmp_path / "llava_next")
    overruled = dataclasses.replace(RAW, pinpoints=((28, 56), (56, 28)), legacy_padding=True)
    backbone = exported(folder, tmp_path / "two", overruled)
    check(backbone.folder, backbone, ITEMS)
    assert "not compared" not in caplog.text


def other(folder: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """What processor_config.json holds where transformers 5 has other settings than we."""
    own = json.loads((folder / "preprocessor_config.json").read_text())
    return {"image_processor": own | changes}


def nested_mean(folder):
    edit(folder / "processor_config.json", **other(folder, image_mean=[0.1, 0.2, 0.3]))
    (folder / "preprocessor_config.json").unlink()


def nested_filter(folder):
    edit(folder / "processor_config.json", **other(folder, resample=2))
    (folder / "preprocessor_config.json").unlink()


def older_mean(folder):
    edit(folder / "processor_config.json", **other(folder))
    edit(folder / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])


def older_template(folder):
    edit(folder / "chat_template.json", chat_template="{{ messages[0]['content'][0]['text'] }}")


def tokenizers_template(folder):
    (folder / "chat_template.jinja").write_text(MISTRAL_LM_TEMPLATE)


def patches(folder):
    edit(folder / "processor_config.json", patch_size=14)


def canvases(folder):
    edit(folder / "preprocessor_config.json", image_grid_pinpoints=[[28, 28]])


@for_each(
    ("change", "message"),
    [
        (nested_mean, "normalised pixels are up to .* apart"),
        (nested_filter, "normalised pixels are up to .* apart"),
        (older_mean, "image_mean .* is .*, which transformers 4 reads"),
        (older_template, "the processor's chat template gives 'probe' for 'probe' with 0 images"),
        (tokenizers_template, "the tokenizer's chat template gives 'TypeError"),
        (patches, "the processor fails|token ids are"),
        (canvases, "token ids are"),
    ],
)
def test_what_transformers_reads_otherwise_is_an_error(tmp_path, change, message):
    """The files are changed after we have read them: as if we read the wrong ones."""
    folder = tmp_path / "folder"
    backbone = exported(write_llava_next(folder, decoder="mistral"), tmp_path / "exported", CHAT)
    change(backbone.folder)
    with pytest.raises(RuntimeError, match=r"reads this export otherwise(.|\n)*" + message):
        check(backbone.folder, backbone, ITEMS)


def test_what_cannot_be_checked_is_no_fault_of_the_export(tmp_path, monkeypatch, caplog):
    folder = write_phi3_v(tmp_path / "phi3_v")
    backbone = exported(folder, tmp_path / "exported", Processing(prompt="raw", crops=2))
    check(backbone.folder, backbone, ITEMS)
    older_mean(backbone.folder)
    with pytest.raises(RuntimeError, match="image_mean of the image processor is"):
        check(backbone.folder, backbone, ITEMS)
    for write in (write_bert, write_nv_embed):
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder)
        check(folder, open_backbone(str(folder), max_length=99), ITEMS[:1])

    # A library that cannot be imported is no fault of the export, as where torchvision was
    # made for another torch.
    caplog.clear()
    (tmp_path := tmp_path / "next").mkdir()
    backbone = exported(write_llava_next(tmp_path / "folder"), tmp_path / "exported", CHAT)
    monkeypatch.setitem(sys.modules, "transformers.models.auto.processing_auto", None)
    check(backbone.folder, backbone, ITEMS)
    assert "inputs are not compared with transformers" in caplog.text
    older_mean(backbone.folder)  # which is seen all the same
    with pytest.raises(RuntimeError, match="which transformers 4 reads"):
        check(backbone.folder, backbone, ITEMS)


@pytest.mark.slow
def test_it_does_without_torch(tmp_path):
    for name, write in WRITE.items():
        (tmp_path / name).mkdir()
        exported(write(tmp_path / name), tmp_path / f"{name}_exported", CHAT)
    program = (
        "import logging, pathlib, sys\n"
        "for name in ('torch', 'torchvision', 'tensorflow'): sys.modules[name] = None\n"
        "from unime_jax.backbones import Processing, open_backbone\n"
        "from unime_jax.export.transformers_check import check\n"
        "for folder in map(pathlib.Path, sys.argv[1:]):\n"
        "    processing = Processing(prompt='chat')\n"
        "    backbone = open_backbone(str(folder), max_length=99, processing=processing)\n"
        "    check(folder, backbone, [])\n"
    )
    folders = [str(tmp_path / f"{name}_exported") for name in WRITE]
    found = subprocess.run(
        [sys.executable, "-c", program, *folders], capture_output=True, text=True, check=True
    )
    assert "not compared" not in found.stderr
