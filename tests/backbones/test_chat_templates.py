"""Chat templates: the file that transformers' processors take is the one that counts."""

import json
import pathlib
from typing import Any

import pytest
from transformers import AutoTokenizer, ProcessorMixin

from tests.backbones.tiny_families import write_llava_next
from tests.backbones.tiny_folders import HUB_TEMPLATE, QWEN2_TEMPLATE, write_folder
from tests.backbones.tiny_phi3_v import write_phi3_v
from tests.backbones.tiny_qwen import QWEN2_VL_TEMPLATE, write_qwen2_vl
from tests.tables import for_each
from unime_jax.backbones import Processing, open_backbone
from unime_jax.backbones.preprocessing import chat_templates
from unime_jax.batch import Item

CHAT = Processing(prompt="chat")
ITEM = Item("probe")
HUB_RENDERED = "<|im_start|>user \nprobe<|im_end|><|im_start|>assistant\n"
PROCESSOR, LEGACY = "processor_config.json", "chat_template.json"
JINJA, TOKENIZER = "chat_template.jinja", "tokenizer_config.json"


def template(name: str) -> str:
    """A good one that can be told from others."""
    return "{{ '<|im_start|>" + name + "' }}" + HUB_TEMPLATE


def put(folder: pathlib.Path, file: str, value: Any) -> None:
    """A template, or several, in one of the files."""
    path = folder / file
    if file.endswith(".jinja"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(value)
    else:
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | {"chat_template": value}))


def written(tmp_path: pathlib.Path) -> pathlib.Path:
    """A LLaVA-OneVision without a template."""
    folder = write_folder(tmp_path)
    (folder / LEGACY).unlink()
    put(folder, TOKENIZER, None)
    return folder


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """As `written`."""
    return written(tmp_path)


def rendered(folder: pathlib.Path, processing: Processing = CHAT) -> str:
    backbone = open_backbone(str(folder), max_length=999, processing=processing)
    return backbone.preprocess.prompt.rendered(ITEM)


def by_transformers(folder: pathlib.Path) -> str:
    """The template that a processor has; a tokenizer's where it has none."""
    settings, _ = ProcessorMixin.get_processor_dict(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = settings.get("chat_template") or tokenizer.chat_template
    found = found["default"] if isinstance(found, dict) else found
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "probe"}]}],
        chat_template=found,
        tokenize=False,
        add_generation_prompt=True,
    )


NAMED = "additional_chat_templates/default.jinja"
FILES = {
    "all": (PROCESSOR, LEGACY, JINJA, TOKENIZER),
    "no key": (LEGACY, JINJA, TOKENIZER),
    "no json": (JINJA, TOKENIZER),
    "tokenizer": (TOKENIZER,),
    "key and jinja": (PROCESSOR, JINJA),
    "named": (NAMED, TOKENIZER),
}


@for_each("files", FILES.values())
@for_each("form", ["plain", "dict"])
def test_the_first_of_the_files_counts(tmp_path, files, form, caplog):
    folder = written(tmp_path)
    for file in files:
        several = {"tool_use": QWEN2_TEMPLATE, "default": template(file)}
        if file == TOKENIZER:  # there it is a list
            several = [{"name": name, "template": text} for name, text in several.items()]
        plain = form == "plain" or file.endswith(".jinja")
        put(folder, file, template(file) if plain else several)
    assert rendered(folder) == by_transformers(folder)
    assert rendered(folder).startswith(f"<|im_start|>{files[0]}<|im_start|>")
    apart = [file for file in files if file not in (TOKENIZER, NAMED)]
    assert (f"that of {files[0]} counts" in caplog.text) is (len(apart) > 1)


