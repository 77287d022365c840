"""Relational distillation against a plain NumPy loop and torch's KL, and what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from unime_jax import sharding
from unime_jax.losses import relational_distillation


def unit(rng, rows, width):
    x = rng.normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def by_hand(student, teacher, *, temperature, teacher_temperature, direction, mask_diagonal):
    """One row at a time, float64; the mean over rows."""
    total = []
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i or not mask_diagonal]
        p = softmax(student[others].astype(np.float64) @ student[i] / temperature)
        q = softmax(teacher[others].astype(np.float64) @ teacher[i] / teacher_temperature)
        forward, backward = np.sum(q * np.log(q / p)), np.sum(p * np.log(p / q))
        total.append(
            {
                "teacher_student": forward,
                "student_teacher": backward,
                "symmetric": (forward + backward) / 2,
            }[direction]
        )
    return np.mean(total)


@given(
    rows=st.integers(2, 9),
    seed=st.integers(0, 2**31),
    direction=st.sampled_from(["teacher_student", "student_teacher", "symmetric"]),
    mask_diagonal=st.booleans(),
    temperature=st.sampled_from([0.05, 0.2, 1.0]),
    teacher_temperature=st.sampled_from([0.05, 0.5]),
)
def test_equals_a_loop(rows, seed, direction, mask_diagonal, temperature, teacher_temperature):
    rng = np.random.default_rng(seed)
    student, teacher = unit(rng, rows, 5), unit(rng, rows, 7)
    options = {
        "temperature": temperature,
        "teacher_temperature": teacher_temperature,
        "direction": direction,
        "mask_diagonal": mask_diagonal,
    }
    loss, _ = relational_distillation(student, teacher, **options)
    np.testing.assert_allclose(loss, by_hand(student, teacher, **options), rtol=2e-4, atol=1e-5)
    summed, _ = relational_distillation(student, teacher, **options, reduction="sum")
    np.testing.assert_allclose(summed, rows * loss, rtol=1e-5)


def test_gradient_equals_torch():
    """torch's kl_div of the usual call, F.kl_div(log p, q): KL(teacher || student)."""
    rng = np.random.default_rng(0)
    student, teacher = unit(rng, 12, 6), unit(rng, 12, 9)
    gradient = jax.grad(
        lambda s: relational_distillation(s, teacher, temperature=0.1, mask_diagonal=False)[0]
    )(jnp.asarray(student))
    x = torch.tensor(student, requires_grad=True)
    t = torch.tensor(teacher)
    log_p = torch.log_softmax(x @ x.T / 0.1, dim=1)
    q = torch.softmax(t @ t.T / 0.1, dim=1)
    torch.nn.functional.kl_div(log_p, q, reduction="batchmean").backward()
    np.testing.assert_allclose(gradient, x.grad, atol=2e-5)


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_padding_does_not_matter(direction):
    rng = np.random.default_rng(1)
    student, teacher = unit(rng, 7, 5), unit(rng, 7, 4)
    places = np.array([0, 2, 3, 5, 6, 8, 9])
    padded = [np.zeros((11, x.shape[1]), np.float32) for x in (student, teacher)]
    for whole, part in zip(padded, (student, teacher), strict=True):
        whole[places] = part
    mask = np.isin(np.arange(11), places)

    def loss(s, t, mask=None):
        return relational_distillation(s, t, direction=direction, row_mask=mask)

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(student, teacher)
    (with_padding, same), wide = jax.value_and_grad(loss, has_aux=True)(*padded, mask)
    np.testing.assert_allclose(with_padding, value, rtol=1e-6)
    np.testing.assert_allclose(wide[places], gradient, rtol=1e-5, atol=1e-5)
    assert not np.any(wide[~mask])
    for name, number in metrics.items():
        np.testing.assert_allclose(same[name], number, rtol=1e-5, err_msg=name)


def test_nothing_but_padding():
    loss, gradient = jax.value_and_grad(
        lambda s: relational_distillation(s, jnp.ones((4, 2)), row_mask=jnp.zeros(4, bool))[0]
    )(jnp.ones((4, 3)))
    assert loss == 0 and not np.any(gradient)


def test_least_where_both_agree():
    """Zero for a rotated teacher; and any other student is worse."""
    rng = np.random.default_rng(2)
    teacher = unit(rng, 10, 6)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    loss, metrics = relational_distillation(teacher @ rotation, teacher)
    assert abs(loss) < 1e-5 and metrics["nearest_agreement"] == 1
    other, _ = relational_distillation(unit(rng, 10, 6), teacher)
    assert other > 0.5
    np.testing.assert_allclose(metrics["teacher_entropy"], metrics["student_entropy"], rtol=1e-4)


