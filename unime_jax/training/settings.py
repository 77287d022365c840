"""Settings of training: optimizer, execution, checkpoints, profile. Plain data, without JAX.

The comment beside a key, or above it, is its text in --help.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from unime_jax.models.settings import AttentionChoice, RematChoice


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule, and rules by path."""

    # at the end of the warm-up, the highest; None: 1e-4 of adapters, else by the model's size
    learning_rate: float | None
    # of a linear ramp, before the first step at the full rate; None: a tenth of all steps
    warmup_steps: int | None
    schedule: Literal["linear", "cosine", "constant"]  # of the rate after the warm-up
    final_learning_rate: float  # where "linear" and "cosine" end
    beta1: float  # decay of the first moment
    beta2: float  # decay of the second moment
    epsilon: float  # added to the root of the second moment
    clip_norm: float  # of the whole gradient; inf: no clipping
    # (path regex, multiplier of the rate); 0 still spends memory on moments: rather freeze
    learning_rates: Sequence[tuple[str, float]]
    weight_decays: Sequence[tuple[str, float]]  # (path regex, decoupled weight decay)
    # the step where "linear" and "cosine" end; 0: at the last. Set it to the steps of the whole
    # plan in a run that is to be extended
    schedule_steps: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "cosine", "constant"):
            raise ValueError(
                f'optimizer.schedule is "{self.schedule}"; use "linear", "cosine" or "constant".'
            )
        peak = float("inf") if self.learning_rate is None else self.learning_rate
        if not 0 <= self.final_learning_rate <= peak:
            raise ValueError(
                "optimizer.final_learning_rate must lie between 0 and optimizer.learning_rate, "
                f"not {self.final_learning_rate} (learning_rate {self.learning_rate})."
            )
        if not self.clip_norm > 0:
            raise ValueError(
                f"optimizer.clip_norm={self.clip_norm} would clip every gradient to zero; it must "
                "be above 0 (float('inf'): no clipping)."
            )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Saves of a run, besides those at its end and on SIGTERM."""

    every: int  # steps from one save to the next
    keep: int  # newest checkpoints that are kept
    # also the one with the highest "All" by `evaluation.every`; distillation: neighbour overlap;
    # without either: R@1 of `data.eval`
    keep_best: bool


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Steps that are traced into <workdir>/profile."""

    first_step: int  # the first that is traced
    steps: int  # how many are traced; 0: none


@dataclasses.dataclass(frozen=True)
class ExecutionConfig:
    """Dtypes, and memory against time."""

    # of activations; None: bfloat16 for a backbone of 1e9 parameters and more, else float32
    dtype: Literal["float32", "bfloat16"] | None
    # of weights that are not trained; "int8": codes with a scale per output channel for the
    # kernels of linear layers, and bfloat16 for the rest. None: as `dtype` chooses
    frozen_dtype: Literal["float32", "bfloat16", "int8"] | None
    # activations that a layer keeps for gradients, from most to least; it computes the others
    # again. "none": all. "dots": outputs of linear layers. "attention_up": those but the gate's,
    # half of a gated MLP. "attention": those but the MLP's wide ones. "full": its input. "offload":
    # its input, in the host's memory. "auto": by the memory of a device, with the size of chunks
    remat: RematChoice
    # "auto": a kernel that writes no scores to memory, "splash" on TPUs and "cudnn" on GPUs, "xla"
    # elsewhere and for what the kernel does not take; or one of the three
    attention: AttentionChoice
    recompute: bool  # encode chunks twice (GradCache) instead of keeping activations
    # of images, where chunks are encoded twice: compute what a frozen tower makes of them once a
    # step, and keep it for both times; None: where that takes 2 GiB of a device at most
    keep_features: bool | None
    # by bucket, chunks whose activations are kept nevertheless, so that they are encoded once;
    # empty: none. None: as many of the largest bucket as should fit
    kept_chunks: Sequence[int] | None = ()
    # chunks that the pass without gradient encodes at once, which gathers weights less often. None:
    # up to four where weights lie over several devices
    merged_chunks: int | None = 1

    def __post_init__(self) -> None:
        merged = 1 if self.merged_chunks is None else self.merged_chunks
        if merged < 1 or any(count < 0 for count in self.kept_chunks or ()):
            raise ValueError(
                f"execution.merged_chunks={self.merged_chunks} must be 1 or more, and every number "
                f"of execution.kept_chunks={self.kept_chunks} 0 or more."
            )
        if self.kept_chunks and not self.recompute:
            raise ValueError(
                f"execution.kept_chunks={tuple(self.kept_chunks)} names chunks that are not encoded"
                " twice, and execution.recompute=False keeps all: set one of them to () or True."
            )
        if self.remat == "offload" and (self.kept_chunks or not self.recompute):
            raise ValueError(
                'execution.remat="offload" holds one chunk in the host\'s memory, and the room of '
                "chunks that are not encoded twice is on the device: set execution.recompute=True "
                'and execution.kept_chunks=(), or another execution.remat, such as "full".'
            )
