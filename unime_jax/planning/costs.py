"""Costs of a program: FLOPs by its jaxpr, HBM and ICI traffic by its optimised HLO.

Loops are why both are counted here: `compiled.cost_analysis()` counts the body of a loop once, as
if a model had one layer and a batch one chunk. `jax.experimental.roofline` (of jax 0.10.2) does the
same with a scan, leaves out `while` and `cond`, and sees only the collectives of a `shard_map`, not
those that the partitioner puts in.
"""

from unime_jax.planning.counting.jaxpr import flops
from unime_jax.planning.counting.operations import Moved, Operation
from unime_jax.planning.counting.traffic import Traffic, traffic

__all__ = ["Moved", "Operation", "Traffic", "flops", "traffic"]
