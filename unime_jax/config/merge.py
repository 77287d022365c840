"""Keys of job merge: models, and the arithmetic on their weights."""

import dataclasses
import math
from typing import Literal

from unime_jax.data.settings import Processing


@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """One model of several of one family, by arithmetic on their weights."""

    job: Literal["merge"]  # what to do with this config
    # folders or hub ids, of models or of PEFT adapters; or work directories, whose export is meant
    models: tuple[str, ...]
    method: Literal["linear", "slerp", "ties", "dare_ties"]  # see docs/merging.md
    # of the models, in their order; (): equal. With slerp their ratio is the way between the two
    weights: tuple[float, ...]
    # as one of `models`: what all of them were trained from; ties and dare_ties only; "": none
    base: str
    density: float  # share of each difference from the base that is kept; ties and dare_ties only
    # whether sums of differences are divided by the weights of their terms; ties and dare_ties only
    normalize: bool
    scale: float  # factor of what is added to the base; ties and dare_ties only
    seed: int  # of what is dropped; dare_ties only
    processing: Processing | None  # None: as the models were exported or published
    max_length: int | None  # tokens of an item; None: the models' own, which must agree
    # of the weights; None: as the models have them, float32 if they differ
    dtype: Literal["float32", "bfloat16"] | None
    check_dtype: Literal["float32", "bfloat16"]  # that the merged model is run in to check it
    verify: bool  # repeat the self-check in a new process, on the CPU in float32
    compilation_cache: str  # as in a training run

    def __post_init__(self) -> None:
        if len(self.models) < 2 or (self.method == "slerp" and len(self.models) != 2):
            wanted = "two models" if self.method == "slerp" else "two models or more"
            raise ValueError(
                f"config.models={self.models}: config.method={self.method!r} merges {wanted}"
            )
        weights = self.weights
        if weights and len(weights) != len(self.models):
            raise ValueError(
                f"config.weights={weights} are {len(weights)}, and config.models are "
                f"{len(self.models)}: give one for each model, or () for equal ones"
            )
        if weights and (not all(map(math.isfinite, weights)) or not sum(weights) > 0):
            raise ValueError(f"config.weights={weights}: their sum must be above zero")
        if self.method == "slerp" and weights and min(weights) < 0:
            raise ValueError(f"config.weights={weights}: slerp takes none below zero")
        by_difference = self.method in ("ties", "dare_ties")
        if by_difference and not self.base:
            raise ValueError(
                f"config.base is empty: {self.method} merges differences from the model that all "
                "were trained from. Name its folder or hub id"
            )
        if self.base and not by_difference:
            raise ValueError(
                f"config.base={self.base!r}: config.method={self.method!r} has no use for it, "
                "only ties and dare_ties have"
            )
        if not 0 < self.density <= 1:
            raise ValueError(f"config.density={self.density} must be above 0 and at most 1")
