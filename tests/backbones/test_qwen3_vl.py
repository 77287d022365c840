"""Qwen3-VL-Embedding's contract: as published, in other libraries, and when something differs."""

import io
import json
import shutil
import unicodedata

import jax
import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from tests.backbones.tiny_qwen3 import write_qwen3_vl_embedding
from tests.models.oracle import pair_of, picture, torch_hidden
from unime_jax import Embedder, backbones, paths
from unime_jax.backbones.preprocessing.system_prompt import DEFAULT, closed, punctuation
from unime_jax.batch import Item, Media
from unime_jax.export import folder as hf_folder
from unime_jax.export import self_check

OPEN = "<|im_start|>system\n"
USER, DONE = "<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
BYTES = picture(40, 31, 1)
RENDERED = [  # text, whether there is an image, instruction, prompt
    ("a red circle", False, "", f"{OPEN}{DEFAULT}{USER}a red circle{DONE}"),
    (" two\nlines ", False, " Find it ", f"{OPEN}Find it.{USER} two\nlines {DONE}"),
    ("x", False, "Find it。", f"{OPEN}Find it。{USER}x{DONE}"),
    ("x", False, 'Say "it"', f'{OPEN}Say "it"{USER}x{DONE}'),
    ("x", False, "Is it 5+", f"{OPEN}Is it 5+.{USER}x{DONE}"),
    ("", False, "", f"{OPEN}{DEFAULT}{USER}NULL{DONE}"),
    ("", True, "", f"{OPEN}{DEFAULT}{USER}{IMAGE}{DONE}"),
    ("<|image_1|>\nleft", True, "Find it", f"{OPEN}Find it.{USER}{IMAGE}left{DONE}"),
]


def item(text, image, instruction):
    return Item(text, (Media("a.png", BYTES),) if image else (), prefix=instruction)


def user_input(text, image):
    return {"text": text} | ({"image": BYTES} if image else {})


def opened(folder):
    return Embedder.from_pretrained(folder, dtype="float32")


def edited(folder, name, **changes):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))


