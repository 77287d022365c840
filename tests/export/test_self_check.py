"""The bounds of an export's self-check: one wrong embedding among many, and all the same one."""

import io
import json
import logging
import pathlib

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from tests.tables import for_each
from unime_jax.batch import Item, Media
from unime_jax.data.clips import archive
from unime_jax.data.user_inputs import to_item
from unime_jax.export import self_check

FOLDER = pathlib.Path("folder")


def unit(*angles: float) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@for_each("wrong", range(5))
def test_one_wrong_embedding_among_several_is_the_lowest_cosine(wrong):
    expected = unit(0, 0.5, 1, 2, 3)
    actual = expected.copy()
    assert self_check.lowest_cosine(expected, actual) == pytest.approx(1, abs=1e-12)
    actual[wrong] = -expected[wrong]
    assert self_check.lowest_cosine(expected, actual) == pytest.approx(-1, abs=1e-12)


def test_rounding_in_either_type_widens_the_bound(tmp_path, monkeypatch):
    half, whole = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
    assert self_check.lowest_allowed(whole, whole) == 0.99999
    assert self_check.lowest_allowed(half, whole) == self_check.lowest_allowed(whole, half) == 0.999

    # A new process that fails is quoted and is on the cpu
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$2 $3 on $JAX_PLATFORMS" >&2\necho two >&2\nexit 3\n')
    python.chmod(0o755)
    monkeypatch.setattr(self_check.sys, "executable", str(python))
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    with pytest.raises(RuntimeError) as error:
        self_check.repeat_in_a_new_process(FOLDER)
    first, *said = str(error.value).split("\n")
    assert first == "folder failed its check in a new process:"
    assert said == ["unime_jax.export.self_check folder on cpu", "two", ""]
    python.write_text("#!/bin/sh\n")
    self_check.repeat_in_a_new_process(FOLDER)


def test_embeddings_that_are_all_the_same_are_refused(caplog):
    """One that differs is enough; of nearly the same a warning tells."""
    with caplog.at_level(logging.WARNING):
        self_check._check_different(unit(0, 0, 1), 0.999, FOLDER)
        self_check._check_different(unit(0), 0.999, FOLDER)
    assert not caplog.messages
    with pytest.raises(RuntimeError, match=r"gives all 3 inputs .* one embedding \(the lowest"):
        self_check._check_different(unit(0, 0.01, 0.02), 0.999, FOLDER)
    with caplog.at_level(logging.WARNING):
        self_check._check_different(unit(0, 0.1, 0), 0.999, FOLDER)
    (message,) = caplog.messages
    assert "nearly one, the lowest cosine of two is 0.9950: the model has collapsed" in message


def test_what_is_written_names_every_file_of_media_and_both_types(tmp_path):
    def image(color: str, form: str) -> Media:
        file = io.BytesIO()
        Image.new("RGB", (3, 2), color).save(file, form)
        return Media(f"/anywhere/{color}", file.getvalue())

    red, green, blue = image("red", "PNG"), image("green", "JPEG"), image("blue", "PNG")
    clip = Media("a/clip.mp4", archive([red.data, blue.data], 2.0), "clip")
    items = [Item("none"), Item("", (red,)), Item("both", (green, blue)), Item("all", (red, clip))]
    half = np.dtype(ml_dtypes.bfloat16)
    vectors = unit(0.25, 1, 2, 4).astype(np.float32)
    facts = [{"prompt": f"<{item.text}>"} for item in items]
    self_check._write(tmp_path, items, vectors, facts, half, np.dtype("float32"))
    record = json.loads((tmp_path / self_check.FILE).read_text())
    assert record["inputs"] == [
        {"text": "<none>", "image": None},
        {"text": "<>", "image": "self_check_1.png"},
        {"text": "<both>", "images": ["self_check_2.jpg", "self_check_2_1.png"]},
        {"text": "<all>", "image": "self_check_3.png", "videos": ["self_check_3_1.clip"]},
    ]
    read = [to_item(given) for given in self_check.inputs_of(tmp_path)]
    assert [item.identity for item in read] == [item.identity for item in items]
    assert record["dtype"] == "bfloat16"
    np.testing.assert_array_equal(np.array(record["embeddings"], np.float32), vectors)
    names = ["self_check_1.png", "self_check_2.jpg", "self_check_2_1.png"]
    contents = [(tmp_path / name).read_bytes() for name in names]
    assert contents == [red.data, green.data, blue.data]
    origin = json.loads((tmp_path / self_check.ITEMS).read_text())
    texts = ["none", "", "both", "all"]
    assert origin == {"computed_in": "float32", "texts": texts, "facts": facts}
