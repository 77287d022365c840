"""Keys of the data that a training run reads: pairs and their batches, and evaluation data."""

import dataclasses
from collections.abc import Mapping

from unime_jax.config.common import PrepareConfig, check_first_rows
from unime_jax.data.settings import (
    Bucket,
    Fewer,
    Instructions,
    MinedUse,
    Packing,
    check_dims,
    check_keys,
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Training data and its batches."""

    folder: str  # that all paths of `data` and `evaluation` are relative to
    prepare: PrepareConfig
    train: str  # pairs below `folder`: a folder, a file, or a glob of files; see docs/data.md
    # which column is the query, query_image, positive, positive_image, negatives,
    # negatives_image, the same with _video, scores, score or id; empty: told by their names
    columns: Mapping[str, str]
    # retrieval sets, below `folder`: pairs as of `train`, or folders in BEIR's layout; "": none
    eval: str
    weights: Mapping[str, float]  # sources, and how often each is drawn; empty: all, equally
    # T: in place of `weights`, sources are drawn in proportion to rows^(1 / T), 1: as often as they
    # have rows, the higher, the more alike; None: by `weights`
    size_temperature: float | None
    first_rows: int  # of each source that are used, from its head; 0: all
    first_rows_by_source: Mapping[str, int]  # of single sources, in place of `first_rows`
    source_run: int  # examples in a row from one source; 0: mixed freely
    # batches of queries with images and batches of queries without, never both in one, as LLaVE's
    # sampler makes them; the queries of a source must be alike
    split_modalities: bool
    negatives: int  # explicit negatives a pair, at most
    # work directory of --config=experiments/mine.py, whose negatives are joined; "": none
    mined: str
    mined_use: MinedUse  # "beside" the negatives that rows have of their own, or "instead" of them
    # rows of a cluster, which mined each other's positives and come in one batch (B3); 0: none
    cluster_size: int
    # the first and the last, by score, of a row's mined candidates that are edges to other rows
    cluster_ranks: tuple[int, int]
    suffix: str  # an instruction after every text, never cut off; distillation only
    # a teacher's embeddings of the items, below `folder`, as job embed writes them; "": none
    teacher: str
    # shapes of rows, from small to large: Bucket(tokens=128, tiles=0, share=1.0); (): chosen by the
    # lengths of a sample of the rows
    buckets: tuple[Bucket, ...]
    # several texts in a row, each with an embedding of its own, where `buckets` are chosen, the
    # model's attention allows it and it leaves less padding: "auto"; "off": a text a row
    packing: Packing
    # rows may have clips; in models whose patches span several frames all rows of a batch then have
    # room for them. Without it a row with a clip is left out as unusable
    clips: bool
    workers: int  # processes that read and preprocess; 0: threads of this one
    max_bad_share: float  # of the examples read that may be unusable before the run stops

    def __post_init__(self) -> None:
        check_keys(self.columns, "config.data.columns")
        if self.size_temperature is not None and not self.size_temperature > 0:
            raise ValueError(
                f"config.data.size_temperature={self.size_temperature} must be above 0; None: "
                "sources are drawn by config.data.weights"
            )
        if self.size_temperature is not None and self.weights:
            raise ValueError(
                f"config.data.size_temperature={self.size_temperature} and config.data.weights="
                f"{dict(self.weights)} both say how often sources are drawn: leave one of them out"
            )
        check_first_rows(self.first_rows, self.first_rows_by_source)
        if self.mined and self.negatives < 1 and not self.cluster_size:
            raise ValueError(
                f"config.data.mined={self.mined!r} with config.data.negatives={self.negatives}: "
                "none of the mined negatives would be read; set it to how many a pair has at most."
            )
        if self.cluster_size < 0 or self.cluster_size == 1:
            raise ValueError(
                f"config.data.cluster_size={self.cluster_size}: rows of a cluster are each other's "
                "negatives, so it must be 2 or more; 0: rows are drawn without clusters."
            )
        if self.cluster_size and not self.mined:
            raise ValueError(
                f"config.data.cluster_size={self.cluster_size}, but config.data.mined is empty: "
                "clusters are made of mined candidates; name a work directory of job mine."
            )
        first, last = self.cluster_ranks
        if not 1 <= first <= last:
            raise ValueError(
                f"config.data.cluster_ranks={self.cluster_ranks}: the first rank is 1 or more, and "
                "the last not before it."
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation data below `data.folder`; "" leaves a part out."""

    every: int  # steps from one evaluation to the next during training; 0: only at the ends
    mmeb: str  # datasets in MMEB-eval's columns, in any format of docs/data.md
    # whose words go around MMEB's rows: "data", as the files have them; "vlm2vec"; "qwen3_vl"
    instructions: Instructions
    composition: str  # SugarCrepe-style captions, in any format
    # pairs (see `data.columns`), whose source "test" is compared with the teacher's view
    texts: str
    images: str  # of the two first: a TFDS folder with the columns path and image, or plain files
    image_prompt: str  # goes with the images of the composition sets; captions are taken as is
    rows: int  # encoded a call
    limit: int  # the first rows of each dataset; 0: all
    # everything is also scored by so many of an embedding's first numbers, ascending; None: as
    # `matryoshka.dims`
    dims: tuple[int, ...] | None
    precisions: tuple[Fewer, ...]  # and by whole embeddings, and these, in fewer bits a number

    def __post_init__(self) -> None:
        check_dims(self.dims or (), "config.evaluation.dims")