def test_the_diagonal_swallows_a_cold_distribution():
    """Why it is masked by default: with it, unrelated models look alike at temperature 0.02."""
    rng = np.random.default_rng(3)
    student, teacher = unit(rng, 16, 64), unit(rng, 16, 64)
    kept, _ = relational_distillation(student, teacher, temperature=0.02, mask_diagonal=False)
    masked, _ = relational_distillation(student, teacher, temperature=0.02)
    assert kept < 1e-5 < 1 < masked


def test_columns_of_their_own():
    """Queries against their positives: a rectangle, each row without its own partner."""
    rng = np.random.default_rng(4)
    student, teacher = unit(rng, 6, 5), unit(rng, 6, 4)
    columns = unit(rng, 6, 5), unit(rng, 6, 4)
    loss, _ = relational_distillation(student, teacher, *columns, temperature=0.3)
    rows = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        p = softmax(columns[0][others] @ student[i] / 0.3)
        q = softmax(columns[1][others] @ teacher[i] / 0.3)
        rows.append(np.sum(q * np.log(q / p)))
    np.testing.assert_allclose(loss, np.mean(rows), rtol=1e-4)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 8, 1)])
def test_the_same_on_any_mesh(shape):
    rng = np.random.default_rng(5)
    student, teacher = unit(rng, 16, 6), unit(rng, 16, 9)
    mask = np.arange(16) < 13

    def loss(s, t, mask):
        return relational_distillation(s, t, row_mask=mask)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(student), teacher, mask)
    mesh = sharding.make_mesh(*shape)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P(sharding.ROWS))
        placed = [jax.device_put(x, rows) for x in (student, teacher, mask)]
        on_mesh, there = jax.jit(jax.value_and_grad(loss))(*placed)
    np.testing.assert_allclose(on_mesh, value, rtol=1e-5)
    np.testing.assert_allclose(there, gradient, atol=1e-5)


def test_bfloat16_is_computed_in_float32():
    rng = np.random.default_rng(6)
    student, teacher = unit(rng, 8, 5), unit(rng, 8, 5)
    half = jnp.asarray(student, jnp.bfloat16)
    loss, _ = relational_distillation(half, teacher, temperature=0.02)
    exact, _ = relational_distillation(half.astype(jnp.float32), teacher, temperature=0.02)
    assert loss == exact and loss.dtype == jnp.float32


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature is -1.0"),
        ({"direction": "ts"}, "direction is 'ts'"),
        ({"reduction": "none"}, "reduction 'none'"),
        ({"teacher": np.ones((5, 2))}, "the teacher's"),
        ({"student_columns": np.ones((4, 3))}, "columns of both"),
        (
            {"student_columns": np.ones((4, 2)), "teacher_columns": np.ones((4, 2))},
            "student's rows",
        ),
    ],
)
def test_what_cannot_be_meant(change, message):
    arguments = {"student": np.ones((4, 3)), "teacher": np.ones((4, 2))} | change
    with pytest.raises(ValueError, match=message):
        relational_distillation(**arguments)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher", "symmetric"])
def test_the_loss_of_a_constant_student_is_that_of_chance(direction, reduction):
    rng = np.random.default_rng(2)
    student, teacher = np.repeat(unit(rng, 1, 6), 9, axis=0), unit(rng, 9, 4)
    options = {"direction": direction, "reduction": reduction, "row_mask": jnp.arange(9) < 7}
    loss, metrics = relational_distillation(student, teacher, temperature=0.3, **options)
    np.testing.assert_allclose(loss, metrics["chance_loss"], rtol=1e-4)


def test_losses_by_source_are_means_over_their_rows():
    rng = np.random.default_rng(3)
    student, teacher = unit(rng, 6, 5), unit(rng, 6, 4)
    source = jnp.asarray([1, 1, 0, 0, 1, -1])
    mask = jnp.arange(6) < 5
    loss, metrics = relational_distillation(
        student, teacher, row_mask=mask, source=source, sources=2
    )
    assert metrics["source_rows"].tolist() == [2, 3]
    np.testing.assert_allclose(metrics["source_loss"] @ jnp.asarray([2, 3]) / 5, loss, rtol=1e-5)
