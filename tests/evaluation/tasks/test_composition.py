import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.tables import for_each
from unime_jax.evaluation import tasks
from unime_jax.evaluation.benchmarks import composition_rules
from unime_jax.evaluation.tasks import composition

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics" / "sugarcrepe"
PROMPTS = {"image_text": "<|image_1|> in one word:", "caption_text": "{caption} in one word:"}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_tie_in_any_comparison_of_two_images_with_two_captions_is_wrong():
    right = np.array([[[0.9, 0.1], [0.2, 0.8]]], np.float32)
    assert composition_rules.both_captions(right).all() and composition_rules.both_images(right)[0]
    for own, other in (((0, 0), (0, 1)), ((1, 1), (1, 0))):  # an image's two captions
        tied = right.copy()
        tied[0][other] = tied[0][own]
        assert not composition_rules.both_captions(tied)[0], other
    for own, other in (((0, 0), (1, 0)), ((1, 1), (0, 1))):  # a caption's two images
        tied = right.copy()
        tied[0][other] = tied[0][own]
        assert not composition_rules.both_images(tied)[0], other

    # Accuracies are the originals
    golden = json.loads((GOLDEN / "case.json").read_text())["accuracy"]
    tensors = load_file(GOLDEN / "io.safetensors")
    names = [name for name in golden if not name.endswith("_avg")]
    vectors, subsets = {}, {}
    for name in names:
        rows = subsets[name] = []
        for n in range(len(tensors[f"{name}.image"])):
            path, caption, negative = f"{name}/{n}.png", f"{name} {n}", f"{name} {n} {{not}}"
            vectors[PROMPTS["image_text"], path] = tensors[f"{name}.image"][n]
            vectors[f"{caption} in one word:", ""] = tensors[f"{name}.positive"][n]
            vectors[f"{negative} in one word:", ""] = tensors[f"{name}.negative"][n]
            rows.append({"image_path": path, "caption": caption, "negative_caption": negative})

    def encode(items):
        assert len({item.key for item in items}) == len(items)
        return np.array([vectors[item.key] for item in items])

    results = {
        name: tasks.run(composition.Task(name, rows, **PROMPTS), lambda path: png(), encode)
        for name, rows in subsets.items()
    }
    percent = {name: result.accuracy for name, result in results.items()}
    assert percent == pytest.approx({name: 100 * golden[name] for name in names}, abs=1e-12)
    for name, result in results.items():
        positive, negative = tensors[f"{name}.positive_score"], tensors[f"{name}.negative_score"]
        np.testing.assert_allclose(result.caption_score, positive, atol=2e-7)
        np.testing.assert_allclose(result.negative_score, negative, atol=2e-7)
    means = composition_rules.kind_means(percent)
    expected = {kind: 100 * golden[f"{kind}_avg"] for kind in ("replace", "swap", "add")}
    assert means == pytest.approx(expected, abs=1e-12)


MARKS = {"right": [0], "counted": [0]}
TRIPLE = {"image_path": "a", "caption": "b", "negative_caption": "c"}


def several(images, captions):
    return {"images": ["a"] * images, "captions": ["b", "c", "d"][:captions]}


@for_each(
    ("rule", "rows", "images", "message"),
    [
        ("sugarcrepe", [], lambda path: png(), "subset 'swap' has no rows"),
        (
            "sugarcrepe",
            [{"image_path": "a", "caption": "b"}],
            lambda path: png(),
            "row 0: negative_caption is",
        ),
        (
            "sugarcrepe",
            [TRIPLE],
            lambda path: b"",
            "subset 'swap', row 0: image 'a' has no file",
        ),
        ("winoground", [TRIPLE], lambda path: png(), "1 images, expected 2 by rule 'winoground'"),
        (
            "text_acc",
            [several(1, 2), several(1, 3)],
            lambda path: png(),
            "row 1: 3 captions, expected 2",
        ),
        ("text_acc", [several(1, 1)], lambda path: png(), "row 0: a single caption has no other"),
        ("cola", [{"images": "a", "captions": []}], lambda path: png(), "images is no list: a"),
        (
            "cola",
            [{"images": ["a", ""], "captions": ["b", ""]}],
            lambda path: png(),
            "row 0: image 2, caption 2 is missing or empty",
        ),
        (
            "cola_map",
            [several(1, 2) | {"right": [], "counted": [2]}],
            lambda path: png(),
            "row 0: counted: index 2 is out of bounds",
        ),
        (
            "cola_map",
            [several(1, 2) | MARKS, several(1, 2) | MARKS | {"captions": ["c", "b"]}],
            lambda path: png(),
            "row 1: other captions than in row 0",
        ),
        ("sugarcrape", [TRIPLE], lambda path: png(), "no rule 'sugarcrape' of composition; there"),
    ],
)
def test_bad_data_is_an_error_that_names_subset_and_row(rule, rows, images, message):
    def encode(items):
        return np.ones((len(list(items)), 2))

    with pytest.raises(ValueError, match=message):
        tasks.run(composition.Task("swap", rows, **PROMPTS, rule=rule), images, encode)


def test_caption_prompt_needs_a_place_for_the_caption():
    with pytest.raises(ValueError, match="has no {caption}"):
        composition.Task("swap", [], image_text="", caption_text="in one word")
