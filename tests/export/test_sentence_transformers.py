"""sentence-transformers on an exported folder gives what the plain model gives item by item."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jinja2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
)
from transformers.utils.chat_template_utils import render_jinja_template

from tests.backbones.tiny_families import DECODER, write_llava_next
from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_qwen import write_qwen2_5_vl, write_qwen2_vl
from tests.tables import for_each
from unime_jax.export import sentence_transformers as layout

MAX_LENGTH = 512
PROMPTS = {"query": "find: "}


@dataclasses.dataclass(frozen=True)
class Family:
    """How a folder is made, and what its checkpoints' chat template writes around a text."""

    write: Callable[[pathlib.Path], pathlib.Path]
    before: str
    image: str  # what one image adds to `before`
    after: str
    image_token: str = "<image>"

    def frames(self) -> list[tuple[str, str]]:
        return [(self.before.replace("@", self.image * n), self.after) for n in range(3)]


def _write_llava_onevision(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    tower = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    write_folder(folder, vision=tower, text=DECODER)
    processor = {
        "processor_class": "LlavaOnevisionProcessor",
        "image_token": "<image>",
        "num_image_tokens": (28 // 7) ** 2,
        "vision_feature_select_strategy": "full",
        "video_token": "<video>",
    }
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


FAMILIES = {
    "llava_onevision": Family(
        _write_llava_onevision,
        "<|im_start|>user @\n",
        "<image>",
        "<|im_end|><|im_start|>assistant\n",
    ),
    "llava_next_vicuna": Family(write_llava_next, "USER: @", "<image>\n", " ASSISTANT:"),
    "llava_next_mistral": Family(
        lambda folder: write_llava_next(folder, decoder="mistral"),
        "[INST] @",
        "<image>\n",
        " [/INST]",
    ),
    "qwen2_vl": Family(
        write_qwen2_vl,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n@",
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|im_end|>\n<|im_start|>assistant\n",
        image_token="<|image_pad|>",
    ),
}
FAMILIES["qwen2_5_vl"] = dataclasses.replace(FAMILIES["qwen2_vl"], write=write_qwen2_5_vl)


@dataclasses.dataclass(frozen=True)
class Case:
    """An exported folder, as sentence-transformers and as transformers load it."""

    family: Family
    folder: pathlib.Path
    loaded: SentenceTransformer
    model: Any
    processor: Any

    def expected(self, text: str, images: list[Image.Image]) -> np.ndarray:
        """The embedding by the checkpoint's own template and processor, alone, unpadded."""
        content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        content.append({"type": "text", "text": text})
        inputs = self.processor.apply_chat_template(
            [[{"role": "user", "content": content}]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            state = self.model.model(**inputs).last_hidden_state[0, -1]
        return (state / state.norm()).numpy()

    def tokens(self, inputs: Any, **options: Any) -> str:
        """What the model gets to read for one input."""
        row = self.loaded[0].preprocess([inputs], **options)["input_ids"][0]
        return self.loaded.tokenizer.decode(row)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """A case of each family, by its name."""
    return functools.cache(lambda name: _make(FAMILIES[name], tmp_path_factory.mktemp(name) / name))


def _make(family: Family, folder: pathlib.Path, dtype: torch.dtype = torch.float32) -> Case:
    family.write(folder)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from zero, so that no two inputs look alike
            parameter.add_(torch.randn_like(parameter) * 0.25)
    config = json.loads((folder / "config.json").read_text())
    model.to(dtype).save_pretrained(folder)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config))  # in the hub's form again
    layout.write(
        folder,
        frames=family.frames(),
        markers=["<|image_1|>", family.image_token],
        strip=True,
        dimension=DECODER["hidden_size"],
        max_length=MAX_LENGTH,
        prompts=PROMPTS,
    )
    processor = AutoProcessor.from_pretrained(folder, use_fast=False)  # pixels by Pillow
    return Case(family, folder, SentenceTransformer(str(folder)), model, processor)


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


WIDE, TALL, SMALL = picture(100, 30, 1), picture(20, 50, 2), picture(13, 9, 3)
# The input, and the text and images it stands for.
INPUTS: list[tuple[Any, str, list[Image.Image]]] = [
    ("a red circle", "a red circle", []),
    (WIDE, "", [WIDE]),
    ({"text": "blue", "image": TALL}, "blue", [TALL]),
    ("left of a blue square " * 9, ("left of a blue square " * 9).strip(), []),
    ({"image": SMALL, "text": " a red square\n"}, "a red square", [SMALL]),
    ({"image": [TALL, SMALL], "text": "which"}, "which", [TALL, SMALL]),
    ({"image": SMALL}, "", [SMALL]),
]


@for_each("model_type", FAMILIES)
def test_texts_and_images_in_one_call_have_our_rows_and_embeddings(cases, model_type):
    case = cases(model_type)
    expected = np.stack([case.expected(text, images) for _, text, images in INPUTS])
    similar = expected @ expected.T - np.eye(len(expected))
    assert similar.max() < 0.99, "the inputs look alike: equality would say little"
    inputs = [x for x, _, _ in INPUTS]
    found = {side: case.loaded.encode(inputs, **_padded(side)) for side in ("left", "right")}
    found["default"] = case.loaded.encode(inputs)
    found["alone"] = np.stack([case.loaded.encode(x) for x in inputs])
    for how, embeddings in found.items():
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
        cosines = np.sum(embeddings * expected, axis=1)
        assert cosines.min() >= 0.99999, (how, cosines)

    # Rows are padded at their end.
    case = cases(model_type)
    mask = case.loaded[0].preprocess(["a", "a red circle"])["attention_mask"]
    assert mask[:, 0].all() and not mask[:, -1].all()

    # Pixels are Pillow's.
    found = case.loaded[0].preprocess([WIDE])["pixel_values"]
    processor = AutoImageProcessor.from_pretrained(case.folder, backend="pil")
    assert torch.equal(found, processor([WIDE], return_tensors="pt")["pixel_values"])
    assert case.loaded.get_embedding_dimension() == DECODER["hidden_size"]

    # A prompt is a part of the text.
    frames = case.family.frames()
    (before, after), (with_image, _) = frames[0], frames[1]
    assert case.tokens("circle", prompt="find: ").endswith(f"{before}find: circle{after}")
    shown = case.tokens({"text": "circle", "image": SMALL}, prompt="find: ")
    assert shown.startswith(case.tokens(SMALL).removesuffix(after))
    assert shown.endswith(with_image[-1] + "find: circle" + after)
    assert case.loaded.prompts["query"] == "find: "
    queries = case.loaded.encode_query(["circle", SMALL])
    same = case.loaded.encode(["find: circle", {"text": "find:", "image": SMALL}])
    np.testing.assert_allclose(queries, same, atol=1e-6)

    # Markers are left out.
    text = f"<|image_1|>\na {case.family.image_token}red <|image_1|>\ncircle <|image_1|>"
    assert case.tokens(text) == case.tokens("a red circle")
    marked = {"text": "<|image_1|>\nblue", "image": TALL}
    assert case.tokens(marked) == case.tokens({"text": "blue", "image": TALL})


def _padded(side: str) -> dict[str, Any]:
    return {"processing_kwargs": {"text": {"padding_side": side}}}


@for_each("model_type", FAMILIES)
def test_what_is_too_long_or_not_for_this_model(
    cases: Callable[[str], Case], model_type: str
) -> None:
    # Texts are cut; images that do not fit are an error.
    case = cases(model_type)
    before, after = case.family.frames()[0]
    long = "blue square " * MAX_LENGTH
    assert case.loaded[0].preprocess([long])["input_ids"].shape == (1, MAX_LENGTH)
    assert case.tokens(long).endswith(after)
    assert before + "blue square blue square" in case.tokens(long)
    most = len(case.loaded.tokenizer(before)["input_ids"]) + 3
    short = SentenceTransformer(str(case.folder), processor_kwargs={"model_max_length": most})
    with pytest.raises(ValueError, match="Mismatch in `image` token count"):
        short.encode([WIDE])

    # So is what the model does not take.
    with pytest.raises(Exception, match="more images than this model takes: 3"):
        case.loaded.encode([{"text": "x", "image": [SMALL] * 3}])
    with pytest.raises(ValueError, match="video"):
        case.loaded.encode([np.zeros((2, 3, 20, 20), np.uint8)])
    with pytest.raises(ValueError, match="query"):
        case.loaded.encode([("a", "pair")])


def test_the_weights_dtype_is_kept(tmp_path: pathlib.Path) -> None:
    family = FAMILIES["llava_next_vicuna"]
    case = _make(family, tmp_path / "half", torch.bfloat16)
    assert {parameter.dtype for parameter in case.loaded.parameters()} == {torch.bfloat16}
    single = SentenceTransformer(str(case.folder), model_kwargs={"dtype": torch.float32})
    assert single.dtype == torch.float32


@for_each("model_type", FAMILIES)
def test_saving_it_again_keeps_the_wording(
    cases: Callable[[str], Case], model_type: str, tmp_path: pathlib.Path
) -> None:
    case = cases(model_type)
    case.loaded.save(str(tmp_path / "again"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "again"))
    inputs = ["a red circle", {"text": "blue", "image": TALL}]
    mine, theirs = (m[0].preprocess(inputs) for m in (case.loaded, again))
    assert torch.equal(mine["input_ids"], theirs["input_ids"])
    assert again.similarity_fn_name == "cosine" and again.prompts["query"] == "find: "
    texts = np.sum(again.encode(inputs) * case.loaded.encode(inputs), axis=1)
    assert texts[0] >= 0.99999


def _rendered(source: str, *messages: dict[str, Any]) -> str:
    return render_jinja_template(conversations=[list(messages)], chat_template=source)[0][0]


@given(
    frame=st.tuples(st.text(), st.text()),
    pieces=st.lists(st.text()),
    between=st.sampled_from(["<image>", "<image>\n", "<|image_1|>\n", "<image><|image_1|>"]),
    strip=st.booleans(),
)
def test_the_template_is_the_frame(
    frame: tuple[str, str], pieces: list[str], between: str, strip: bool
) -> None:
    text = between.join(pieces)
    source = layout.chat_template_of([frame], ["<image>", "<|image_1|>"], strip=strip)
    content = [{"type": "text", "text": text}]
    text = re.sub("<image>\n?", "", text)
    text = re.sub(r"<\|image_1\|>\n?", "", text)
    expected = frame[0] + (text.strip() if strip else text) + frame[1]
    assert _rendered(source, {"role": "user", "content": content}) == expected


@for_each("role, kind", [("assistant", "text"), ("user", "audio")])
def test_the_template_refuses_other_roles_and_parts(role: str, kind: str) -> None:
    source = layout.chat_template_of([("", "")], [], strip=True)
    with pytest.raises(jinja2.TemplateError, match="this model embeds"):
        _rendered(source, {"role": role, "content": [{"type": kind, kind: "x"}]})
