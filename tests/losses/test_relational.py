"""Distillation of a teacher's vectors against float64, row by row, and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests import shapes
from tests.losses.loops import unit
from unime_jax import sharding
from unime_jax.losses import relational_distillation, teacher_distillation, teacher_matching

ROWS, SOURCES = 7, 3
CASES = {
    "defaults": {},
    "the diagonal kept": {"mask_diagonal": False, "temperature": 0.2, "teacher_temperature": 0.5},
    "the other direction": {"direction": "student_teacher", "temperature": 0.1},
    "a colder teacher": {
        "direction": "student_teacher",
        "temperature": 1.0,
        "teacher_temperature": 0.05,
        "reduction": "sum",
    },
    "both directions": {"direction": "symmetric", "temperature": 0.3, "reduction": "sum"},
}


def kl(log_p, log_q):
    """KL(p || q)."""
    return torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum")


def by_hand(
    student, teacher, columns, keep, source, *, temperature=0.02, teacher_temperature=None,
    direction="teacher_student", mask_diagonal=True, reduction="mean",
):  # fmt: skip
    """Loss, its gradient by student, and metrics; `columns`: None, or the student's and teacher's.

    One row at a time, over the columns that `keep` says.
    """

    def tensor(x):
        return torch.tensor(np.asarray(x, np.float64))

    own, theirs = tensor(student).requires_grad_(), tensor(teacher)
    others, their_others = (own, theirs) if columns is None else map(tensor, columns)
    keep = keep & ~np.eye(*keep.shape, dtype=bool) if mask_diagonal else keep
    losses, entropies, agree, chances = [], [], [], []

    def directed(forward, backward):
        return {
            "teacher_student": forward,
            "student_teacher": backward,
            "symmetric": (forward + backward) / 2,
        }[direction]

    live = np.flatnonzero(keep.any(axis=1))
    for i in live:
        ours, wanted = others[keep[i]] @ own[i], their_others[keep[i]] @ theirs[i]
        p = torch.log_softmax(ours / temperature, 0)
        q = torch.log_softmax(wanted / (teacher_temperature or temperature), 0)
        even = torch.full_like(q, -np.log(len(q)))
        losses.append(directed(kl(q, p), kl(p, q)))
        chances.append(directed(kl(q, even), kl(even, q)))
        entropies.append([-(x.exp() * x).sum().item() for x in (q, p)])
        agree.append(bool(ours.argmax() == wanted.argmax()))
    losses, chances = torch.stack(losses), torch.stack(chances)
    loss, chance = (getattr(x, reduction)() for x in (losses, chances))
    loss.backward()
    metrics = dict(zip(("teacher_entropy", "student_entropy"), np.mean(entropies, axis=0)))
    parts = [losses.detach().numpy()[source[live] == n] for n in range(SOURCES)]
    metrics |= {
        "nearest_agreement": np.mean(agree),
        "chance_loss": chance.item(),
        "source_rows": [len(part) for part in parts],
        "source_loss": [part.mean() if part.size else 0 for part in parts],
    }
    return loss.item(), own.grad.numpy(), metrics


def jitted(**options):
    def loss(student, arrays):
        return relational_distillation(student, **arrays, **options, sources=SOURCES)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def assert_by_hand(results, wanted, what):
    (loss, metrics), gradient = results
    expected_loss, expected_gradient, expected = wanted
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-4, atol=1e-5, err_msg=what)
    scale = max(1, np.abs(expected_gradient).max())
    np.testing.assert_allclose(gradient, expected_gradient, atol=2e-5 * scale, err_msg=what)
    assert metrics.keys() == expected.keys()
    for name, number in expected.items():
        np.testing.assert_allclose(
            metrics[name], number, rtol=2e-4, atol=1e-5, err_msg=f"{what}: {name}"
        )


def random_rows(seed, columns=None):
    """Student, teacher, the mask of rows, sources; and columns of their own with their mask."""
    rng = np.random.default_rng(seed)
    mask = np.array([1, 1, 0, 1, 1, 0, 1], bool)
    student, teacher = unit(rng, ROWS, 5), unit(rng, ROWS, 8)
    student[~mask] = teacher[~mask] = 0
    source = rng.integers(-1, SOURCES - 1, ROWS).astype(np.int32)
    arrays = {"teacher": teacher, "row_mask": mask, "source": source}
    if columns:
        own = {"student_columns": unit(rng, columns, 5), "teacher_columns": unit(rng, columns, 8)}
        arrays |= own | {"column_mask": np.arange(columns) != 3}
    return student, arrays


def test_equals_torch_among_all_rows_and_with_columns_of_their_own():
    """Padding is left out of rows and columns, and no gradient reaches it."""
    for what, options in CASES.items():
        run = jitted(**options)
        for seed in range(4):
            student, arrays = random_rows(seed)
            mask = arrays["row_mask"]
            keep = mask[:, None] & mask
            wanted = by_hand(student, arrays["teacher"], None, keep, arrays["source"], **options)
            results = run(student, arrays)
            assert_by_hand(results, wanted, f"{what}, seed {seed}")
            assert not np.any(results[1][~mask])

    # Equals torch with columns of their own. Queries against their positives: a rectangle,
    # each row without its own partner.
    options = {"temperature": 0.3, "direction": "symmetric"}
    run = jitted(**options)
    for seed in range(4):
        student, arrays = random_rows(seed, columns=9)
        columns = arrays["student_columns"], arrays["teacher_columns"]
        keep = arrays["row_mask"][:, None] & arrays["column_mask"]
        wanted = by_hand(student, arrays["teacher"], columns, keep, arrays["source"], **options)
        assert_by_hand(run(student, arrays), wanted, f"seed {seed}")


def test_padding_rotations_and_a_student_like_its_teacher_are_no_loss():
    # Nothing but padding is no loss.
    student, arrays = random_rows(0)
    arrays["row_mask"] = np.zeros(ROWS, bool)
    (loss, metrics), gradient = jitted()(student, arrays)
    assert loss == 0 and not np.any(gradient)
    assert all(not np.any(value) for value in metrics.values())

    # bfloat16 is computed in float32.
    student, arrays = random_rows(6)
    half = jnp.asarray(student, jnp.bfloat16)
    mask = arrays["row_mask"]
    keep = mask[:, None] & mask
    wanted, _, _ = by_hand(half, arrays["teacher"], None, keep, arrays["source"])
    (loss, metrics), gradient = jitted()(half, arrays)
    assert loss.dtype == metrics["chance_loss"].dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(loss, wanted, rtol=2e-4)

    # The loss is 0 where similarities agree; with the diagonal and a cold softmax everywhere.
    rng = np.random.default_rng(2)
    teacher, other = unit(rng, 16, 64), unit(rng, 16, 64)
    rotation = np.linalg.qr(rng.normal(size=(64, 64)))[0].astype(np.float32)
    masked = jax.jit(relational_distillation)
    loss, metrics = masked(teacher @ rotation, teacher)
    assert abs(loss) < 1e-5 and metrics["nearest_agreement"] == 1
    kept, _ = jax.jit(lambda s, t: relational_distillation(s, t, mask_diagonal=False))(
        other, teacher
    )
    assert kept < 1e-5 < 1 < masked(other, teacher)[0]


def test_the_same_on_a_mesh():
    student, arrays = random_rows(5)
    student, arrays = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), (student, arrays))
    mask = arrays["row_mask"]
    wanted = by_hand(student, arrays["teacher"], None, mask[:, None] & mask, arrays["source"])
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put((student, arrays), NamedSharding(mesh, P(sharding.ROWS)))
        assert_by_hand(jitted()(*placed), wanted, "mesh")


def two_way(queries, targets, teacher_queries, teacher_targets, query_mask, target_mask):
    """The two-way KL as plain loops."""
    total, pairs = 0.0, len(queries)
    for own, theirs, kept in (
        (queries @ targets.T, teacher_queries @ teacher_targets.T, target_mask),
        (targets @ queries.T, teacher_targets @ teacher_queries.T, query_mask),
    ):
        for i in range(pairs):
            p, q = (np.exp(x[i, kept] / heat) for x, heat in ((theirs, 0.2), (own, 0.1)))
            p, q = p / p.sum(), q / q.sum()
            total += np.sum(p * np.log(p / q)) / (2 * pairs)
    return total


def test_a_teacher_beside_a_contrastive_loss_is_that_of_the_loops():
    """At once, by blocks of columns, and round a ring; with the gradient by differences."""
    rng = np.random.default_rng(3)
    options = {"temperature": 0.1, "teacher_temperature": 0.2}
    meshes = (
        (None, None),
        (3, None),
        (2, sharding.make_mesh(2, 2, 2)),
        (None, sharding.make_mesh(4, 2, 1)),
    )
    for block, mesh in meshes:
        vectors = [unit(rng, 8, width) for width in (5, 5, 7, 7)]
        masks = [rng.random(8) < 0.7 for _ in range(2)]
        masks[0][0] = masks[1][0] = True

        def loss(queries, targets, vectors=vectors, masks=masks, block=block):
            return teacher_distillation(
                queries,
                targets,
                *vectors[2:],
                query_mask=masks[0],
                target_mask=masks[1],
                source=np.arange(8) % 2,
                sources=2,
                column_block=block,
                **options,
            )

        with jax.set_mesh(mesh or sharding.make_mesh(1, 1, 1, jax.devices()[:1])):
            run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
            (value, metrics), gradients = run(*vectors[:2])
        exact = [x.astype(float) for x in vectors]
        np.testing.assert_allclose(value, two_way(*exact, *masks), rtol=1e-4)
        np.testing.assert_allclose(np.mean(metrics["source_loss"]), value, rtol=1e-4)
        even = [np.zeros((8, 5))] * 2 + exact[2:]
        np.testing.assert_allclose(metrics["chance_loss"], two_way(*even, *masks), rtol=1e-4)
        nearest = [
            np.where(masks[1], x @ y.T, -9).argmax(axis=1) for x, y in (exact[:2], exact[2:])
        ]
        agreement = np.mean(nearest[0] == nearest[1])
        np.testing.assert_allclose(metrics["teacher_agreement"], agreement, rtol=1e-6)
        toward, step = rng.standard_normal((2, 8, 5)), 1e-6
        ends = [
            two_way(exact[0] + s * toward[0], exact[1] + s * toward[1], *exact[2:], *masks)
            for s in (-step, step)
        ]
        slope = (ends[1] - ends[0]) / (2 * step)
        np.testing.assert_allclose(np.vdot(gradients, toward), slope, rtol=1e-3, atol=1e-4)

    (student, teacher), mask = (unit(rng, 4, 3) for _ in range(2)), np.arange(4) < 3
    wanted = np.square(student - teacher).sum(axis=1)[:3].mean()
    matched = jax.jit(teacher_matching)(student, teacher, mask=mask)
    np.testing.assert_allclose(matched, wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="the same width"), shapes.unchecked():
        teacher_matching(student, teacher[:, :2])
