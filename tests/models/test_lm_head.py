"""The language-model head, tied and its own, against transformers' logits and its `generate`."""

import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    RepetitionPenaltyLogitsProcessor,
)

from tests.backbones.tiny_families import DECODER
from tests.backbones.tiny_qwen import write_qwen2_5_vl, write_qwen2_vl
from tests.backbones.tiny_qwen3 import write_qwen3_vl
from tests.models.oracle import (
    EXACT,
    load,
    make_next_pair,
    make_pair,
    packed,
    pair_of,
    picture,
    torch_logits,
)
from tests.tables import for_each
from unime_jax import backbones, paths
from unime_jax.backbones.preprocessing import judge_prompt
from unime_jax.backbones.preprocessing.open_prompts import open_tokenizer
from unime_jax.batch import Item, Media
from unime_jax.data.bucket_filling import fill_buckets
from unime_jax.data.shapes import BatchShapes, Bucket
from unime_jax.data.shared_prefix import pack
from unime_jax.models.answers import make_answer_logits
from unime_jax.models.decoder import Decoder, DecoderConfig

WIDE = DECODER | dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
UNTIED = WIDE | dict(tie_word_embeddings=False)  # as the larger Qwen2-VL are
ITEMS = [
    Item("Is it a red circle, Yes or No?"),
    Item("<|image_1|>\na red circle", (Media("1.png", picture(41, 43, 1)),)),
]
TEXTS = [ITEMS[0], Item("left of a blue square")]
DECODER_CONFIG = DecoderConfig(20, 8, 8, 1, 1, 1, 8, 1e-6, 1e4, (0,) * 4, False, "silu")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    qwen2_vl = write_qwen2_vl(folder / "qwen2_vl", mrope_section=(2, 3, 3), text=UNTIED)
    qwen2_5_vl = write_qwen2_5_vl(folder / "qwen2_5_vl", mrope_section=(2, 3, 3), text=UNTIED)
    return {
        "llava_onevision": make_pair(folder / "llava_onevision", grid=2),
        "llava_next": make_next_pair(folder / "llava_next", "mistral"),
        "qwen2_vl": pair_of(qwen2_vl),
        "qwen3_vl": pair_of(
            write_qwen3_vl(folder / "qwen3_vl", mrope_section=(4, 2, 2), text=UNTIED)
        ),
        "qwen2_5_vl": pair_of(qwen2_5_vl),
    }


