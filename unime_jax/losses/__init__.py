"""The training objectives: pure functions of unit-norm float32 embeddings, and of nothing else.

Arrays are global views, so a sharded batch needs no gather, no rank and no factor here: the loss on
a mesh is the loss on one device. How embeddings are made, and their gradients taken in chunks, is
not this package's business.
"""

from unime_jax.losses.infonce import contrastive
from unime_jax.losses.relational import Direction, Reduction, relational_distillation
from unime_jax.losses.rows import Metrics

__all__ = ["Direction", "Metrics", "Reduction", "contrastive", "relational_distillation"]
