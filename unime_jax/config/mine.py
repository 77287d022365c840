"""Keys of job mine: rows, candidates, and which of them become negatives."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from unime_jax.config.common import MeshConfig, OutputConfig, check_first_rows
from unime_jax.data.settings import Processing, check_keys


@dataclasses.dataclass(frozen=True)
class MineDataConfig:
    """The rows that are mined for, and the candidates."""

    folder: str  # that all paths of `data` are relative to
    train: str  # pairs, as in a training run
    columns: Mapping[str, str]  # as in a training run
    sources: tuple[str, ...]  # that are mined for; (): all
    first_rows: int  # of each source that are used, from its head; 0: all
    first_rows_by_source: Mapping[str, int]  # of single sources, in place of `first_rows`
    # candidates, below `folder`: items or pairs in any format, or a .txt with a text a line;
    # "": the positives and negatives of the rows themselves
    corpus: str
    max_bad_share: float  # of the items that may be unusable before the job stops

    def __post_init__(self) -> None:
        check_keys(self.columns, "config.data.columns")
        check_first_rows(self.first_rows, self.first_rows_by_source)


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Which candidates become negatives.

    Positives of an equal query, and the query itself, never do.
    """

    negatives: int  # of a row, at most
    # the first and the last rank that negatives are taken from; 1 is the best candidate that the
    # limits below leave
    ranks: tuple[int, int]
    # scores are cosines; above any of these limits a candidate counts as a false negative
    margin: float | None  # score <= score of the positive - margin; None: no limit
    ratio: float | None  # score <= ratio * score of the positive; None: no limit
    max_score: float | None  # score <= max_score; None: no limit
    # work directory of job mine by another model on the same rows; of the ranks, candidates are
    # left out whose score there is above the positive's - guide_margin; "": none
    guide: str
    guide_margin: float  # of cosines, by the guide
    pool: Literal["all", "source"]  # candidates: of all sources, or of the row's own
    own_negatives: bool  # whether negatives that a row has already may be mined for it
    # of the ranks, in order: the first; every `interval`-th and then those between, as UniME-V2; or
    # a draw by `seed`
    choice: Literal["first", "cyclic", "random"]
    interval: int  # of "cyclic"
    fill: bool  # repeat negatives in turn where a row has fewer than `negatives`, as UniME-V2
    seed: int  # of "random"
    method: Literal["exact", "approximate"]  # "approximate": faster on TPU, by approx_max_k
    rows: int  # of a block of the table, which are searched at once: memory, not results
    columns: int  # candidates that they are compared with at once: memory, not results

    def __post_init__(self) -> None:
        first, last = self.ranks
        if not 1 <= first <= last:
            raise ValueError(
                f"config.search.ranks={self.ranks}: the first rank is 1 or more, and the last not "
                "before it"
            )
        for key in ("negatives", "interval", "rows", "columns"):
            if getattr(self, key) < 1:
                raise ValueError(f"config.search.{key}={getattr(self, key)} must be at least 1")
        if last - first + 1 < self.negatives and not self.fill:
            raise ValueError(
                f"config.search.ranks={self.ranks} hold {last - first + 1} candidates, fewer than "
                f"config.search.negatives={self.negatives}; widen them, or set config.search.fill"
            )


@dataclasses.dataclass(frozen=True)
class MineConfig:
    """Negatives for the rows of a training run, by a model's similarities."""

    job: Literal["mine"]  # what to do with this config
    backbone: str  # a folder or a hub id
    revision: str | None  # as in a training run
    processing: Processing | None  # None: as the backbone was exported or published
    # instructions before every text; None: the folder's prompt "query" or "document" for
    # sentence-transformers, or its default
    query_prefix: str | None
    candidate_prefix: str | None  # as `query_prefix`, of candidates
    suffix: str  # an instruction after every text
    # tokens of an item, image tokens and instructions included; None: the folder's own
    max_length: int | None
    truncate_dim: int | None  # how many numbers of an embedding are kept; None: the folder's own
    batch_size: int  # items encoded at once: memory, not results
    dtype: Literal["float32", "bfloat16", "int8"]  # as of `Embedder.from_pretrained`
    compilation_cache: str  # as in a training run
    mesh: MeshConfig  # of each process's own devices
    data: MineDataConfig
    search: SearchConfig
    output: OutputConfig  # vectors of queries and candidates

    def __post_init__(self) -> None:
        if self.data.corpus and self.search.pool == "source":
            raise ValueError(
                f"config.data.corpus={self.data.corpus!r} with config.search.pool='source': a "
                "corpus named apart is one pool for all rows; use pool='all'."
            )