def tied(pair, folder):
    """The pair without a head of its own, as the small Qwen2-VL are published."""
    shutil.copytree(pair.backbone.folder, folder)
    for file in folder.glob("*.safetensors"):
        kept = {name: x for name, x in load_file(file).items() if "lm_head" not in name}
        save_file(kept, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = True
    if "text_config" in config:
        config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    theirs = AutoModelForImageTextToText.from_pretrained(
        folder, config=AutoConfig.from_pretrained(folder)
    ).eval()
    opened = backbones.open_backbone(str(folder), max_length=4096)
    return dataclasses.replace(pair, torch_model=theirs, backbone=opened)


def headed(pair):
    """The graph and parameters of the pair's model with its head."""
    backbone = backbones.with_lm_head(pair.backbone)
    graph, _ = paths.split(jax.eval_shape(backbone.make_model, jax.random.key(0)))
    return graph, load(backbone)


FAMILIES = ("llava_onevision", "llava_next", "qwen2_vl", "qwen3_vl", "qwen2_5_vl")


# Names of heads are a family's own; a head that is tied is the table of tokens, which all share.
# Qwen2-VL's own answers below.
# Towers of all families are compared elsewhere: an image is in one row of the table.
@for_each(
    "family, is_tied",
    itertools.product(FAMILIES, (False, True)),
    quick=[(family, family == "qwen2_vl") for family in FAMILIES],
)
def test_logits_at_the_last_position_are_those_of_transformers(pairs, tmp_path, family, is_tied):
    pair = tied(pairs[family], tmp_path / family) if is_tied else pairs[family]
    graph, parameters = headed(pair)
    assert any("lm_head" in path for path in parameters) != is_tied
    items, room = (ITEMS, (120, 5)) if is_tied else (TEXTS, (80, 0))
    inputs, numbers = packed(pair, items, *room)

    @jax.jit
    def logits(parameters, inputs):
        model = paths.merge(graph, parameters)
        return model.language_model.logits(model.last_state(inputs, EXACT))

    ours = logits(parameters, inputs)
    assert ours.dtype == np.float32
    theirs = [torch_logits(pair, item) for item in items]
    np.testing.assert_allclose(np.asarray(ours)[numbers], theirs, rtol=0, atol=1e-4)


def test_answers_are_a_few_of_the_logits_after_transformers_repetition_penalty(pairs):
    pair = pairs["qwen2_vl"]
    graph, parameters = headed(pair)
    inputs, numbers = packed(pair, ITEMS, 120, 5)
    rows = [pair.backbone.preprocess(item).tokens for item in ITEMS]
    logits = np.stack([torch_logits(pair, item) for item in ITEMS])
    tokens = int(rows[0][0]), int(rows[0][1]), int(logits[1].argmax()), int(logits[1].argmin())
    for penalty in (1.0, 1.05):
        encode = make_answer_logits(graph, EXACT, tokens, repetition_penalty=penalty)
        ours = np.asarray(jax.jit(encode)({}, parameters, inputs))[numbers]
        processor = RepetitionPenaltyLogitsProcessor(penalty)
        theirs = [
            processor(torch.tensor(row)[None].long(), torch.tensor(x)[None])[0, list(tokens)]
            for row, x in zip(rows, logits, strict=True)
        ]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


# Rows of both kinds of towers are packed in data/test_shared_prefix.py; tests of job judge:
# Qwen2.5-VL.
@for_each("family", ["llava_onevision", "qwen2_vl"], quick=["qwen2_vl"])
def test_answers_are_the_same_where_prompts_share_what_they_begin_with(pairs, family):
    def image(width, height, seed):
        return Media(f"{seed}.png", picture(width, height, seed))

    queries = [Item("a red circle"), Item("<|image_1|>\na red circle", (image(41, 43, 1),))]
    candidates = [
        Item("left"),
        Item("left of a blue square, and a red circle"),
        Item("", (image(41, 43, 2),)),
        Item("an image", (image(20, 60, 3),)),
        Item("", (image(41, 43, 4), image(30, 30, 5))),
    ]
    pair = pairs[family]
    backbone = backbones.with_lm_head(pair.backbone)
    own, folder = backbone.preprocess.prompt, backbone.folder
    prompt, whole = judge_prompt.open_judge_prompt(
        folder, open_tokenizer(folder), own, judge_prompt.PROMPTS["unime_v2"]
    )
    preprocess = backbone.lm_head.preprocess(whole)
    graph, parameters = headed(pair)
    by_query = [[preprocess(prompt.item(q, c)) for c in candidates] for q in queries]
    # One answer is a token of a candidate alone, the other of all prompts.
    only = set(by_query[0][1].tokens.tolist()) - set(by_query[0][0].tokens.tolist())
    answers = min(only), int(by_query[0][0].tokens[0])
    encode = jax.jit(make_answer_logits(graph, EXACT, answers, repetition_penalty=1.05))

    def logits(rows, layout):
        tokens = max(len(row.tokens) for row in rows)
        tiles = max(0 if row.patches is None else len(row.patches) for row in rows)
        shapes = BatchShapes((Bucket(tokens + 3, tiles + 1),), layout, len(rows), len(rows))
        (group,), places = fill_buckets(rows, shapes)
        chunk = jax.tree.map(lambda x: jax.device_put(x[0]), group)
        return np.asarray(encode({}, parameters, chunk))[places[:, 2]]

    alone = logits(sum(by_query, []), backbone.layout)
    layout = dataclasses.replace(backbone.layout, segments=6)
    packs = [(pack(rows, layout, max_tokens=1000, max_patches=9000), rows) for rows in by_query]
    together = logits([p.row for rows, _ in packs for p in rows], layout)
    shared = np.full((len(queries), len(candidates), 2), np.nan)
    places = [(q, p.numbers) for q, (rows, _) in enumerate(packs) for p in rows]
    for (query, numbers), values in zip(places, together.reshape(-1, 6, 2), strict=True):
        shared[query, list(numbers)] = values[: len(numbers)]
    np.testing.assert_allclose(shared.reshape(-1, 2), alone, rtol=0, atol=1e-5)
    # Templates of LLaVA write all images first: what a candidate with one shares ends there.
    most = {"qwen2_vl": 0.55}.get(family, 0.9)
    for shorter, rows in packs:
        left = sum(len(p.row.tokens) for p in shorter) / sum(len(row.tokens) for row in rows)
        assert left < most


def test_a_head_that_is_not_there_and_segments_that_no_decoder_tells_apart(pairs, tmp_path):
    pair = pairs["qwen2_vl"]
    folder = tied(pair, tmp_path / "headless").backbone.folder
    shutil.copy(pair.backbone.folder / "config.json", folder)  # which ties nothing
    opened = backbones.open_backbone(str(folder), max_length=4096)
    with pytest.raises(ValueError, match="has no lm_head.weight.*tie_word_embeddings"):
        backbones.with_lm_head(opened)
    without = dataclasses.replace(opened, lm_head=None)
    with pytest.raises(ValueError, match="head of this family is not read here"):
        backbones.with_lm_head(without)

    # Segments are of a causal decoder, in rows of a known length.
    bidirectional = dataclasses.replace(DECODER_CONFIG, causal=False)
    decoder = Decoder(bidirectional, key=jax.random.key(0))
    x, positions = jnp.zeros((1, 2, 8)), jnp.zeros((1, 2, 1), jnp.int32)
    options = dict(remat="none", implementation="xla", segment=jnp.zeros((1, 2), jnp.int32))
    with pytest.raises(ValueError, match="several segments: its decoder is bidirectional"):
        decoder(x, positions, **options)
    with pytest.raises(ValueError, match="rows of 2 tokens with several texts: .* rows of up to 0"):
        decoder(x, positions, **options, shares_prefix=False)
