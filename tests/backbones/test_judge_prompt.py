"""Prompts of a judge: Qwen3-VL-Reranker's, as published. UniME-V2's is in jobs/test_judge.py."""

import dataclasses
import json
import pathlib

import pytest

from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.models.oracle import picture
from unime_jax import backbones
from unime_jax.backbones.preprocessing.judge_prompt import (
    PROMPTS,
    answer_tokens,
    open_judge_prompt,
)
from unime_jax.backbones.preprocessing.open_prompts import open_tokenizer
from unime_jax.batch import Item, Media

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/prompts/qwen3_vl_reranker.json"


def item(side):
    images = (Media(f"{n}.png", picture(30, 40, n)) for n in range(side["images"]))
    return Item(side["text"], tuple(images))


def test_a_reranker_is_asked_in_its_own_words_token_by_token(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    folder = write_qwen2_vl(tmp_path, mrope_section=(2, 1, 1))
    backbone = backbones.open_backbone(str(folder), max_length=512)
    tokenizer, own = open_tokenizer(folder), backbone.preprocess.prompt
    published = PROMPTS["qwen3_vl_reranker"]
    assert list(published.answers) == golden["answers"]
    assert answer_tokens(tokenizer, published.answers) != answer_tokens(tokenizer, ("Yes", "No"))
    for case in golden["cases"]:
        wording = published
        if case["instruction"]:
            wording = dataclasses.replace(published, instruction=case["instruction"])
        prompt, whole = open_judge_prompt(folder, tokenizer, own, wording)
        turn = prompt.item(item(case["query"]), item(case["document"]))
        assert turn.text == case["rendered"]
        row = backbone.lm_head.preprocess(whole)(turn)
        ids = tokenizer.encode(case["rendered"], add_special_tokens=False)
        pad = own.image_token_id
        assert [t for t in row.tokens.tolist() if t != pad] == [t for t in ids if t != pad]
        assert (row.tokens == pad).sum() == (row.slot >= 0).sum() > 0 or pad not in ids
        assert row.tokens[-1] == ids[-1]  # the newline after "assistant", where the answer begins

    file = folder / "chat_template.json"
    without = json.loads(file.read_text())["chat_template"].replace(
        "{% for message in messages %}", "{% for message in messages[-1:] %}"
    )
    file.write_text(json.dumps({"chat_template": without}))
    with pytest.raises(ValueError, match="leaves texts of a judge's turn out"):
        open_judge_prompt(folder, tokenizer, own, published)
