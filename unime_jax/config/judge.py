"""Keys of job judge: pairs, the question about them, and what is made of the scores."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from unime_jax.config.common import MeshConfig
from unime_jax.data.settings import JudgePromptName, MinedUse, Processing, check_keys


@dataclasses.dataclass(frozen=True)
class JudgeDataConfig:
    """The pairs whose candidates are judged, and the files of the rows that are written."""

    folder: str  # that `train` is relative to
    train: str  # pairs, as `data.train` of a training run
    columns: Mapping[str, str]  # as in a training run
    mined: str  # as in a training run: negatives of job mine are judged, too; "": none
    mined_use: MinedUse  # as in a training run
    block: int  # rows of a file; a run that is killed loses one of them at most
    max_bad_share: float  # of the rows that may be unusable before the job stops

    def __post_init__(self) -> None:
        check_keys(self.columns, "config.data.columns")
        if self.block < 1:
            raise ValueError(f"config.data.block={self.block}: a file has at least one row")


@dataclasses.dataclass(frozen=True)
class JudgingConfig:
    """The question to the judge, and what is made of its scores."""

    # "unime_v2": one user turn; "qwen3_vl_reranker": Qwen3-VL-Reranker's, with a system turn
    prompt: JudgePromptName
    instruction: str | None  # before the query and the candidate; None: the prompt's own
    # the answer of a candidate that meets the query; its first token counts; None: the prompt's own
    yes: str | None
    no: str | None  # the other answer, alike
    # encode what the prompts of one query begin with once, where the model can; a row of several
    # candidates has at most `max_length` tokens. Cost, and results by rounding alone
    share_prefix: bool
    # divides the logit of an answer that the prompt has in it, as transformers' `generate` does
    # (Qwen2.5-VL: 1.05, which UniME-V2's published scores have); 1: none
    repetition_penalty: float
    # drop negatives whose score is above the positive's less this (UniME-V2: 0.01); None: none
    margin: float | None
    keep: int  # negatives of a row at the end, spread over their ranks (UniME-V2: 10); 0: all

    def __post_init__(self) -> None:
        if not self.repetition_penalty > 0 or self.keep < 0:
            raise ValueError(
                f"config.judging.repetition_penalty={self.repetition_penalty} must be above 0"
                f" (1: none), and config.judging.keep={self.keep} not below 0 (0: all)."
            )


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Scores of the candidates of training pairs, by a multimodal model with a head."""

    job: Literal["judge"]  # what to do with this config
    backbone: str  # a folder or a hub id
    revision: str | None  # as in a training run
    processing: Processing | None  # of images; the words are `judging`'s and the chat template's
    # tokens of a query and a candidate with their images; None: the folder's own
    max_length: int | None
    batch_size: int  # rows judged at once, of one pair or several: memory, not results
    dtype: Literal["float32", "bfloat16"]  # of weights and activations; logits are float32
    compilation_cache: str  # as in a training run
    mesh: MeshConfig  # of each process's own devices
    judging: JudgingConfig
    data: JudgeDataConfig
