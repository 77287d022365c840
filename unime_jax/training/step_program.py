"""The jitted training step by value: one program for all runs of a process that would trace it."""

import dataclasses
import functools

import jax
import optax
from jax.sharding import Mesh, Sharding
from jax.stages import Wrapped
from jax.tree_util import PyTreeDef

from unime_jax import sharding
from unime_jax.models import forward
from unime_jax.training import optimizer, step
from unime_jax.training.objectives import Objective
from unime_jax.training.settings import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """All that a jitted step follows from.

    Attributes:
      steps: of the run, which the schedule ends with.
      trainable: paths of the parameters that the optimizer moves.
      loss, recompute, infonce_steps, sources: see `step.make_train_step`.
      placed: shardings of the leaves of the state.
      structure: of the state.
    """

    encode: forward.Encode
    constants: forward.Constants
    optimizer: OptimizerConfig
    steps: int
    trainable: frozenset[str]
    loss: Objective
    recompute: bool
    infonce_steps: int
    sources: tuple[str, ...]
    placed: tuple[Sharding, ...]
    structure: PyTreeDef
    mesh: Mesh


@functools.lru_cache(maxsize=forward.KEPT)
def jitted(program: StepProgram) -> Wrapped:
    """The step of a program, with its state donated; the same function for equal programs."""
    run = step.make_train_step(
        program.encode,
        make_optimizer(program.optimizer, program.steps, program.trainable),
        optimizer.make_schedule(program.optimizer, program.steps),
        program.loss,
        recompute=program.recompute,
        constants=program.constants,
        infonce_steps=program.infonce_steps,
        sources=program.sources,
    )
    placed = jax.tree.unflatten(program.structure, program.placed)
    return jax.jit(run, donate_argnums=0, out_shardings=(placed, sharding.replicated(program.mesh)))


@functools.lru_cache(maxsize=forward.KEPT)
def make_optimizer(
    settings: OptimizerConfig, steps: int, trainable: frozenset[str]
) -> optax.GradientTransformation:
    """`optimizer.make_optimizer`, the same for equal arguments."""
    return optimizer.make_optimizer(settings, steps, sorted(trainable))
