"""The model card of a run whose data set, names and backbone were thought up by an enemy."""

import dataclasses
import json
import types

import pytest
import yaml

from experiments import stage2
from unime_jax import config_reader
from unime_jax.batch import Item
from unime_jax.config import TrainConfig
from unime_jax.evaluation import scores
from unime_jax.export import model_card

EVIL = "<img src=x onerror=alert(1)> | **b** [x](http://x) `y` {{ 7 * 7 }}\n---\nlicense: mit"
FENCE = '```\n# Owned\n<script>alert("x")</script>'
HIDDEN = "\u202e\x1b\x00"


def card_of(folder, backbone="org/model", sources=("a", "b"), prompt="a <image> b"):
    config = stage2.get_config()
    config.backbone = backbone
    settings = config_reader.read(TrainConfig, config.to_dict())
    text = json.dumps(config.to_dict(), indent=2, default=dataclasses.asdict)
    (folder / "config.json").write_text(text)
    percent = dict.fromkeys(["d1", FENCE], 50.0)
    table = {name: ("RET", "IND") for name in percent}
    for when in ("before", "after"):
        scores.write_scores(folder, when, scores.summary(percent, table, {FENCE: 40.0}))
    model = types.SimpleNamespace(
        preprocess=types.SimpleNamespace(
            prompt=types.SimpleNamespace(rendered=lambda item: prompt + item.text)
        ),
        dimension=8,
        caveats=(),
        commits={"org/model`x": "0" * 40},
    )
    model_card.write(
        folder,
        folder,
        settings,
        model,
        steps=3,
        cosine=1.0,
        items=[Item(EVIL)],
        sources=sources,
        warnings=(),
    )
    return (folder / "README.md").read_text()


def head_of(card):
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_an_ordinary_card_reads_as_it_is_written(tmp_path):
    head, body = head_of(card_of(tmp_path, sources=("mscoco_i2t", "A-OKVQA")))
    assert head["base_model"] == "org/model" and "`org/model`" in body
    assert ": mscoco_i2t, A-OKVQA |" in body
    assert "transparency on white" in body and "upper eight" in body


@pytest.mark.parametrize("hidden", HIDDEN)
def test_nothing_of_a_data_set_acts_in_a_card(tmp_path, hidden):
    markdown_it = pytest.importorskip("markdown_it")
    strange = f"{EVIL}{hidden}{FENCE}"
    card = card_of(tmp_path, backbone=strange, sources=[strange, "b"], prompt=strange)
    head, body = head_of(card)
    assert head.keys() == {"library_name", "pipeline_tag", "base_model", "tags"}
    assert head["base_model"] == strange and hidden not in card
    tokens = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    assert not {"html_block"} & {token.type for token in tokens}
    assert not {"html_inline", "link_open", "image", "strong_open"} & {c.type for c in inline}
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert headings[1:] == ["Use", "Training", "Evaluation", "Configuration"]
    assert sum(token.type == "td_open" for token in tokens) == 2 * 6
    (config,) = [json.loads(t.content) for t in tokens if t.type == "fence" and t.info == "json"]
    assert config["backbone"] == strange
    assert "49" not in " ".join(t.content for t in tokens if t.type == "code_block")


def test_long_prompts_are_cut(tmp_path):
    assert len(card_of(tmp_path, prompt="x" * 100_000)) < 20_000