def test_the_contract_of_the_embedder(tmp_path, monkeypatch):
    """As published; the same vectors in sentence-transformers; vLLM's tokens; what differs."""
    # On one device, in batches of two: the embedder's programs are the self-check's.
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    published = write_qwen3_vl_embedding(tmp_path / "published", pixels=(256, 4096))
    pair = pair_of(published)
    backbone, prompt = pair.backbone, pair.backbone.preprocess.prompt
    end = prompt.tokenizer.token_to_id("<|endoftext|>")
    assert backbone.processing.prompt == "system" and backbone.processing.final_norm
    assert backbone.processing.pixels == (4 * 64, 1800 * 64)  # a token is 8 x 8 pixels here
    assert backbone.defaults.prompts["query"] == "Find what the query asks for"
    for text, image, instruction, expected in RENDERED:
        assert prompt.rendered(item(text, image, instruction)) == expected
        tokens = backbone.preprocess(item(text, image, instruction)).tokens
        assert tokens[-1] == end and (tokens == end).sum() == 1
    # What follows a text is no empty item.
    assert prompt.rendered(Item("", suffix="now")) == f"{OPEN}{DEFAULT}{USER}now{DONE}"
    assert prompt.ending() == [end]
    for character in map(chr, (*range(0x3000), 0xFF0E, 0x1FA7B)):
        is_end = unicodedata.category(character).startswith("P")
        assert (character in punctuation()) == is_end
        if character.strip():
            assert closed(f"a{character}").endswith(".") == (character == "." or not is_end)

    # sentence-transformers, by the published files, is told of the instruction.
    inputs = [user_input(text, image) for text, image, *_ in RENDERED[:1] + RENDERED[6:]]
    as_pil = [
        x | ({"image": Image.open(io.BytesIO(BYTES))} if "image" in x else {}) for x in inputs
    ]
    embedder = opened(published)
    vectors = embedder.encode(inputs, batch_size=2)
    with torch.no_grad():
        theirs = SentenceTransformer(str(published), device="cpu").encode(
            as_pil[:1], prompt=DEFAULT
        )
    assert np.sum(theirs[0] * vectors[0]) >= 0.99999
    few = embedder.encode(inputs, batch_size=2, truncate_dim=6)
    cut = vectors[:, :6] / np.linalg.norm(vectors[:, :6], axis=1, keepdims=True)
    np.testing.assert_allclose(few, cut, atol=1e-6)

    # An export: the words, the limits of images and the state are the same without being told.
    folder = tmp_path / "export"
    graph, _ = paths.split(pair.model)
    float32 = np.dtype(np.float32)
    hf_folder.write(folder, backbone, graph, pair.parameters, dtype=float32, prompts={"q": "Find"})
    assert json.loads((folder / "embedder.json").read_text())["final_norm"] is True
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 4 * 64, "longest_edge": 1800 * 64}
    loaded = SentenceTransformer(str(folder), device="cpu")
    with torch.no_grad():
        theirs = loaded.encode(as_pil)
    assert np.all(np.sum(theirs * vectors, axis=1) >= 0.99999)
    for text, image, instruction, _ in RENDERED:
        given = {"text": text} | ({"image": Image.open(io.BytesIO(BYTES))} if image else {})
        row = loaded[0].preprocess([given], prompt=instruction or None)["input_ids"][0]
        expected = backbone.preprocess(item(text, image, instruction)).tokens
        assert row.tolist() == expected.tolist(), (text, instruction)
    assert backbones.open_backbone(str(folder), max_length=256).processing == backbone.processing

    # vLLM's documented call: the answer begun, and the tokenizer's own tokens added.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, image, instruction, expected in (RENDERED[0], RENDERED[7]):
        content = [{"type": "image"}] * image + [{"type": "text", "text": text[-4:]}]
        system = {"role": "system", "content": [{"type": "text", "text": closed(instruction)}]}
        messages = [
            system,
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": ""}]},
        ]
        ((rendered,), _) = render_jinja_template(
            [messages],
            chat_template=(folder / "chat_template.jinja").read_text(),
            continue_final_message=True,
        )
        assert rendered == expected.replace(text, text[-4:])
        ids = tokenizer(rendered, add_special_tokens=True)["input_ids"]
        assert (
            ids[-1] == end
            and ids[:-1] == tokenizer(rendered, add_special_tokens=False)["input_ids"]
        )

    # The state before the final norm, where a folder says so.
    before = shutil.copytree(folder, tmp_path / "before")
    edited(before, "embedder.json", final_norm=False)
    states = []
    norm = pair.torch_model.model.language_model.norm
    hook = norm.register_forward_pre_hook(lambda _, given: states.append(given[0]))
    torch_hidden(pair, item(*RENDERED[6][:3]))
    hook.remove()
    state = states[0][0, -1].numpy()
    plain = opened(before)
    assert np.sum(plain.encode(inputs[1:])[0] * state) / np.linalg.norm(state) >= 0.99999
    assert not plain.backbone.loads_in_transformers
    assert "before the decoder's final norm" in plain.backbone.caveats[0]

    # A check that fails says which of the four it is.
    self_check.first_check(folder, inputs[1:], dtype=float32, computed_in=float32)
    assert self_check.repeat(folder) >= 0.99999

    def without_end(target):
        backend = tokenizers.Tokenizer.from_file(str(target / "tokenizer.json"))
        backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
        backend.save(str(target / "tokenizer.json"))

    changes = {
        "end token: end_token is": without_end,
        "final norm: state is 'before the": lambda x: edited(x, "embedder.json", final_norm=False),
        "resize: image_tokens is 12, and was 20": lambda x: edited(
            x, "embedder.json", pixels=(256, 900)
        ),
        "the prompt differs: it words an item as": lambda x: edited(
            x, "embedder.json", prompt="chat"
        ),
    }
    for number, (message, change) in enumerate(changes.items()):
        target = shutil.copytree(folder, tmp_path / str(number))
        change(target)
        with pytest.raises(RuntimeError, match=message):
            self_check.repeat(target)