def test_a_bad_template_counts_where_it_comes_first(folder):
    # A language model's own does no harm behind a good one.
    put(folder, LEGACY, HUB_TEMPLATE)
    put(folder, JINJA, QWEN2_TEMPLATE)
    assert rendered(folder) == by_transformers(folder) == HUB_RENDERED

    # One that counts is an error, which names another that would do.
    put(folder, LEGACY, QWEN2_TEMPLATE)
    put(folder, JINJA, HUB_TEMPLATE)
    message = (
        rf"{folder}/{LEGACY}: the chat template .* language model's own"
        rf"(.|\n)*counts before that of {JINJA}, which would do: delete the one in {LEGACY}"
    )
    with pytest.raises(ValueError, match=message):
        rendered(folder)
    put(folder, JINJA, QWEN2_TEMPLATE + " ")
    put(folder, TOKENIZER, HUB_TEMPLATE)  # of two others only the second would do
    with pytest.raises(ValueError, match=rf"counts before that of {TOKENIZER}, which would do"):
        rendered(folder)
    put(folder, TOKENIZER, QWEN2_TEMPLATE)
    with pytest.raises(ValueError, match="language model's own") as error:
        rendered(folder)
    assert "would do" not in str(error.value)
    assert rendered(folder, Processing(prompt="raw")) == "probe"  # which needs none


@for_each("file", [PROCESSOR, LEGACY, TOKENIZER, "additional_chat_templates"])
def test_templates_without_a_default_are_named(tmp_path, file):
    folder = written(tmp_path)
    named = {"rag": HUB_TEMPLATE, "tool_use": HUB_TEMPLATE}
    if file.startswith("additional"):
        for name, text in named.items():
            put(folder, f"{file}/{name}.jinja", text)
    else:
        put(folder, file, named)
    message = f"{file}: its chat templates are 'rag', 'tool_use', and none is 'default'"
    with pytest.raises(ValueError, match=message):
        rendered(folder)


@for_each("value", [3, {"default": 3}, [{"name": "default"}], ["x"]])
def test_a_template_that_is_none_is_an_error(tmp_path, value):
    folder = written(tmp_path)
    put(folder, LEGACY, value)
    with pytest.raises(ValueError, match=f"{LEGACY}: chat_template is .* it must be a template"):
        rendered(folder)


def test_other_families_read_the_same_files(tmp_path):
    qwen2_vl, vicuna = write_qwen2_vl(tmp_path / "qwen"), write_llava_next(tmp_path / "vicuna")
    put(qwen2_vl, PROCESSOR, {"default": "{{ '<|im_start|>x' }}" + QWEN2_VL_TEMPLATE})
    put(vicuna, JINJA, "no template")  # after chat_template.json
    for folder in (qwen2_vl, vicuna):
        assert rendered(folder) == by_transformers(folder)
    phi3_v = write_phi3_v(tmp_path / "phi3_v")
    before = rendered(phi3_v)
    own = json.loads((phi3_v / TOKENIZER).read_text())["chat_template"]
    put(phi3_v, LEGACY, {"default": "X" + own})
    assert rendered(phi3_v) == "X" + before


# Exports


def test_exports_have_one_template_or_none(folder):
    # Folders without any stay so.
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    chat_templates.write(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before

    # The tokenizer's alone becomes the processor's.
    put(folder, TOKENIZER, [{"name": "default", "template": HUB_TEMPLATE}])
    chat_templates.write(folder)
    assert (folder / JINJA).read_text() == HUB_TEMPLATE and not (folder / LEGACY).exists()
    assert rendered(folder) == by_transformers(folder) == HUB_RENDERED

    # Of all places there is one.
    for file in (PROCESSOR, LEGACY, JINJA, TOKENIZER):
        put(folder, file, template(file))
    expected = rendered(folder)
    for _ in range(2):
        chat_templates.write(folder)
        counts = template(PROCESSOR)
        assert "chat_template" not in json.loads((folder / PROCESSOR).read_text())
        for file in (LEGACY, TOKENIZER):
            assert json.loads((folder / file).read_text())["chat_template"] == counts
        assert (folder / JINJA).read_text() == counts
        assert rendered(folder) == by_transformers(folder) == expected
        assert AutoTokenizer.from_pretrained(folder).chat_template == counts
