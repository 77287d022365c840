"""Losses on prefixes against sentence-transformers' MatryoshkaLoss of its own losses."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from unime_jax.losses import contrastive, graded_pairs, matryoshka
from unime_jax.losses.matryoshka import prefix


class Given(torch.nn.Module):
    """A model whose embeddings are its inputs."""

    def forward(self, features):
        return dict(features)

    def get_embedding_dimension(self):
        return 12


def test_values_and_gradients_are_those_of_sentence_transformers():
    rng = np.random.default_rng(0)
    sides = rng.standard_normal((2, 6, 12)).astype(np.float32)
    sides /= np.linalg.norm(sides, axis=-1, keepdims=True)
    grades = rng.uniform(0, 1, 6).astype(np.float32)
    model = Given()

    def ranked(parts):
        return contrastive(*parts, temperature=0.05)

    def ordered(parts):
        cosine = (parts[0] * parts[1]).sum(axis=1)
        return graded_pairs(cosine, grades, form="cosent", temperature=0.05)

    for ours, theirs, labels in (
        (ranked, MultipleNegativesRankingLoss(model, scale=20.0), None),
        (ordered, CoSENTLoss(model, scale=20.0), torch.from_numpy(grades)),
    ):
        tensors = [torch.from_numpy(side).requires_grad_() for side in sides]
        whole = MatryoshkaLoss(model, theirs, [12, 3, 7], [1.0, 0.5, 2.0])
        wanted = whole([{"sentence_embedding": x} for x in tensors], labels)
        wanted.backward()
        value, gradient = jax.jit(
            jax.value_and_grad(
                lambda parts, ours=ours: matryoshka(ours, parts, dims=(3, 7), weights=(0.5, 2.0))[0]
            )
        )(list(sides))
        np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
        for side, x, slope in zip(sides, tensors, gradient):
            # Theirs scales whole vectors as well, which leaves nothing along them.
            slope -= (slope * side).sum(axis=1, keepdims=True) * side
            np.testing.assert_allclose(slope, x.grad, atol=2e-5 * np.abs(x.grad).max())


def test_a_row_of_zeros_stays_one_and_has_a_gradient_of_zeros():
    rows = np.array([[0, 0, 3.0], [3, 4, 5]], np.float32)  # the first of zeros in its prefix

    @jax.jit
    def run(rows):
        dim = jnp.int32(2)
        return prefix(rows, dim), jax.grad(lambda x: prefix(x, dim).sum())(rows)

    found, gradient = run(rows)
    np.testing.assert_allclose(found, [[0, 0, 0], [0.6, 0.8, 0]], atol=1e-6)
    assert np.isfinite(gradient).all() and not gradient[:, 2].any() and gradient[1, :2].all()
