"""Keys of job evaluate: a model, and the data that it is scored on."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from unime_jax.config.common import MeshConfig, PrepareConfig
from unime_jax.data.settings import Fewer, Instructions, Processing, check_dims, check_keys


@dataclasses.dataclass(frozen=True)
class EvaluateWatchdogConfig:
    """What happens when nothing goes on for so many seconds (0: it may for ever)."""

    setup_seconds: float  # opening data and backbone, each tensor that is read
    evaluation_seconds: float  # a batch of items, with the compilation before it
    exit: bool  # end the process with status 75; all stacks are left in <workdir> either way


@dataclasses.dataclass(frozen=True)
class EvaluateDataConfig:
    """Where evaluation data are, and how they are made if they are absent."""

    folder: str  # that all paths of `data` and `evaluation` are relative to
    prepare: PrepareConfig
    # retrieval sets, below `folder`: pairs, or folders in BEIR's layout; "": none
    eval: str
    columns: Mapping[str, str]  # of pairs here and in `evaluation.texts`, as in a training run
    teacher: str  # a teacher's embeddings of `evaluation.texts`, below `folder`; "": none
    suffix: str  # an instruction after every one of these texts, never cut off

    def __post_init__(self) -> None:
        check_keys(self.columns, "config.data.columns")


@dataclasses.dataclass(frozen=True)
class AgreementConfig:
    """The divergence of held-out texts' similarities from a teacher's, as `loss` of a training."""

    temperature: float  # the model's similarities are divided by it
    teacher_temperature: float | None  # the teacher's are divided by it; None: the same
    # the distribution that the divergence is taken under
    direction: Literal["teacher_student", "student_teacher", "symmetric"]
    mask_diagonal: bool  # leave out the similarity of a text with itself


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """Evaluation data below `data.folder`, as in a training run; "" leaves a part out."""

    mmeb: str  # datasets in MMEB-eval's columns, in any format of docs/data.md
    # whose words go around MMEB's rows: "data", as the files have them; "vlm2vec"; "qwen3_vl"
    instructions: Instructions
    composition: str  # SugarCrepe-style captions, in any format
    # a folder of benchmark sets that data_pipelines.benchmarks has prepared
    benchmarks: str
    sets: tuple[str, ...]  # names of these sets; (): all that are prepared
    # pairs (see `data.columns`), whose source "test" is compared with the teacher's view
    texts: str
    agreement: AgreementConfig
    # of the two first: a TFDS folder with the columns path and image, or plain files
    images: str
    image_prompt: str  # goes with the images of composition and caption sets
    caption_prompt: str  # of their captions; {caption} stands for the caption
    video_prompt: str  # goes with the clips of caption sets
    limit: int  # the first rows of each dataset, but for the texts; 0: all
    # everything is also scored by so many of an embedding's first numbers, ascending; (): whole
    # embeddings only
    dims: tuple[int, ...]
    precisions: tuple[Fewer, ...]  # and by whole embeddings, and these, in fewer bits a number
    # a local folder (not below `data.folder`) that vectors of items are kept in, for other runs;
    # "auto": below $XDG_CACHE_HOME (~/.cache), of 16 GiB at most; "": none
    cache: str

    def __post_init__(self) -> None:
        check_dims(self.dims, "config.evaluation.dims")
        if "://" in self.cache:
            raise ValueError(
                f"config.evaluation.cache={self.cache!r} must be a local folder, as vectors are "
                'written and read often; "auto" is one below ~/.cache, and "" is none.'
            )
        if self.sets and not self.benchmarks:
            raise ValueError(
                f"config.evaluation.sets={list(self.sets)} are names of prepared sets, but "
                "config.evaluation.benchmarks names no folder of them."
            )
        if "{caption}" not in self.caption_prompt:
            raise ValueError(
                f"config.evaluation.caption_prompt={self.caption_prompt!r} has no {{caption}}, "
                "where the caption goes."
            )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Scores of a model, apart from any training."""

    job: Literal["evaluate"]  # what to do with this config
    # a folder or a hub id, of a model or of a PEFT adapter; or a training run's work directory,
    # whose export is meant
    backbone: str
    # what runs the backbone; "sentence_transformers": any of its folders or hub ids, as a peer
    library: Literal["unime_jax", "sentence_transformers"]
    # of a peer: an item with text and image is the sum of their embeddings
    late_fusion: bool
    revision: str | None  # of a hub id: branch, tag or commit; None: its main branch as it is now
    processing: Processing | None  # None: as the backbone was exported or published
    # tokens of an item, image tokens included; None: the folder's own
    max_length: int | None
    batch_size: int  # items encoded at once: memory, not results
    dtype: Literal["float32", "bfloat16", "int8"]  # as of `Embedder.from_pretrained`
    compilation_cache: str  # as in a training run
    mesh: MeshConfig  # of all devices
    watchdog: EvaluateWatchdogConfig
    data: EvaluateDataConfig
    evaluation: TasksConfig

    def __post_init__(self) -> None:
        chosen = self.evaluation
        named = (chosen.mmeb, chosen.composition, chosen.benchmarks, chosen.texts, self.data.eval)
        if not any(named):
            raise ValueError(
                "config.data.eval, config.evaluation.mmeb, composition, benchmarks and texts name "
                "nothing to evaluate on."
            )
        texts, teacher = chosen.texts, self.data.teacher
        if bool(texts) != bool(teacher):
            raise ValueError(
                f"config.evaluation.texts={texts!r} and config.data.teacher={teacher!r}: held-out "
                "texts are compared with a teacher's embeddings of them; set both, or neither."
            )
        if self.data.suffix and not texts:
            raise ValueError(
                f"config.data.suffix={self.data.suffix!r}: only config.evaluation.texts have a use "
                "for it."
            )
        self._check_library()

    def _check_library(self) -> None:
        if self.library == "unime_jax":
            if self.late_fusion:
                raise ValueError(
                    "config.late_fusion=True is for peers, with config.library="
                    "'sentence_transformers': models of this library embed text and image at once."
                )
            return
        if self.processing is not None:
            raise ValueError(
                f"config.processing is of this library's models; config.library={self.library!r} "
                "makes its inputs itself: leave it None."
            )
        if self.dtype == "int8":
            raise ValueError(
                f"config.dtype='int8': config.library={self.library!r} runs in float32 or bfloat16."
            )
