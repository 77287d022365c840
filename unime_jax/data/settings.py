"""Settings of how items become rows, and rows batches. Plain data, so that configs need no JAX.

The comment beside a key, or its entry under "Attributes:", is its text in --help.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Literal

Side = Literal["query", "positive", "negatives"]
JudgePromptName = Literal["unime_v2", "qwen3_vl_reranker"]  # whose words a judge is asked by
MinedUse = Literal["beside", "instead"]  # mined negatives, of a row's own
Packing = Literal["auto", "off"]  # of several texts into a row
Style = Literal["chat", "system", "verbatim", "raw"]  # of a prompt
MissingImages = Literal["strip", "token", "image"]  # what stands for an image that is missing
Instructions = Literal["data", "vlm2vec", "qwen3_vl"]  # whose words go around MMEB's rows
Fewer = Literal["float16", "int8", "binary"]  # bits of a number of an embedding: 16, 8, 1
# VLM2Vec's names of the size that images are resized to first; "capped" are those with a side above
# 1344, and no others.
Resolution = Literal["low", "mid", "mid_336", "high", "capped"]
ClipNewlines = Literal["one", "grid"]  # of LLaVA-OneVision, in a clip

COLUMN_KEYS = (  # of data.columns
    "query",
    "query_image",
    "query_video",
    "positive",
    "positive_image",
    "positive_video",
    "negatives",
    "negatives_image",
    "negatives_video",
    "scores",
    "score",
    "id",
)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The shape of a row, and how many rows of it a batch has room for.

    A share of 1 is safe, less saves host memory and transfer. Rows that find no room go to the next
    larger bucket.
    """

    tokens: int  # of a row, at most; 0: images of a dual encoder, the text tower is left out
    tiles: int  # of a row's images, at most; 0: texts only, the vision tower is left out
    share: float = 1.0  # of all rows of a batch that it has room for, in (0, 1]
    # of a chunk, at most, over all devices; 0: as many as need the memory of `chunk_size` rows of
    # the largest bucket
    rows: int = 0
    # of a row, at most: above 1 several texts are one row, each with its own positions, attention
    # and embedding, where the model's attention allows; never of the largest bucket
    texts: int = 1


@dataclasses.dataclass(frozen=True)
class Processing:
    """A prompt and the size of images; a family's `PROCESSING` is that of its published embedders.

    Attributes:
      prompt: "chat" or "verbatim", in the checkpoint's chat template, or "raw", see
        `prompts.Prompt`; "system": in the template, with the instruction in a turn of its own, see
        `system_prompt.SystemPrompt`.
      image_size: (height, width) that every image is resized to first; None: not resized.
      resolution: the same by VLM2Vec's names, in place of `image_size`: 128 ("low"), 336
        ("mid_336"), 672 ("mid") or 1344 ("high") pixels a side, whatever the aspect; "capped": 1344
        for images with a longer side, and others as they are. Not for Phi-3.5-Vision.
      pinpoints: AnyRes canvases (height, width) of LLaVA; (): the checkpoint's own.
      pixels: least and most pixels of the dynamic resolution of Qwen2-VL and Qwen2.5-VL; None: the
        checkpoint's own.
      grid_positions: their images always get row and column positions, as in transformers 5;
        if not, only those that stand after a vision_start token, as when UniME-V2 was trained.
      legacy_padding: LLaVA canvases are padded as by transformers 4.48, which published UniME
        checkpoints were trained with: where the padding is odd, the last tile is one pixel short
        and stretched.
      crops: the most crops of an image of Phi-3.5-Vision; None: the checkpoint's own.
      missing_images: an image marker without an image (MMEB's WebQA and EDIS have such queries) is
        left out ("strip"); is an ordinary token ("token", as VLM2Vec and UniME-V2 feed it); or
        stands for an image of zeros, one tile and a newline ("image", LLaVE).
      fps: frames a second that are looked at in a clip; None: as the family was published, as are
        the next three.
      frames: least and most frames of a clip that are looked at.
      frame_pixels: least and most pixels of a frame, of Qwen's families.
      clip_pixels: most pixels of all frames of a clip together, of Qwen's families.
      clip_newlines: LLaVA-OneVision's newline vector ends a clip once ("one", transformers), or
        every row of every frame ("grid", LLaVE); None: as the checkpoint says.
      final_norm: the state that is pooled is after the decoder's final norm; if not, before it, as
        `hidden_states[-1]` of transformers 4 was.
    """

    prompt: Style
    image_size: tuple[int, int] | None = None
    resolution: Resolution | None = None
    pinpoints: tuple[tuple[int, int], ...] = ()
    pixels: tuple[int, int] | None = None
    grid_positions: bool = False
    legacy_padding: bool = False
    crops: int | None = None
    missing_images: MissingImages = "strip"
    fps: float | None = None
    frames: tuple[int, int] | None = None
    frame_pixels: tuple[int, int] | None = None
    clip_pixels: int | None = None
    clip_newlines: ClipNewlines | None = None
    final_norm: bool = True

    def __post_init__(self) -> None:
        if self.image_size and self.resolution:
            raise ValueError(
                f"processing.image_size={self.image_size} and processing.resolution="
                f"{self.resolution!r} are both sizes that images are resized to first; give one"
            )
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"processing.fps is {self.fps}; it must be above 0")
        for key in ("frames", "frame_pixels"):
            pair = getattr(self, key)
            if pair is not None and (len(pair) != 2 or not 0 < pair[0] <= pair[1]):
                raise ValueError(
                    f"processing.{key} is {pair}; it must be the least and the most, both positive"
                )
        if self.clip_pixels is not None and self.clip_pixels < 1:
            raise ValueError(f"processing.clip_pixels is {self.clip_pixels}; it must be positive")


def check_dims(dims: Sequence[int], where: str) -> None:
    """Raises ValueError for numbers of prefixes that do not ascend from above 0."""
    if any(a >= b for a, b in zip([0, *dims], dims)):
        raise ValueError(f"{where}={tuple(dims)}: they must be above 0, and each above the last.")


def check_keys(chosen: Mapping[str, str], where: str) -> None:
    """Raises ValueError for keys of `data.columns` that there are not, or without a column."""
    for key, column in chosen.items():
        if key not in COLUMN_KEYS:
            near = difflib.get_close_matches(key, COLUMN_KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(COLUMN_KEYS)}"
            raise ValueError(f"unknown key {where}.{key}; {hint}")
        if not column:
            raise ValueError(f'{where}.{key} is ""; it must name a column, or be left out')
