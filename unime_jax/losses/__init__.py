"""Training losses: pure functions of unit-norm float32 embeddings.

Arrays are global views, so a sharded batch needs no gather, no rank and no factor here: the loss on
a mesh is the loss on one device.
"""

from unime_jax.losses.graded import cosent, gap_weighted_cosent, listwise_distillation
from unime_jax.losses.infonce import contrastive
from unime_jax.losses.judge import judge_distillation
from unime_jax.losses.relational import Direction, Reduction, relational_distillation
from unime_jax.losses.rows import Metrics
from unime_jax.losses.spread import spread_out

__all__ = [
    "Direction",
    "Metrics",
    "Reduction",
    "contrastive",
    "cosent",
    "gap_weighted_cosent",
    "judge_distillation",
    "listwise_distillation",
    "relational_distillation",
    "spread_out",
]
