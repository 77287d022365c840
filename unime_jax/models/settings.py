"""Settings of a model and how it is run. Plain data, so that configs need no JAX.

The comment beside a key, or above it, is its text in --help.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

# Activations that a layer computes again for gradients: none, all but outputs of matmuls, all.
Remat = Literal["none", "dots", "full"]
Implementation = Literal["xla", "cudnn"]  # of attention


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021)."""

    rank: int  # of an adapter; 0: no adapters
    alpha: float  # adapters are scaled by alpha / rank
    dora: bool  # also train a magnitude by output (Liu et al. 2024)
    # (path regex of linear layers, whether an adapter goes there)
    targets: Sequence[tuple[str, bool]]
