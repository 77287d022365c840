"""Distillation of a judge's scores against recordings of UniME-V2's own code."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from unime_jax.losses import judge_distillation

GOLDEN = Path(__file__).parents[1] / "golden" / "losses" / "unime_v2"


def own_candidates(case, data):
    """Queries [B, D], their candidates [B, 1 + k, D] and judge's scores, out of interval rows.

    Row 0 of a sample is (query, positive), row i (negative 2i - 2, negative 2i - 1).
    """
    grid = case["B"], case["interval"]
    x, y = (data[name].reshape(*grid, -1) for name in ("x", "y"))
    pairs = np.stack([x, y], axis=2).reshape(case["B"], 2 * case["interval"], -1)
    judged = np.stack([data["x_judge"], data["y_judge"]], axis=-1).reshape(case["B"], -1)
    return x[:, 0], pairs[:, 1:], judged[:, 1:]


@functools.partial(jax.jit, static_argnames="temperature")
def of_embeddings(queries, candidates, judge, *, temperature):
    def loss(queries, candidates):
        scores = jnp.einsum("bd,bmd->bm", queries, candidates, precision="highest")
        return judge_distillation(scores, judge, temperature=temperature)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(queries, candidates)


def test_equals_the_original():
    for folder in sorted(GOLDEN.iterdir()):
        case = json.loads((folder / "case.json").read_text())
        data = load_file(folder / "io.safetensors")
        queries, candidates, judge = own_candidates(case, data)
        np.testing.assert_array_equal(judge, data["judge"])

        (value, metrics), gradients = of_embeddings(
            queries, candidates, judge, temperature=case["temperature"]
        )
        np.testing.assert_allclose(
            value, data["loss_f64"], rtol=3e-5, atol=1e-6, err_msg=folder.name
        )
        assert metrics["judged_queries"] == case["B"]
        grids = case["B"], case["interval"], 2, -1
        theirs = np.stack([data["grad_x"], data["grad_y"]], axis=1).reshape(grids)
        theirs = theirs.reshape(case["B"], 2 * case["interval"], -1)
        for ours, wanted in zip(gradients, (theirs[:, 0], theirs[:, 1:]), strict=True):
            bound = 2e-5 * max(1, np.abs(wanted).max())
            np.testing.assert_allclose(ours, wanted, rtol=0, atol=bound, err_msg=folder.name)
        if "loss_rank0" in data:  # theirs of two processes is multiplied by their number
            np.testing.assert_allclose(2 * value, data["loss_rank0"], rtol=3e-5)


def test_absent_candidates_are_none_and_a_lone_positive_teaches_nothing():
    rng = np.random.default_rng(0)
    scores, judge = rng.uniform(-1, 1, (2, 4, 5)).astype(np.float32)
    mask = np.ones((4, 5), bool)
    mask[1, 3:] = mask[2, 1:] = False
    judge = np.where(mask, judge, np.nan)
    few = {"temperature": 0.1, "judge_temperature": 0.3}

    loss_of = functools.partial(judge_distillation, **few)
    run = jax.jit(loss_of, static_argnames="sources")
    slope = jax.jit(jax.value_and_grad(functools.partial(loss_of, sources=3), has_aux=True))
    (loss, metrics), gradient = slope(scores, judge, mask=mask, source=np.array([0, 1, 1, 2]))
    gradient = np.asarray(gradient)
    alone = [run(scores[[i]][:, kept], judge[[i]][:, kept])[0] for i, kept in enumerate(mask)]
    assert alone[2] == 0
    np.testing.assert_allclose(loss, np.sum(alone) / 3, rtol=1e-5)
    np.testing.assert_allclose(metrics["source_loss"], [alone[0], alone[1], alone[3]], rtol=1e-5)
    np.testing.assert_array_equal(metrics["source_rows"], [1, 1, 1])
    assert not gradient[~mask].any() and not gradient[2].any() and gradient[mask].any()

    # A student as sure as the judge has no loss; one that is sure of nothing has that of chance.
    whole = np.where(mask, judge, 0)
    assert run(whole / 3, whole)[0] < 1e-5
    even, metrics = run(np.zeros_like(whole), whole)
    np.testing.assert_allclose(even, metrics["chance_loss"], rtol=1e-5)
    with pytest.raises(ValueError, match="temperature is 0"):
        judge_distillation(scores, whole, temperature=0)
