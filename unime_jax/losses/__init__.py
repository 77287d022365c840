"""Training losses: pure functions of unit-norm float32 embeddings.

Arrays are global views, so a sharded batch needs no gather, no rank and no factor here: the loss on
a mesh is the loss on one device.
"""

from unime_jax.losses.graded import GradedForm, graded_pairs
from unime_jax.losses.infonce import contrastive
from unime_jax.losses.judge import JudgeForm, judge_distillation
from unime_jax.losses.matryoshka import matryoshka
from unime_jax.losses.relational import Direction, Reduction, relational_distillation
from unime_jax.losses.rows import Metrics
from unime_jax.losses.spread import spread_out
from unime_jax.losses.teacher import teacher_distillation, teacher_matching

__all__ = [
    "Direction",
    "GradedForm",
    "JudgeForm",
    "Metrics",
    "Reduction",
    "contrastive",
    "graded_pairs",
    "judge_distillation",
    "matryoshka",
    "relational_distillation",
    "spread_out",
    "teacher_distillation",
    "teacher_matching",
]
