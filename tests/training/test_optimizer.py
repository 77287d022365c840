"""The optimizer against optax.adamw, its schedules, and rules by path."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unime_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule

CONFIG = OptimizerConfig(
    learning_rate=1e-2,
    warmup_steps=4,
    schedule="cosine",
    final_learning_rate=1e-3,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-6,
    clip_norm=1.0,
    learning_rates=((".*", 1.0),),
    weight_decays=((".*", 0.1),),
)
STEPS = 20


def configured(**changes):
    return dataclasses.replace(CONFIG, **changes)


def parameters():
    rng = np.random.default_rng(0)
    shapes = {"text.kernel": (3, 4), "text.bias": (4,), "vision.kernel": (2, 3)}
    return {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}


def trajectory(optimizer, steps=6):
    """Parameters after each step on gradients that are sometimes above the clip norm."""

    def step(carry, i):
        now, state = carry
        size = jnp.where(i % 2, 0.01, 1)
        gradient = jax.tree.map(lambda p: jnp.sin(7 * p + i) * size, now)
        updates, state = optimizer.update(gradient, state, now)
        now = optax.apply_updates(now, updates)
        return (now, state), now

    @jax.jit
    def run(now):
        return jax.lax.scan(step, (now, optimizer.init(now)), jnp.arange(steps))[1]

    every = run(parameters())
    return [jax.tree.map(lambda x, i=i: np.asarray(x)[i], every) for i in range(steps)]


def test_adamw_with_rates_and_decays_by_first_matching_rule():
    # AdamW where rules are uniform.
    reference = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(make_schedule(CONFIG, STEPS), b1=0.9, b2=0.95, eps=1e-6, weight_decay=0.1),
    )
    ours = make_optimizer(CONFIG, STEPS, parameters())
    for mine, theirs in zip(trajectory(ours), trajectory(reference), strict=True):
        for path in mine:
            np.testing.assert_allclose(mine[path], theirs[path], rtol=1e-6)

    # Step zero moves
    gradient = jax.tree.map(np.ones_like, parameters())
    for leaf in one_update(CONFIG, gradient).values():
        assert np.all(np.abs(leaf) > 1e-4)

    # Learning rates and decays by first matching rule. At step 0 Adam's direction is the
    # gradient's sign, so updates can be written down.
    config = configured(
        warmup_steps=0,
        clip_norm=float("inf"),
        learning_rates=((r"vision\..*", 0.1), (".*", 1.0)),
        weight_decays=((r".*\.kernel", 0.5), (".*", 0.0)),
    )
    updates = one_update(config, jax.tree.map(np.ones_like, parameters()))
    for path, p in parameters().items():
        rate = 0.1 if path.startswith("vision") else 1.0
        decay = 0.5 if path.endswith("kernel") else 0.0
        np.testing.assert_allclose(updates[path], -1e-2 * rate * (1 + decay * p), rtol=1e-4)

    # A multiplier of zero stands still.
    config = configured(learning_rates=((r"vision\..*", 0.0), (".*", 1.0)))
    last = trajectory(make_optimizer(config, STEPS, parameters()))[-1]
    np.testing.assert_array_equal(last["vision.kernel"], parameters()["vision.kernel"])
    assert np.all(last["text.kernel"] != parameters()["text.kernel"])


def one_update(config, gradient):
    optimizer = make_optimizer(config, STEPS, parameters())

    @jax.jit
    def update(now, gradient):
        return optimizer.update(gradient, optimizer.init(now), now)[0]

    return update(parameters(), gradient)


def test_settings_that_cannot_be_meant_are_refused():
    # A path without rule is an error.
    for key in ("learning_rates", "weight_decays"):
        config = configured(**{key: ((r"text\..*", 1.0),)})
        with pytest.raises(ValueError, match=rf"optimizer\.{key}(.|\n)*vision\.kernel"):
            make_optimizer(config, STEPS, parameters())

    # Steps without a learning rate are refused.
    config = configured(schedule_steps=10, final_learning_rate=0.0)
    with pytest.raises(ValueError, match="schedule_steps=10 ends .* before steps=20"):
        make_schedule(config, STEPS)
    make_schedule(dataclasses.replace(config, schedule="constant"), STEPS)
    with pytest.raises(ValueError, match="warmup_steps=4 .* optimizer.schedule_steps=4"):
        make_schedule(configured(schedule_steps=4), STEPS)

    # Warmup must leave a step.
    for warmup in (-1, 20, 21):
        with pytest.raises(ValueError, match=f"warmup_steps={warmup}.* steps=20"):
            make_schedule(configured(warmup_steps=warmup), STEPS)
    make_schedule(configured(warmup_steps=19), STEPS)

    # Impossible settings.
    for changes, message in (
        ({"schedule": "step"}, '"step"; use "linear"'),
        ({"final_learning_rate": 2e-2}, "final_learning_rate"),
        ({"final_learning_rate": -1e-3}, "final_learning_rate"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": float("nan")}, "clip_norm"),
    ):
        with pytest.raises(ValueError, match=message):
            configured(**changes)
    configured(final_learning_rate=CONFIG.learning_rate)
    configured(final_learning_rate=0.0)


def rates(schedule, steps=STEPS, **changes):
    """Of steps 0 to 44."""
    return np.asarray(make_schedule(configured(schedule=schedule, **changes), steps)(np.arange(45)))


def test_schedules():
    # Schedules. Warm-up over steps 0-3, the peak at step 4, half-way at 12, the final rate at 20.
    quarter = {"linear": 1e-2 - 9e-3 / 4, "cosine": 1e-3 + 9e-3 * (1 + 0.5**0.5) / 2}
    for schedule, middle, end in (
        ("linear", 5.5e-3, 1e-3),
        ("cosine", 5.5e-3, 1e-3),
        ("constant", 1e-2, 1e-2),
    ):
        rate = rates(schedule)
        np.testing.assert_allclose(rate[:5], np.arange(1, 6) * 2e-3, rtol=1e-6)
        np.testing.assert_allclose(rate[[12, 20, 30]], [middle, end, end], rtol=1e-5)
        np.testing.assert_allclose(rate[8], quarter.get(schedule, 1e-2), rtol=1e-5)
        assert np.all(np.diff(rate[4:21]) <= 0) and np.all(rate[20:] == rate[20]), schedule
        without = rates(schedule, warmup_steps=0)
        np.testing.assert_allclose(without[[0, 20]], [1e-2, end], rtol=1e-5)
    assert not np.any(rates("cosine", learning_rate=0.0, final_learning_rate=0.0))

    # A part of a schedule is as in the whole. With `schedule_steps` the rate is no matter of how
    # many of its steps are run.
    for schedule in ("linear", "cosine", "constant"):
        for steps in (3, 20, 40):
            part = rates(schedule, steps, schedule_steps=STEPS)
            np.testing.assert_array_equal(part, rates(schedule), err_msg=f"{schedule}, {steps}")
