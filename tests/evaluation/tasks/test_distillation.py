"""Agreement of a student with its teacher on held-out texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unime_jax.batch import Item
from unime_jax.config import AgreementConfig
from unime_jax.evaluation.tasks import distillation

MEASURE = AgreementConfig(
    temperature=0.1, teacher_temperature=None, direction="teacher_student", mask_diagonal=True
)


def unit(rng, rows, width):
    x = rng.normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@given(seed=st.integers(0, 2**31), rows=st.integers(4, 12), k=st.integers(1, 3))
def test_overlap_by_sorting(seed, rows, k):
    rng = np.random.default_rng(seed)
    a, b = unit(rng, rows, 5), unit(rng, rows, 3)
    shared = 0
    for i in range(rows):
        others = [j for j in range(rows) if j != i]
        one, other = (sorted(others, key=lambda j: -x[i] @ x[j])[:k] for x in (a, b))
        shared += len(set(one) & set(other))
    assert distillation.neighbour_overlap(a, 3 * b, k) == pytest.approx(shared / rows / k)


def test_the_teacher_itself_agrees_and_chance_does_not():
    rng = np.random.default_rng(0)
    teacher = unit(rng, 60, 8)
    items = tuple(Item(str(number)) for number in range(60))
    texts = distillation.OpenTask(items, teacher, MEASURE)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)
    same = texts.score(texts.encode(lambda given: teacher[[int(i.text) for i in given]] @ rotation))
    assert abs(same["kl"]) < 1e-4 and same["overlap"] > 99
    other = texts.score(unit(rng, 60, 8))
    assert other["kl"] > 1 and other["overlap"] < 30
