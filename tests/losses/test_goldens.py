"""The loops, and through them the loss, against recordings of the original implementations."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.losses.loops import assert_reference, compiled, mean_loss, random_arguments, reference

GOLDEN = Path(__file__).parents[1] / "golden" / "losses"


def golden(name):
    case = json.loads((GOLDEN / name / "case.json").read_text())
    return case, load_file(GOLDEN / name / "io.safetensors")


def unime_options(case):
    return {
        "temperature": case["temperature"],
        "hard_negatives": case["k"],
        "false_negative_margin": case["threshold"],
    }


def vlm2vec_options(case):
    return {"temperature": case["temperature"]}


def llave_options(case):
    return {
        "temperature": 1 / case["logit_scale"],
        "hardness": case["alpha"],
        "symmetric": True,
    }


def assert_loss(actual, expected, what):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6, err_msg=what)


def assert_grad(actual, expected, what):
    scale = max(1, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale, err_msg=what)


def assert_recorded(name, found, loss, *gradients):
    assert_loss(found.loss, loss, name)
    for ours, theirs in zip((found.grad_queries, found.grad_candidates), gradients, strict=True):
        assert_grad(ours, theirs, name)


def test_the_loops_are_those_of_the_originals():
    # The loops are UniME where there are enough negatives.
    for name in ("all_negatives", "b32_k4", "basic", "temp05", "thr0", "thr_neg", "two_process"):
        case, data = golden(f"unime_v1/{name}")
        found = reference(data["x"], data["y"], np.arange(len(data["x"])), **unime_options(case))
        assert_recorded(name, found, data["loss_f64"], data["grad_x"], data["grad_y"])
    # Theirs of two processes is multiplied by their number.
    for rank in ("loss_rank0", "loss_rank1"):
        assert_loss(2 * found.loss, data[rank], rank)

    # The loops are VLM2Vec.
    for name in ("basic", "b33", "two_targets_per_query", "two_process"):
        case, data = golden(f"vlm2vec/{name}")
        positive = np.arange(len(data["x"]), dtype=np.int32) * case.get("targets_per_query", 1)
        found = reference(data["x"], data["y"], positive, **vlm2vec_options(case))
        assert_recorded(name, found, data["loss"], data["grad_x"], data["grad_y"])
    assert_loss(2 * found.loss, data["loss_rank0"], name)
    assert_grad(2 * found.grad_queries, data["grad_x_ranks"], name)
    assert_grad(2 * found.grad_candidates, data["grad_y_ranks"], name)

    # The loops are LLaVE.
    for name in (
        "alpha0",
        "alpha05",
        "alpha9",
        "alpha9_duplicates",
        "alpha9_scale20",
        "alpha05_two_process",
        "alpha9_two_process",
    ):
        case, data = golden(f"llave/{name}")
        found = reference(data["x"], data["y"], np.arange(len(data["x"])), **llave_options(case))
        assert_recorded(name, found, data["loss_f64"], data["grad_x"], data["grad_y"])
        if case["world_size"] == 2:
            assert_loss(found.loss, (data["loss_rank0"] + data["loss_rank1"]) / 2, name)
            assert_grad(2 * found.grad_queries, data["grad_x_ranks"], name)
            assert_grad(2 * found.grad_candidates, data["grad_y_ranks"], name)

    # Fewer than k negatives are repeated. The original lets dropped candidates back in.
    for name in ("few_valid", "batch_equals_k"):
        case, data = golden(f"unime_v1/{name}")
        x, y, options = data["x"], data["y"], unime_options(case)
        few = np.isin(np.arange(len(x)), case["rows_with_fewer_than_k"])
        found = reference(x, y, np.arange(len(x)), **options)
        assert_loss(found.by_query[~few], data["loss_per_query"][~few], name)
        assert_grad(found.grad_queries[~few], data["grad_x"][~few], name)
        assert np.all(np.abs(found.by_query - data["loss_per_query"])[few] > 1e-3), name
        for i in np.flatnonzero(few):  # the cycle, written out from the recorded choice
            picked = data["neg_indices"][i][data["neg_valid"][i] == 1]
            scores = data["sim"][i][np.resize(picked, case["k"])].astype(np.float64)
            gap = (scores - data["sim"][i, i]) / case["temperature"]
            assert_loss(found.by_query[i], np.logaddexp.reduce(np.append(gap, 0)), name)


def test_copies_of_the_positive_are_negatives_unless_they_have_its_id():
    case, data = golden("unime_v1/dup_positive")
    x, y, options = data["x"], data["y"], unime_options(case)
    own = np.arange(len(x))
    _, same_target = np.unique(y, axis=0, return_inverse=True)
    same_target = same_target.reshape(-1).astype(np.int32)
    assert len(set(same_target)) < len(y)
    found = reference(x, y, own, **options)
    assert_loss(found.loss, data["loss_f64"], "copies")
    assert_grad(found.grad_queries, data["grad_x"], "copies")
    together = np.zeros((len(y), len(y)))  # which copy is taken is not defined
    together[same_target, np.arange(len(y))] = 1
    assert_grad(together @ found.grad_candidates, together @ data["grad_y"], "copies")
    masked = reference(x, y, own, target_id=same_target, **options)
    assert masked.loss < 0.9 * found.loss
    run = compiled(**options)(x, y, own, {"target_id": same_target})
    assert_reference(run, masked, options)


def test_the_losses_are_the_recorded_ones():
    """One of each, without the loops between."""
    for name, options in (
        ("unime_v1/basic", unime_options),
        ("vlm2vec/two_targets_per_query", vlm2vec_options),
        ("llave/alpha9_two_process", llave_options),
    ):
        case, data = golden(name)
        positive = np.arange(len(data["x"]), dtype=np.int32) * case.get("targets_per_query", 1)
        (loss, _), grads = compiled(**options(case))(data["x"], data["y"], positive, {})
        assert_loss(loss, data.get("loss_f64", data["loss"]), name)
        for ours, theirs in zip(grads, ("grad_x", "grad_y"), strict=True):
            assert_grad(ours, data[theirs], name)


def test_pools_are_the_batches_of_llaves_script():
    """Two recorded batches of 16 pairs in one of 32: the mean loss, and half of the gradients."""
    x, y, losses, gradients = [], [], [], []
    for name in ("alpha9", "alpha9_two_process"):
        case, data = golden(f"llave/{name}")
        assert case["B"] == 16
        wide = ((0, 0), (0, 24 - case["d"]))
        x.append(np.pad(data["x"], wide))
        y.append(np.pad(data["y"], wide))
        gradients.append([np.pad(data[side], wide) / 2 for side in ("grad_x", "grad_y")])
        losses.append(data["loss_f64"])
    own = np.arange(32, dtype=np.int32)
    run = compiled(**llave_options(case), pool=16)
    (loss, metrics), grads = run(np.concatenate(x), np.concatenate(y), own, {})
    assert_loss(loss, np.mean(losses), "pools")
    for ours, theirs in zip(grads, zip(*gradients, strict=True), strict=True):
        assert_grad(ours, np.concatenate(theirs), "pools")
    assert metrics["negatives_per_query"] == 15


def test_the_loops_have_the_gradient_of_their_loss():
    # The loops have the gradient of their loss. By finite differences; without hardness, whose
    # stopped gradient they would not see.
    queries, candidates, positive, arrays = random_arguments(np.random.default_rng(3))
    options = {"hard_negatives": 3, "false_negative_margin": 0.2, "temperature": 0.5}
    options |= arrays | {"symmetric": True}
    found = reference(queries, candidates, positive, **options)
    assert found.closest > 5e-3
    rng, step = np.random.default_rng(0), 1e-5
    for number, gradient in enumerate((found.grad_queries, found.grad_candidates)):
        toward = rng.standard_normal(gradient.shape)
        losses = []
        for sign in (-step, step):
            vectors = [queries.astype(np.float64), candidates.astype(np.float64)]
            vectors[number] = vectors[number] + sign * toward
            losses.append(reference(*vectors, positive, **options).loss)
        slope = (losses[1] - losses[0]) / (2 * step)
        np.testing.assert_allclose(slope, np.vdot(gradient, toward), rtol=1e-6)
    assert found.loss == (mean_loss(found.by_query) + mean_loss(found.back_by_query)) / 2

    # The loops give the gradients that the original caches.
    for name, options in (
        ("separate_vlm2vec", vlm2vec_options),
        ("shared_vlm2vec", vlm2vec_options),
        ("shared_llave", llave_options),
        ("shared_unime_v1", unime_options),
    ):
        case, data = golden(f"gradcache/{name}")
        x, y = data["query_reps"], data["target_reps"]
        found = reference(x, y, np.arange(len(x)), **options(case["loss_args"]))
        assert_recorded(name, found, data["loss"], data["cache_query"], data["cache_target"])
