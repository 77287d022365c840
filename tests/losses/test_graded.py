"""Losses of graded pairs and scored lists against float64 loops, gradients against differences."""

import functools

import jax
import numpy as np
import pytest

from unime_jax import sharding
from unime_jax.losses import graded_pairs, judge_distillation

GAP = 0.2


def plain_cosent(scores, grades, mask, source):
    losses = []
    for i in np.flatnonzero(mask):
        own = np.flatnonzero(mask & (source == source[i]))
        terms = [
            np.exp((scores[k] - scores[j]) / 0.05)
            for j in own
            for k in own
            if grades[j] > grades[k]
        ]
        losses.append(np.log(1 + sum(terms)))
    return np.mean(losses)


def plain_gap_weighted(scores, grades, mask, source):
    losses = []
    for i in np.flatnonzero(mask):
        total = 1.0
        for j in np.flatnonzero(mask & (source == source[i])):
            if grades[i] != grades[j]:
                low, high = (i, j) if grades[i] < grades[j] else (j, i)
                weight = max(abs(grades[i] - grades[j]), GAP)
                total += weight * np.exp((scores[low] - scores[high]) / 0.05)
        losses.append(np.log(total))
    return np.mean(losses)


def plain_listwise(scores, judge, mask, form):
    losses = []
    for s, t, kept in zip(scores, judge, mask, strict=True):
        s, t = s[kept], t[kept]
        if len(s) < 2:
            continue
        if form == "rank_kl":
            p, q = (np.exp(x / heat) for x, heat in ((t, 0.5), (s, 0.1)))
            p, q = p / p.sum(), q / q.sum()
            losses.append(np.sum(p * np.log(p / q)))
            continue
        terms = [
            max(t[i] - t[j], GAP) * np.exp((s[j] - s[i]) / 0.1)
            for i in range(len(s))
            for j in range(len(s))
            if t[i] > t[j]
        ]
        losses.append(np.log(1 + sum(terms)))
    return np.mean(losses)


def assert_slope(plain, scores, gradient, rng, *rest):
    toward, step = rng.standard_normal(scores.shape), 1e-6
    ends = [plain(scores + sign * step * toward, *rest) for sign in (-1, 1)]
    slope = (ends[1] - ends[0]) / (2 * step)
    np.testing.assert_allclose(np.vdot(gradient, toward), slope, rtol=1e-3, atol=1e-3)


def test_graded_losses_are_those_of_the_loops():
    """At once, by blocks of pairs, and over a mesh; of lists in both forms."""
    rng = np.random.default_rng(0)
    forms = {"cosent": plain_cosent, "gap_weighted_cosent": plain_gap_weighted}
    for form, plain in forms.items():
        for block, mesh in ((None, None), (3, None), (2, sharding.make_mesh(2, 2, 2))):
            run = jax.jit(
                jax.value_and_grad(
                    functools.partial(
                        graded_pairs, form=form, smallest_gap=GAP, sources=2, row_block=block
                    ),
                    has_aux=True,
                )
            )
            for seed in range(4 if mesh is None else 1):
                scores = rng.uniform(-1, 1, 8)
                grades = rng.integers(0, 4, 8) / 5
                mask = rng.random(8) < 0.8
                mask[:2] = True
                source = rng.integers(0, 2, 8)
                given = scores.astype("f4"), np.where(mask, grades, np.nan).astype("f4")
                with jax.set_mesh(mesh or sharding.make_mesh(1, 1, 1, jax.devices()[:1])):
                    (loss, metrics), gradient = run(*given, mask=mask, source=source)
                wanted = plain(scores, grades, mask, source)
                what = f"{form}, block {block}, {seed}"
                np.testing.assert_allclose(loss, wanted, rtol=1e-4, atol=1e-5, err_msg=what)
                np.testing.assert_allclose(
                    metrics["chance_loss"], plain(0 * scores, grades, mask, source), rtol=1e-4
                )
                by_source = np.vdot(metrics["source_loss"], metrics["source_rows"])
                np.testing.assert_allclose(by_source, loss * mask.sum(), rtol=1e-4)
                assert metrics["graded_pairs"] == mask.sum()
                assert_slope(plain, scores, gradient, rng, grades, mask, source)

    for form in ("rank_kl", "gap_weighted_cosent"):
        run = jax.jit(
            jax.value_and_grad(
                functools.partial(
                    judge_distillation,
                    form=form,
                    temperature=0.1,
                    judge_temperature=0.5,
                    smallest_gap=GAP,
                ),
                has_aux=True,
            )
        )
        for _ in range(4):
            scores, judge = rng.uniform(-1, 1, (5, 4)), rng.integers(0, 4, (5, 4)) / 5
            mask = rng.random((5, 4)) < 0.8
            mask[0] = True
            given = scores.astype("f4"), np.where(mask, judge, np.nan).astype("f4")
            (loss, metrics), gradient = run(*given, mask=mask)
            wanted = plain_listwise(scores, judge, mask, form)
            np.testing.assert_allclose(loss, wanted, rtol=1e-4, atol=1e-5, err_msg=form)
            chance = plain_listwise(0 * scores, judge, mask, form)
            np.testing.assert_allclose(metrics["chance_loss"], chance, rtol=1e-4, atol=1e-5)
            assert_slope(plain_listwise, scores, gradient, rng, judge, mask, form)


@pytest.mark.usefixtures("unchecked_shapes")
def test_graded_losses_at_the_ends():
    """Equal grades and single candidates teach nothing; what cannot be meant is refused."""
    one = np.ones(3, np.float32)
    for form in ("cosent", "gap_weighted_cosent"):
        run = jax.jit(jax.value_and_grad(lambda s, f=form: graded_pairs(s, one, form=f)[0]))
        loss, gradient = run(one)
        assert loss == 0 and not np.any(gradient)
    # Logits far apart do not overflow, and small ones of another source are not lost beside them.
    far = jax.jit(functools.partial(graded_pairs, form="cosent", temperature=0.01, sources=2))
    _, metrics = far(
        np.array([-1, 1, 0.5, 0.5], np.float32),
        np.array([1, 0, 1, 0], np.float32),
        source=np.array([0, 0, 1, 1]),
    )
    np.testing.assert_allclose(metrics["source_loss"], [200, np.log(2)], rtol=1e-6)
    for message, arguments in (
        ("same pairs", {"grades": one[:2]}),
        ("temperature is 0", {"temperature": 0}),
        ("smallest_gap is 0", {"smallest_gap": 0}),
        ("row_block is 0", {"row_block": 0}),
        ("form is 'kl'", {"form": "kl"}),
    ):
        with pytest.raises(ValueError, match=f"graded_pairs: .*{message}"):
            graded_pairs(**{"scores": one, "grades": one} | arguments)
    for form in ("rank_kl", "gap_weighted_cosent"):
        lists = jax.jit(functools.partial(judge_distillation, form=form))
        assert lists(one[:, None], one[:, None])[0] == 0
    with pytest.raises(ValueError, match="judge_distillation: form is 'kl'"):
        judge_distillation(one[None], one[None], form="kl")
