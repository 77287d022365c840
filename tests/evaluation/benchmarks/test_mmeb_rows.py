"""MMEB's words: those of the recorded templates, whichever layout the rows have."""

import json
import re
from pathlib import Path

import pytest

from tests.tables import for_each
from unime_jax.evaluation.benchmarks import mmeb_instructions, mmeb_rows
from unime_jax.evaluation.scores import MMEB_V1
from unime_jax.evaluation.tasks import mmeb

GOLDEN = Path(__file__).parents[2] / "golden" / "prompts" / "mmeb_instructions.json"
TEMPLATES = json.loads(GOLDEN.read_text())
PLACE = re.compile(r'"?\{\w+\}"?')  # of the content; quotes are a part of it in the second layout
TEXTS = ("what is  this?\nA: a door ", "Café 3")  # of a query and a target


def filled(template: str, content: str) -> str:
    return re.sub(r"\{\w+\}", lambda _: content, template)


def contents(template: str, content: str) -> str:
    """What of a template's text is content: nothing, or the text with its quotes."""
    place = PLACE.search(template)
    return filled(place[0], content) if place else ""


def rows_of(name: str) -> tuple[dict, dict]:
    """A row with two targets in MMEB-eval's columns, and the same in MMEB_Test_Instruct's."""
    golden = TEMPLATES["eval"][name]
    query, target = golden["query_template"], golden["target_template"]
    texts = [TEXTS[0].strip() if golden["query_has_image"] else TEXTS[0], TEXTS[1], "another"]
    paths = [f"{name}/{i}.jpg" if golden["target_has_image"] else "" for i in range(2)]
    path = f"{name}/q.jpg" if golden["query_has_image"] else ""
    whole = {
        "qry_text": filled(query, texts[0]),
        "qry_img_path": path,
        "tgt_text": [filled(target, text) for text in texts[1:]],
        "tgt_img_path": paths,
    }
    bare = not golden["target_has_image"]
    apart = {
        "qry_inst": PLACE.sub("", query).strip(),
        "qry_text": contents(query, texts[0]),
        "qry_img_path": path,
        "tgt_inst": "" if bare else PLACE.sub("", target).strip(),
        "tgt_text": [contents(target, text) for text in texts[1:]],
        "tgt_img_path": paths,
    }
    return whole, apart


def read(name: str, row: dict, instructions: str) -> dict:
    (read,) = mmeb_rows.worded(name, [row], instructions)
    return {column: read[column] for column in mmeb.COLUMNS}


@for_each("side", ["eval", "train"])
def test_contents_are_found_in_the_recorded_templates_and_nowhere_else(side):
    table = {"eval": mmeb_instructions.EVALUATION, "train": mmeb_instructions.TRAINING}[side]
    assert set(table) == set(TEMPLATES[side])
    for name, golden in TEMPLATES[side].items():
        query, target = golden["query_template"], golden["target_template"]
        wording = table[name]
        assert wording.query_content(filled(query, TEXTS[0])) == contents(query, TEXTS[0]), name
        assert wording.target_content(filled(target, TEXTS[1])) == contents(target, TEXTS[1]), name
        for wrong in (filled(query, "x")[:-1], f"Please. {filled(query, 'x')}", "?\n"):
            with pytest.raises(ValueError, match="is not in VLM2Vec's words, which begin with"):
                wording.query_content(wrong)


@for_each("name", MMEB_V1)
def test_both_layouts_give_the_same_items(name):
    whole, apart = rows_of(name)
    for instructions in ("data", "vlm2vec"):
        assert read(name, whole, instructions) == whole
        assert read(name, apart, instructions) == whole
    assert read(name, whole, "qwen3_vl") == read(name, apart, "qwen3_vl")

    # Its own instructions stay those of a file that has others.
    own = apart | {"qry_inst": "<|image_1|>\nOther words" if apart["qry_img_path"] else "Words:"}
    assert read(name, own, "vlm2vec") == whole
    assert "ords" in read(name, own, "data")["qry_text"]

    # Lists that hold nothing may be short, or not there.
    if not any(apart["tgt_img_path"]):
        assert read(name, apart | {"tgt_img_path": None}, "data") == whole
    if not any(apart["tgt_text"]):
        assert read(name, apart | {"tgt_text": [""]}, "data") == whole


def test_qwens_words_end_with_punctuation_and_candidates_have_the_default_ones():
    expected = {
        # no full stop after a colon, and no marker without an image
        "EDIS": (
            f"Find a news image that matches the provided caption: {TEXTS[0]}\n",
            "<|image_1|>\nRepresent the user's input. Café 3\n",
        ),
        "ImageNet-1K": (
            "<|image_1|>\nRepresent the given image for classification.\n",
            "Represent the user's input. Café 3\n",
        ),
        "NIGHTS": (
            "<|image_1|>\nFind a day-to-day image that looks similar to the provided image.\n",
            "<|image_1|>\nRepresent the user's input.\n",
        ),
    }
    for name, (query, target) in expected.items():
        row = read(name, rows_of(name)[1], "qwen3_vl")
        assert (row["qry_text"], row["tgt_text"][0]) == (query, target)

    # Rows that cannot be worded are named
    with pytest.raises(ValueError, match="instructions='qwen3_vl': there are none for 'Digits'"):
        mmeb_rows.worded("Digits", [], "qwen3_vl")
    whole, apart = rows_of("CIRR")
    texts = ["Represent it.", *whole["tgt_text"][1:]]
    for row, message in (
        (whole | {"tgt_text": texts}, "row 0: the text 'Represent it.' is not in VLM2Vec's words"),
        (apart | {"tgt_text": "x"}, "row 0: tgt_text and tgt_img_path must be lists"),
        (apart | {"tgt_text": ["x"]}, "row 0: 1 tgt_text but 2 tgt_img_path"),
        ({k: v for k, v in apart.items() if k != "qry_text"}, "row 0: no column qry_text"),
    ):
        with pytest.raises(ValueError, match=f"dataset 'CIRR', {message}"):
            mmeb_rows.worded("CIRR", [row], "vlm2vec")[0]
