"""Settings of a model and how it is run. Plain data, so that configs need no JAX.

The comment beside a key, or above it, is its text in --help.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

# Activations that a layer keeps for gradients, from most to least; it computes the others again.
# "none": all. "dots": outputs of its linear layers. "attention_up": those but the gate's, which is
# half of a gated MLP. "attention": those but the MLP's wide ones. "full": its input. "offload": its
# input, in the host's memory.
Remat = Literal["none", "dots", "attention_up", "attention", "full", "offload"]
# "auto": by the memory of a device
RematChoice = Literal["auto", "none", "dots", "attention_up", "attention", "full", "offload"]
# A linear layer's part in its layer: the wide ones of an MLP, or any other.
Part = Literal["projection", "gate", "up"]
Implementation = Literal["xla", "cudnn", "splash"]  # of attention
# "splash": a TPU's Pallas kernel, "cudnn": a GPU's; "auto": that of the platform, or "xla"
AttentionChoice = Literal["auto", "xla", "cudnn", "splash"]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021)."""

    # of an adapter; 0: no adapters. None: 16 for a backbone of 1e9 parameters and more, else 0
    rank: int | None
    alpha: float  # adapters are scaled by alpha / rank
    dora: bool  # also train a magnitude by output (Liu et al. 2024)
    # (path regex of linear layers, whether an adapter goes there)
    targets: Sequence[tuple[str, bool]]
