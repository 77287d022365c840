"""Several texts in a row: embeddings, losses and gradients of texts that have a row each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.backbones.tiny_folders import write_folder
from tests.backbones.tiny_phi3_v import write_phi3_v
from tests.backbones.tiny_qwen import write_qwen2_vl
from tests.backbones.tiny_texts import write_bert
from tests.models.noise import drawn
from tests.tables import for_each
from unime_jax import backbones, paths
from unime_jax.batch import Example, Item
from unime_jax.data.packing import pack, prepare
from unime_jax.data.settings import Bucket
from unime_jax.data.shapes import BatchShapes
from unime_jax.models.forward import make_encode
from unime_jax.models.vlm import Execution
from unime_jax.training.backbone_checks import check_texts
from unime_jax.training.gradcache import encode_in_chunks
from unime_jax.training.loss_settings import Contrastive, Distillation
from unime_jax.training.matryoshka import objective_loss
from unime_jax.training.objectives import mean_cosine
from unime_jax.training.step import batch_loss

EXACT = Execution(jnp.dtype("float32"), "none", "xla")
TEACHER = 6
CONTRASTIVE = Contrastive("contrastive", 0.1, None, None, 0.0, True, None, True)
DISTILLATION = Distillation("distillation", "all", 0.1, None, "symmetric", True, "mean")
FAMILIES = {
    "llava_onevision": write_folder,
    "qwen2_vl": write_qwen2_vl,
    "phi3_v": write_phi3_v,
}
OBJECTIVES = ((CONTRASTIVE, True), (DISTILLATION, False), (DISTILLATION, True))  # recomputed?
CASES = [(family, objective) for family in FAMILIES for objective in OBJECTIVES]
WORDS = ("red", "a blue square", "a small green circle", "left of it", "red it is, and large")


def examples(count):
    """Texts of one to a dozen words; some of them come twice."""
    texts = [" ".join(WORDS[(n * k) % 5] for k in range(1, 2 + n % 4)) for n in range(3 * count)]
    texts[7] = texts[1]
    return [
        Example("a", str(n), Item(texts[3 * n]), Item(texts[3 * n + 1]), (Item(texts[3 * n + 2]),))
        for n in range(count)
    ]


def opened(family, folder):
    """A backbone of texts alone, its model, and random parameters."""
    whole = backbones.open_backbone(str(FAMILIES[family](folder)), max_length=256)
    backbone = backbones.language_only(whole, TEACHER)
    abstract = jax.eval_shape(backbone.make_model, jax.random.key(0))
    return backbone, abstract, drawn(paths.split(abstract)[1])


def batches(backbone, abstract):
    """The same texts with a row each, and several in a row."""

    def preprocess(item):
        vector = np.random.default_rng(len(item.text)).standard_normal(TEACHER, np.float32)
        return dataclasses.replace(backbone.preprocess(item), teacher=vector)

    lengths = [len(preprocess(e.query).tokens) for e in examples(6)]
    longest = Bucket(max(80, max(lengths)), 0)
    # Too few rows of several for all texts: some overflow to the largest bucket.
    width = min(2 * max(lengths) + 3, abstract.pack_tokens)
    several = Bucket(width, 0, share=0.12, rows=1, texts=5)
    made = []
    for buckets in ((longest,), (several, longest)):
        shapes = BatchShapes(buckets, backbone.layout, 8, 18, negatives=1)
        batch, info = pack([prepare(e, preprocess, shapes) for e in examples(6)], shapes, ["a"])
        assert sum(info.rows) == sum(int(group.embedded.sum()) for group in batch.groups)
        made.append(batch)
    assert info.rows[0] > 2 * info.chunks[0] and info.rows[1], info
    assert info.overflowed == 0
    return made


def assert_same(alone, packed):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-4, atol=1e-5 * float(np.abs(a).max()) + 1e-7
        ),
        alone,
        packed,
    )


# Of one family, for a loss has the vectors, whatever they are of; positions are a family's own.
@for_each("family, objective", CASES, quick=[("qwen2_vl", OBJECTIVES[0])])
def test_losses_and_gradients_of_rows_of_several_texts(family, objective, tmp_path):
    objective, recompute = objective
    backbone, abstract, parameters = opened(family, tmp_path)
    encode = make_encode(paths.split(abstract)[0], EXACT)
    alone, packed = batches(backbone, abstract)

    def at_once(p):
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), alone.groups[0])
        parts = [encode(p, {}, rows).reshape(*alone.groups[0].live.shape, -1)]
        loss, _ = objective_loss(parts, alone, objective)
        return loss, mean_cosine(parts, alone)

    def in_chunks(p):
        # Of rows of several texts a chunk is kept, and others are merged; all others are kept.
        kept, merged = ((1, 9), 2) if recompute else ((), 1)
        loss, metrics = batch_loss(
            encode, p, {}, packed, objective, recompute=recompute, kept=kept, merged=merged
        )
        return loss, metrics["mean_cosine"]

    assert_same(
        *(jax.jit(jax.value_and_grad(f, has_aux=True))(parameters) for f in (at_once, in_chunks))
    )


@for_each("family", ["llava_onevision", "phi3_v"])
def test_vectors_and_distillation_of_rows_of_several_texts(family, tmp_path):
    """Qwen2-VL's with their gradient above."""
    backbone, abstract, parameters = opened(family, tmp_path)
    encode = make_encode(paths.split(abstract)[0], EXACT)
    alone, packed = batches(backbone, abstract)

    @jax.jit
    def run(p, batch):
        parts = [encode_in_chunks(encode, p, {}, x, recompute=False) for x in batch.groups]
        rows = jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
        texts = [rows[index] for index in (batch.query, batch.positive, batch.negative)]
        return texts, objective_loss(parts, batch, DISTILLATION)[0]

    assert_same(run(parameters, alone), run(parameters, packed))


def test_a_model_whose_texts_would_see_each_other_refuses_rows_of_several(tmp_path):
    backbone = backbones.open_backbone(str(write_bert(tmp_path)), max_length=32)

    @dataclasses.dataclass
    class Settings:
        data: object

    @dataclasses.dataclass
    class Data:
        buckets: tuple

    packed = Settings(Data((Bucket(24, 0, texts=3), Bucket(32, 0))))
    with pytest.raises(ValueError, match="rows of 24 tokens have room for several texts.*a text"):
        check_texts(packed, backbone)
    with pytest.raises(ValueError, match="come first, and the largest is none of them"):
        BatchShapes((Bucket(24, 0, texts=3),), backbone.layout, 8, 8)
    with pytest.raises(ValueError, match="has tokens and no tiles"):
        BatchShapes((Bucket(24, 1, texts=3), Bucket(32, 1)), backbone.layout, 8, 8)
