"""Agreement of a student with its teacher on held-out texts."""

import dataclasses
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unime_jax.batch import Item
from unime_jax.config import AgreementConfig, Distillation, Matryoshka
from unime_jax.evaluation import suite
from unime_jax.evaluation.tasks import distillation
from unime_jax.evaluation.views import Views

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


def test_the_teacher_itself_agrees_and_chance_does_not(tmp_path):
    rng = np.random.default_rng(0)
    teacher = unit(rng, 60, 8)
    items = tuple(Item(str(number)) for number in range(60))
    texts = distillation.OpenTask(items, teacher, MEASURE)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)
    same = texts.score(texts.encode(lambda given: teacher[[int(i.text) for i in given]] @ rotation))
    assert abs(same["kl"]) < 1e-4 and same["overlap"] > 99
    other = texts.score(unit(rng, 60, 8))
    assert other["kl"] > 1 and other["overlap"] < 30

    # Teacher and student have temperatures of their own. Twice the temperature is half the
    # similarity.
    rng = np.random.default_rng(0)
    student, teacher = unit(rng, 12, 8), unit(rng, 12, 8)
    measure = dataclasses.replace(MEASURE, teacher_temperature=0.4)
    found = distillation.OpenTask((), teacher, measure).score(student)["kl"]
    logits = [student @ student.T / 0.1, teacher @ teacher.T / 0.4]
    off = ~np.eye(12, dtype=bool)
    log_q, log_p = (
        (x := each[off].reshape(12, 11)) - np.log(np.exp(x).sum(axis=1, keepdims=True))
        for each in logits
    )
    assert found == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean(), rel=1e-4)

    # A training run is measured as it is trained
    fields = {field.name: None for field in dataclasses.fields(Distillation)}
    fields |= {"temperature": 0.1, "teacher_temperature": 0.4, "mask_diagonal": False}
    loss = Distillation(**fields | {"objective": "distillation", "direction": "symmetric"})
    evaluation = types.SimpleNamespace(
        texts="held_out",
        mmeb="",
        instructions="data",
        composition="",
        images="",
        image_prompt="",
        limit=0,
        dims=None,
        precisions=("int8",),
    )
    settings = types.SimpleNamespace(
        loss=loss,
        matryoshka=Matryoshka(dims=(4, 8)),
        evaluation=evaluation,
        data=types.SimpleNamespace(suffix=" in one word:", eval="", columns={"query": "text"}),
    )
    opened = suite.open_suite(settings, tmp_path, teacher := object())
    (task,) = opened.tasks
    assert opened.views == Views((4, 8), ("int8",))
    assert task.measure == AgreementConfig(0.1, 0.4, "symmetric", False)
    assert (task.folder, task.teacher) == (tmp_path / "held_out", teacher)
    assert (task.suffix, task.columns) == (" in one word:", {"query": "text"})
