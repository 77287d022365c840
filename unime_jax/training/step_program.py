"""The jitted training step by value: one program for all runs of a process that would trace it."""

import dataclasses
import functools

import jax
import optax
from jax.sharding import Mesh
from jax.stages import Wrapped

from unime_jax import sharding
from unime_jax.models import forward, frozen_vision
from unime_jax.operations import compiler_options
from unime_jax.training import optimizer, step
from unime_jax.training.loss_settings import Matryoshka
from unime_jax.training.objectives import Objective
from unime_jax.training.settings import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """All that a jitted step follows from.

    Attributes:
      steps: of the run, which the schedule ends with.
      trainable: paths of the parameters that the optimizer moves.
      constants, vision, loss, prefixes, recompute, kept, merged, infonce_steps, sources: see
        `step.make_train_step`.
      placed: shardings of the leaves of the state.
      structure: of the state.
    """

    encode: forward.Encode
    constants: forward.Constants
    vision: frozen_vision.FrozenVision | None
    optimizer: OptimizerConfig
    steps: int
    trainable: frozenset[str]
    loss: Objective
    prefixes: Matryoshka
    recompute: bool
    kept: tuple[int, ...]
    merged: int
    infonce_steps: int
    sources: tuple[str, ...]
    placed: tuple[jax.sharding.Sharding, ...]
    structure: jax.tree_util.PyTreeDef
    mesh: Mesh


@functools.lru_cache(maxsize=forward.SHARED)
def jitted(program: StepProgram) -> Wrapped:
    """The step of a program, with its state donated; the same function for equal programs."""
    run = step.make_train_step(
        program.encode,
        make_optimizer(program.optimizer, program.steps, program.trainable),
        optimizer.make_schedule(program.optimizer, program.steps),
        program.loss,
        prefixes=program.prefixes,
        recompute=program.recompute,
        kept=program.kept,
        merged=program.merged,
        constants=program.constants,
        vision=program.vision,
        infonce_steps=program.infonce_steps,
        sources=program.sources,
    )
    placed = jax.tree.unflatten(program.structure, program.placed)
    return jax.jit(
        run,
        donate_argnums=0,
        out_shardings=(placed, sharding.replicated(program.mesh)),
        compiler_options=compiler_options.of(program.mesh),
    )


@functools.lru_cache(maxsize=forward.SHARED)
def make_optimizer(
    settings: OptimizerConfig, steps: int, trainable: frozenset[str]
) -> optax.GradientTransformation:
    """The optimizer of these parameters; the same for equal arguments."""
    return optimizer.make_optimizer(settings, steps, sorted(trainable))
