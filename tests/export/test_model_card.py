"""The model card of a run whose data set, names and backbone were thought up by an enemy."""

import dataclasses
import json
import types

import pytest
import yaml

from experiments import stage2
from tests.tables import for_each
from unime_jax import config_reader
from unime_jax.backbones import Processing
from unime_jax.batch import Item
from unime_jax.config import TrainConfig
from unime_jax.evaluation import scores
from unime_jax.export import model_card

EVIL = "<img src=x onerror=alert(1)> | **b** [x](http://x) `y` {{ 7 * 7 }}\n---\nlicense: mit"
FENCE = '```\n# Owned\n<script>alert("x")</script>'
HIDDEN = "\u202e\x1b\x00"


def card_of(
    folder, backbone="org/model", sources=("a", "b"), prompt="a <image> b", warnings=(), **changes
):
    config = stage2.get_config()
    config.backbone = backbone
    config.update_from_flattened_dict(changes)
    settings = config_reader.read(TrainConfig, config.to_dict())
    text = json.dumps(config.to_dict(), indent=2, default=dataclasses.asdict)
    (folder / "config.json").write_text(text)
    percent = dict.fromkeys(["d1", FENCE], 50.0)
    table = {name: ("RET", "IND") for name in percent}
    for when in ("before", "after"):
        scores.write_scores(folder, when, scores.summary(percent, table, {FENCE: 40.0}))
    model = types.SimpleNamespace(
        preprocess=types.SimpleNamespace(
            prompt=types.SimpleNamespace(rendered=lambda item: prompt + item.text, max_length=84)
        ),
        dimension=8,
        caveats=(),
        processing=Processing(prompt="chat"),
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
        warnings=warnings,
    )
    return (folder / "README.md").read_text()


def head_of(card):
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_card_names_what_a_model_was_made_from(tmp_path):
    # An ordinary card reads as it is written.
    head, body = head_of(card_of(tmp_path, sources=("mscoco_i2t", "A-OKVQA")))
    assert head["base_model"] == "org/model" and "`org/model`" in body
    assert ": mscoco_i2t, A-OKVQA |" in body
    assert "transparency on white" in body and "upper eight" in body

    # Only a hub id is a base model.
    (tmp_path := tmp_path / "next").mkdir()
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "base_model" not in head_of(card_of(tmp_path, backbone=str(folder)))[0]
    for name in ("org/model", "org/model x", "org/model: y"):
        assert head_of(card_of(tmp_path, backbone=name))[0]["base_model"] == name

    # Origins. A run, the hub with its commits, or an architecture alone.
    (tmp_path := tmp_path / "next").mkdir()
    loaded = card_of(tmp_path, init="pretrained")
    assert "It started from `org/model`. On the Hugging Face hub that was" in loaded
    random = card_of(tmp_path, init="random")
    assert "It has the architecture of `org/model`." in random
    assert "at commit `" + "0" * 40 + "`" in random


ALL_OPTIONS = {
    "data.teacher": "vectors",
    "loss.temperature_learning_rate": 0.1,
    "loss.hardness": 9.0,
    "loss.hardness_on": "explicit",
    "loss.symmetric": True,
    "loss.query_query": True,
    "loss.document_document": True,
    "loss.duplicate_queries": 0.7,
    "loss.duplicate_targets": 0.8,
    "loss.spread_out_weight": 0.5,
    "loss.pool": 8,
    "loss.closed_sources": ("a", "b"),
    "loss.graded_sources": ("c",),
    "loss.teacher_weight": 2.0,
    "loss.teacher_temperature": 0.2,
    "loss.student_temperature": 0.3,
    "loss.teacher_matching_weight": 0.25,
    "matryoshka.dims": (2, 4),
}
ALL_OPTIONS_IN_WORDS = (
    "| loss | contrastive: a learned temperature from 0.02, the 8 hardest in-batch negatives, "
    "false negatives above the positive + 0.1 left out, explicit negatives weighted by hardness "
    "9.0, both directions, queries against queries, targets against candidates, candidates of "
    "queries more similar than 0.7 left out, candidates of targets more similar than 0.8 left "
    "out, spread-out regulariser times 0.5, in pools of 8 pairs, own negatives only: a, b, gap "
    "weighted CoSENT of graded pairs: c, two-way KL to a teacher's vectors times 2.0, "
    "temperatures 0.2 and 0.3, distance from a teacher's vectors times 0.25; also of the first "
    "2, 4 numbers, weights 1 each beside 1 of all |"
)


def test_what_a_card_says_of_the_training(tmp_path):
    """Rows by name, as the settings are; and the length of the longest bucket."""
    card = card_of(tmp_path, sources=("a",))
    _, table = card.split("## Training\n\n| | |\n|---|---|\n")
    lines = table.split("\n\n")[0].splitlines()
    rows = dict(line[2:-2].split(" | ") for line in lines)
    settings = stage2.get_config()
    optimizer, lora = settings.optimizer, settings.lora
    assert rows["steps"] == f"3 of {settings.batch_size} pairs"
    assert rows["loss"].startswith(f"contrastive: temperature {settings.loss.temperature}, ")
    assert "the 8 hardest in-batch negatives" in rows["loss"]
    assert "the positive + 0.1 left out" in rows["loss"] and "hardness" not in rows["loss"]
    assert ("both directions" in rows["loss"]) is settings.loss.symmetric
    adapters = f"{'DoRA' if lora.dora else 'LoRA'}, rank {lora.rank}, alpha {lora.alpha}, merged"
    assert rows["trained"] == (
        adapters if lora.rank else "parameters chosen by the rules in `trainable`"
    )
    assert rows["optimizer"] == (
        f"AdamW, learning rate {optimizer.learning_rate}, {optimizer.schedule} after"
        f" {optimizer.warmup_steps} warmup steps"
    )
    assert rows["weights"] == settings.export.dtype and "base" not in rows
    assert "**warning**" not in rows
    lengths = [bucket.tokens for bucket in settings.data.buckets]
    assert f'from_pretrained("{tmp_path.name}", max_length={max(lengths)})' in card
    assert "in both directions" not in card

    (tmp_path / "config.json").unlink()
    changes = {"loss.symmetric": True, "loss.hardness": 9.0, "lora.rank": 4, "lora.dora": True}
    other = card_of(tmp_path, warnings=("all was skipped",), **changes)
    assert "negatives weighted by hardness 9.0, both directions" in other
    assert f"| DoRA, rank 4, alpha {lora.alpha}, merged |" in other
    assert "| **warning** | all was skipped |" in other
    assert ALL_OPTIONS_IN_WORDS in card_of(tmp_path, **ALL_OPTIONS)
    plain = card_of(tmp_path, **changes | {"loss.symmetric": False, "lora.dora": False})
    assert "both directions" not in plain and "| LoRA, rank 4," in plain
    assert "rounded to int8" in card_of(tmp_path, **{"execution.frozen_dtype": "int8"})


@for_each(
    "config, expected",
    [
        ({}, False),
        ({"is_causal": False}, True),
        ({"is_causal": True}, False),
        ({"text_config": {"is_causal": False}}, True),
        ({"text_config": None}, False),
    ],
)
def test_attention_in_both_directions_is_said(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_card._is_bidirectional(tmp_path) is expected


def test_long_prompts_are_cut_and_nothing_of_a_data_set_acts(tmp_path):
    # A prompt as long as the limit is whole.
    longest = "x" * 1000
    assert model_card._shortened(longest) == longest
    assert model_card._shortened(longest + "y") == longest + " ..."

    # Long prompts are cut.
    assert len(card_of(tmp_path, prompt="x" * 100_000)) < 20_000

    # Nothing of a data set acts in a card
    (tmp_path := tmp_path / "next").mkdir()
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("gfm-like", {"linkify": False})
    for hidden in HIDDEN:
        assert_that_nothing_acts(tmp_path, hidden, parser)


def assert_that_nothing_acts(tmp_path, hidden, parser):
    strange = f"{EVIL}{hidden}{FENCE}"
    card = card_of(tmp_path, backbone=strange, sources=[strange, "b"], prompt=strange)
    head, body = head_of(card)
    assert head.keys() == {"library_name", "pipeline_tag", "base_model", "tags"}
    assert head["base_model"] == strange and hidden not in card
    tokens = parser.parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    assert not {"html_block"} & {token.type for token in tokens}
    assert not {"html_inline", "link_open", "image", "strong_open"} & {c.type for c in inline}
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert headings[1:] == ["Use", "Training", "Evaluation", "Configuration"]
    assert sum(token.type == "td_open" for token in tokens) == 2 * 6
    (config,) = [json.loads(t.content) for t in tokens if t.type == "fence" and t.info == "json"]
    assert config["backbone"] == strange
    assert "49" not in " ".join(t.content for t in tokens if t.type == "code_block")
