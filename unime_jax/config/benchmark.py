"""Keys of job benchmark: programs that are timed on the devices at hand, with random weights."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from unime_jax.config.embed import EmbedConfig
from unime_jax.config.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class BenchmarkCase:
    """A step of a training run, or a batch of an embedding job, on generated rows."""

    # a folder with the config.json and tokenizer of the model; its weights are random
    model: str
    rows: tuple[float, ...]  # share of the live rows by bucket; empty: all in the largest
    tokens: tuple[int, ...]  # real tokens of a row, by bucket; empty: as many as it holds
    # image tiles of a row of a case that embeds; those of one that trains are in `data.buckets`
    tiles: int
    image: tuple[int, int]  # pixels (height, width) of the image of a row with tiles
    teacher: int  # width of a teacher's embeddings, for losses that use them
    run: TrainConfig | EmbedConfig  # what is measured: a whole config; it reads no data


@dataclasses.dataclass(frozen=True)
class PeersConfig:
    """The same work by other libraries, on the same devices, weights and rows.

    They need PyTorch, which this package does not.
    """

    names: tuple[Literal["gradcache", "sentence_transformers"], ...]  # empty: none
    python: str  # an interpreter that has torch and transformers; "": the one that runs the job
    script: str  # the file that measures them; in a clone, benchmarks/peers.py
    seconds: float  # that a peer may take for a case


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Encode and train steps at real shapes, timed."""

    job: Literal["benchmark"]  # what to do with this config
    platform: Literal["any", "cpu", "gpu", "tpu"]  # of the devices; on others a case is a failure
    cases: Mapping[str, BenchmarkCase]  # cases by name
    only: tuple[str, ...]  # names of the cases that are measured; empty: all
    warmup: int  # calls that are not counted, after the compilation
    repetitions: int  # calls that are timed, each on its own
    # where compiled programs are kept, as in a training run; "": nowhere, so that the time of
    # compiling is that of a first start
    compilation_cache: str
    peers: PeersConfig

    def __post_init__(self) -> None:
        if self.repetitions < 1 or self.warmup < 0:
            raise ValueError(
                f"config.repetitions={self.repetitions}, config.warmup={self.warmup}: at least one "
                "call is timed, and no fewer than none come before it"
            )
        unknown = sorted(set(self.only) - set(self.cases))
        if unknown:
            raise ValueError(
                f"config.only={self.only}: there is no case {unknown[0]!r}; use some of "
                f"{', '.join(self.cases)}"
            )
