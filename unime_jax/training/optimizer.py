"""AdamW with warm-up, clipping, and per-path learning rates and weight decay."""

from collections.abc import Iterable

import optax

from unime_jax import paths
from unime_jax.training.settings import OptimizerConfig


def check_schedule(config: OptimizerConfig, steps: int) -> None:
    """Checks the lengths of warm-up and decay.

    Raises:
      ValueError: the warm-up is negative, or leaves no step at the full learning rate; or steps
        after the decay would have a learning rate of 0.
    """
    end = config.schedule_steps or steps
    named = "optimizer.schedule_steps" if config.schedule_steps else "steps"
    warmup = config.warmup_steps or 0  # None is resolved in set-up
    if not 0 <= warmup < end:
        raise ValueError(
            f"optimizer.warmup_steps={warmup} must be at least 0 and below "
            f"{named}={end}, so that some step has the full learning rate."
        )
    if end < steps and config.schedule != "constant" and not config.final_learning_rate:
        raise ValueError(
            f"optimizer.schedule_steps={end} ends the schedule before steps={steps}, and the steps "
            "after it would have a learning rate of 0: set optimizer.final_learning_rate."
        )


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then linear, cosine or no decay to `final_learning_rate`.

    The decay ends at `config.schedule_steps`, or at `steps` if that is 0.

    Raises:
      ValueError: as `check_schedule`.
    """
    check_schedule(config, steps)
    peak, final = config.learning_rate, config.final_learning_rate
    ramp = config.warmup_steps
    assert peak is not None and ramp is not None  # resolved in set-up
    decay_steps = (config.schedule_steps or steps) - ramp
    after = {
        "linear": optax.linear_schedule(peak, final, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, final / peak if peak else 0.0),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    # Step 0 already moves: the ramp reaches the peak at step `warmup_steps`.
    warmup = optax.linear_schedule(peak / (ramp + 1), peak, ramp)
    return optax.join_schedules([warmup, after], [ramp])


def make_optimizer(
    config: OptimizerConfig, steps: int, trainable: Iterable[str]
) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decoupled decay, schedule and multipliers by path.

    Raises:
      ValueError: a trainable path that no rule covers.
    """
    trainable = list(trainable)
    decays = paths.assign(config.weight_decays, trainable, what="optimizer.weight_decays")
    rates = paths.assign(config.learning_rates, trainable, what="optimizer.learning_rates")

    def add_decay(updates: optax.Updates, state: optax.OptState, params: optax.Params):
        return {path: updates[path] + decays[path] * params[path] for path in updates}, state

    def multiply(updates: optax.Updates, state: optax.OptState, params: optax.Params):
        return {path: updates[path] * rates[path] for path in updates}, state

    def stateless(update) -> optax.GradientTransformation:
        return optax.GradientTransformation(lambda _: optax.EmptyState(), update)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        stateless(add_decay),
        stateless(multiply),
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )
