"""Keys of job embed: a corpus, and the vectors of its items."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from unime_jax.config.common import MeshConfig, OutputConfig
from unime_jax.data.settings import Processing, Side, check_keys


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """The items that are embedded: each distinct one once, in order."""

    folder: str  # that the paths below are relative to
    datasets: tuple[str, ...]  # pairs, each as `data.train` of a training run
    columns: Mapping[str, str]  # as in a training run
    splits: tuple[str, ...]  # sources of the datasets; empty: all
    sides: tuple[Side, ...]  # of every row
    texts: tuple[str, ...]  # files with a text a line
    max_bad_share: float  # of the items that may be unusable before the job stops

    def __post_init__(self) -> None:
        check_keys(self.columns, "config.data.columns")


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """Embeddings of a corpus by a model, on disk."""

    job: Literal["embed"]  # what to do with this config
    backbone: str  # a folder or a hub id
    revision: str | None  # as in a training run
    processing: Processing | None  # None: as the backbone was exported or published
    # an instruction before every text; None: the folder's default for sentence-transformers
    prefix: str | None
    suffix: str  # an instruction after every text
    # tokens of an item, image tokens and instructions included; None: the folder's own
    max_length: int | None
    truncate_dim: int | None  # how many numbers of an embedding are kept; None: the folder's own
    batch_size: int  # items encoded at once: memory, not results
    dtype: Literal["float32", "bfloat16", "int8"]  # as of `Embedder.from_pretrained`
    compilation_cache: str  # as in a training run
    mesh: MeshConfig  # of each process's own devices
    data: CorpusConfig
    output: OutputConfig
