"""Keys of job plan: slices of TPUs, and the run that is planned for them."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from unime_jax.config.embed import EmbedConfig
from unime_jax.config.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """The plan of a run on slices of TPUs, and the batches that it assumes."""

    job: Literal["plan"]  # what to do with this config
    name: str  # of the plan's lines in the table
    topologies: tuple[str, ...]  # slices, such as "v5e:4x4"; "2*v5e:4x4" are two of them
    rows: tuple[float, ...]  # share of the live rows by bucket; empty: all in the largest
    tokens: tuple[int, ...]  # real tokens of a row, by bucket; empty: as many as it holds
    # a CSV file of pair, tokens and tiles of a sample of items, which stands for the data: buckets
    # that the run leaves open are chosen by it, and so are rows and tokens where they are empty
    lengths: str
    # a folder with the config.json and tokenizer that stand in for the backbone's; "": its own
    model: str
    teacher: int  # width of a teacher's embeddings, for losses that use them
    suggest: bool  # look for changes that fit, or that fill a slice; each try compiles
    # programs that a search over chunk size, remat and mesh compiles, at most, for a faster step of
    # what fits; 0: no search, `suggest` alone
    search: int
    run: TrainConfig | EmbedConfig  # what is planned: a whole config

    def __post_init__(self) -> None:
        """Raises ValueError for a negative number of programs."""
        if self.search < 0:
            raise ValueError(
                f"config.search={self.search}: a search compiles a number of programs; 0 for none"
            )


@dataclasses.dataclass(frozen=True)
class PlansConfig:
    """Plans of many runs at once."""

    job: Literal["plan"]  # what to do with this config
    recipes: Mapping[str, PlanConfig]  # plans by name
