"""CoSENT and listwise KL against plain loops in float64, gradients against differences."""

import functools

import jax
import numpy as np
import pytest

from unime_jax.losses import cosent, gap_weighted_cosent, listwise_distillation


def plain_cosent(scores, grades, mask):
    live = np.flatnonzero(mask)
    terms = [
        np.exp((scores[j] - scores[i]) / 0.05) for i in live for j in live if grades[i] > grades[j]
    ]
    return np.log(1 + sum(terms))


def plain_gap_weighted(scores, grades, mask):
    live, losses = np.flatnonzero(mask), []
    for i in live:
        total = 1.0
        for j in live:
            if grades[i] != grades[j]:
                low, high = (i, j) if grades[i] < grades[j] else (j, i)
                weight = max(abs(grades[i] - grades[j]), 0.2)
                total += weight * np.exp((scores[low] - scores[high]) / 0.05)
        losses.append(np.log(total))
    return np.mean(losses)


def plain_listwise(scores, teacher, mask):
    losses = []
    for s, t, kept in zip(scores, teacher, mask, strict=True):
        if kept.sum() < 2:
            continue
        p, q = (np.exp(x[kept] / heat) for x, heat in ((t, 0.5), (s, 0.1)))
        p, q = p / p.sum(), q / q.sum()
        losses.append(np.sum(p * np.log(p / q)))
    return np.mean(losses)


def test_graded_losses_are_those_of_the_loops():
    rng = np.random.default_rng(0)
    cases = [
        (cosent, plain_cosent, {"temperature": 0.05}, (7,)),
        (gap_weighted_cosent, plain_gap_weighted, {"smallest_gap": 0.2}, (7,)),
        (
            listwise_distillation,
            plain_listwise,
            {"temperature": 0.1, "teacher_temperature": 0.5},
            (5, 4),
        ),
    ]
    for function, plain, options, shape in cases:
        run = jax.jit(jax.value_and_grad(functools.partial(function, **options)))
        for _ in range(5):
            scores = rng.uniform(-1, 1, shape)
            grades = rng.integers(0, 4, shape) / 5
            mask = rng.random(shape) < 0.8
            mask.reshape(-1)[:2] = True
            loss, gradient = run(scores.astype("f4"), grades.astype("f4"), mask=mask)
            wanted = plain(scores, grades, mask)
            np.testing.assert_allclose(loss, wanted, rtol=1e-4, atol=1e-5)
            toward, step = rng.standard_normal(shape), 1e-6
            ends = [plain(scores + sign * step * toward, grades, mask) for sign in (-1, 1)]
            slope = (ends[1] - ends[0]) / (2 * step)
            np.testing.assert_allclose(np.vdot(gradient, toward), slope, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("unchecked_shapes")
def test_graded_losses_at_the_ends():
    """Equal grades and single candidates teach nothing; what cannot be meant is refused."""
    one = np.ones(3, np.float32)
    for function in (cosent, gap_weighted_cosent):
        loss, gradient = jax.value_and_grad(lambda s, f=function: f(s, one))(one * 0.5)
        assert loss == 0 and not np.any(gradient)
        for message, arguments in (
            ("same pairs", (one, one[:2], 0.05)),
            ("temperature is 0", (one, one, 0)),
        ):
            with pytest.raises(ValueError, match=f"cosent: .*{message}"):
                function(*arguments[:2], temperature=arguments[2])
    with pytest.raises(ValueError, match="smallest_gap is 0"):
        gap_weighted_cosent(one, one, smallest_gap=0)
    assert listwise_distillation(one[:, None], one[:, None]) == 0
    with pytest.raises(ValueError, match="same candidates"):
        listwise_distillation(one[:, None], one[None])
    with pytest.raises(ValueError, match="teacher_temperature is -1"):
        listwise_distillation(one[None], one[None], teacher_temperature=-1)
