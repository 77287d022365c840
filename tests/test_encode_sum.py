"""Image and text embedded apart and added, as UniME does after its first stage."""

import json
import pathlib

import jax
import numpy as np
import pytest

from tests.backbones.tiny_families import write_llava_next
from tests.models.oracle import pair_of, picture
from unime_jax import Embedder, sharding
from unime_jax.backbones import Processing
from unime_jax.batch import Item
from unime_jax.data.user_inputs import IMAGE_SUFFIX, TEXT_SUFFIX

GOLDEN = pathlib.Path(__file__).parent / "golden" / "prompts" / "rendered.json"
A, B = picture(28, 28, 0), picture(20, 28, 1)
EXACT = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llava_next(tmp_path_factory.mktemp("next"), decoder="mistral")


@pytest.fixture(scope="module")
def model(folder):
    return opened(pair_of(folder).backbone.folder)


def opened(folder, **arguments) -> Embedder:
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    defaults = {"dtype": "float32", "mesh": mesh, "processing": Processing(prompt="chat")}
    return Embedder.from_pretrained(folder, **(defaults | arguments))


def recorded(modality: str) -> dict:
    (entry,) = [
        entry
        for entry in json.loads(GOLDEN.read_text())
        if (entry["model"], entry["backbone"], entry.get("modality"))
        == ("UniME-V1", "llava_16", modality)
        and entry["use"].startswith("retrieval")
    ]
    return entry


def test_prompts_and_suffixes(model, folder):
    # UniME's prompts.
    image, text = recorded("image"), recorded("text")
    for sentence, expected in zip(text["inputs"], text["rendered"], strict=True):
        assert model.rendered_sum(sentence) == [expected]
        both = {"text": f"<|image_1|>\n{sentence}\n", "image": A}
        assert model.rendered_sum(both) == [*image["rendered"], expected]
        assert model.rendered(sentence, suffix=TEXT_SUFFIX) == expected
    assert model.rendered_sum({"image": A}) == image["rendered"]
    assert [model.rendered({"image": A}, suffix=IMAGE_SUFFIX)] == image["rendered"]

    # A model trained on raw texts. Without a template, the images' line end is the prompt's own.
    raw = opened(folder, processing=Processing(prompt="raw"))
    assert raw.rendered_sum({"text": "red\n", "image": A}) == [
        "<image>\nSummary above image in one word:",
        "red\nSummary above sentence in one word:",
    ]

    # Other suffixes
    items = [{"text": "red", "image": A}, {"text": "blue", "image": B}]
    own = {"image_suffix": "In a word: ", "text_suffix": "!"}
    found = model.encode_sum(items, batch_size=2, **own)
    images = model.encode([{"image": A}, {"image": B}], suffix="In a word: ")
    expected = images + model.encode(["red!", "blue!"])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=EXACT)
    rendered = model.rendered_sum(items[0], **own)
    assert rendered == ["[INST] <image>\nIn a word:  [/INST]", "[INST] red! [/INST]"]

    # Sums in the items order. Of mixed items, in small batches, against sums made by hand.
    items = [
        "a red circle",
        {"text": "<|image_1|>\nWhat is left of the square?\n", "image": A},
        {"image": B},
        {"text": "of a blue square " * 3, "image": [A, B]},
        {"text": " \n<|image_1|>\n", "image": B},
        {"text": "a red circle", "image": B},
    ]
    images = model.encode(
        [{"image": A}, {"image": B}, {"image": [A, B]}], suffix=IMAGE_SUFFIX, batch_size=2
    )
    texts = model.encode(
        ["a red circle", "What is left of the square?", ("of a blue square " * 3).strip()],
        suffix=TEXT_SUFFIX,
        batch_size=2,
    )
    sums = [texts[0], images[0] + texts[1], images[1], images[2] + texts[2], images[1]]
    sums = np.stack([*sums, images[1] + texts[0]])
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    found = model.encode_sum(items, batch_size=2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=EXACT)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    apart = np.linalg.norm(expected[[0, 1, 2, 3, 5], None] - expected[[0, 1, 2, 3, 5]], axis=-1)
    assert (apart + np.eye(5)).min() > 100 * EXACT, "otherwise the order could not be seen"
    jointly = model.encode(items[1:3], batch_size=2)[0]
    assert np.abs(jointly - found[1]).max() > 0.01


def test_bad_items_are_named_and_no_orphans_reported(model, caplog):
    """A text's marker is of an image that the item has."""
    with caplog.at_level("WARNING"):
        model.encode_sum([{"text": "<|image_1|>\nred", "image": A}])
    assert not caplog.records
    with caplog.at_level("WARNING"):
        model.encode_sum(["<|image_1|>\nred", "a"])
    assert "1 of 2 items have image markers without image" in caplog.text

    # Bad items are named.
    with pytest.raises(TypeError, match=r"items\[1\]: a int is no item"):
        model.encode_sum(["a", 3])
    with pytest.raises(ValueError, match=r"items\[2\]: .*cannot be read"):
        model.encode_sum(["a", {"text": "b", "image": A}, {"text": "c", "image": b"no image"}])
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.encode_sum(["a"], batch_size=0)

    # Nothing gives no rows.
    assert model.encode_sum([]).shape == (0, model.dimension)


def test_a_suffix_is_never_cut(model, folder, caplog):
    short = opened(folder, max_length=64)
    long, less = "a red circle " * 40, "a red circle " * 39
    with caplog.at_level("WARNING"):
        found = short.encode([long, less], suffix=TEXT_SUFFIX)
    assert "2 of 2 texts were cut to max_length = 64 tokens" in caplog.text
    np.testing.assert_allclose(found[0], found[1], atol=EXACT)
    np.testing.assert_array_equal(
        short.encode_sum([long]), short.encode([long], suffix=TEXT_SUFFIX)
    )
    without = short.encode([long])
    assert np.abs(found[0] - without[0]).max() > 1e-3
    kept = short._preprocess(Item(long, suffix=TEXT_SUFFIX)).tokens
    text = short._preprocess.prompt.tokenizer.decode(kept)
    assert len(kept) == 64 and text.endswith(TEXT_SUFFIX + " [/INST]")
