"""Image and video processors of folders of Qwen2-VL's form: what their files say, and exports."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from unime_jax.backbones.preprocessing import image_processor_config, video_processor_config
from unime_jax.backbones.preprocessing.frame_sampling import Sampling
from unime_jax.backbones.preprocessing.image_processor_config import LEAST, MOST
from unime_jax.backbones.preprocessing.processing import Processing
from unime_jax.backbones.qwen2_vl.clips import ClipRule
from unime_jax.models.qwen_vit import QwenVisionConfig

DEFAULTS = {  # of transformers' Qwen2VLImageProcessor
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
TYPES = ("Qwen2VLImageProcessor",)
CONTEXT = 0.9  # of `max_video_tokens`, that a clip may fill in Qwen2-VL's processor


@dataclasses.dataclass(frozen=True)
class Clips:
    """A family's published way to see clips, where its folder has no video processor.

    Attributes:
      kind: transformers' class.
      joint: as of `ClipRule`.
      frame_tokens: `ClipRule.frame_pixels` in tokens.
      clip_tokens: the same of `clip_pixels`, as of one frame: a token of a clip is of two.
      fps: frames a second.
      frames: least and most frames.
    """

    kind: str
    joint: bool
    frame_tokens: tuple[int, int]
    clip_tokens: int
    fps: float = 2.0
    frames: tuple[int, int] = (4, 768)


# What both were trained with (qwen-vl-utils); no file of a folder has it.
QWEN2_VL = Clips("Qwen2VLVideoProcessor", False, (128, 768), 2 * 115_200)


def open_image_processor(
    folder: pathlib.Path, vision: QwenVisionConfig
) -> tuple[pathlib.Path, dict[str, Any]]:
    """The settings of the folder's image processor, checked to ask for what is done here.

    Raises:
      ValueError: they are missing, or ask for something else.
    """
    file, settings = image_processor_config.read(folder, DEFAULTS, types=TYPES)
    _check(file, settings, _expected(vision))
    return file, settings


def own_pixels(file: pathlib.Path, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Least and most pixels that a checkpoint's image processor asks for."""
    area = image_processor_config.area(settings)
    if area is None:
        raise ValueError(f"{file}: size is {settings['size']}; it must have {LEAST!r} and {MOST!r}")
    return area[LEAST], area[MOST]


def spelled(settings: Mapping[str, Any], pixels: tuple[int, int]) -> dict[str, Any]:
    """The settings that make transformers take these pixels, in each spelling of the folder."""
    least, most = pixels
    changes: dict[str, Any] = {}
    if settings.get("size"):
        changes["size"] = {LEAST: least, MOST: most}
    if not changes or settings.get("min_pixels") or settings.get("max_pixels"):
        changes |= {"min_pixels": least, "max_pixels": most}
    return changes


def open_clips(
    folder: pathlib.Path,
    vision: QwenVisionConfig,
    image: Mapping[str, Any],
    published: Clips,
    processing: Processing,
) -> tuple[ClipRule, dict[str, Any]]:
    """How clips are seen, and the settings of transformers' video processor that does the same.

    A run's `processing` counts before the folder's file, and that before what is published.

    Args:
      image: settings of the image processor, whose pixels clips have, too.

    Raises:
      ValueError: the file asks for what is not done here, or limits are not in order.
    """
    file, own = video_processor_config.read(folder)
    shared = {key: image[key] for key in ("image_mean", "image_std", "rescale_factor", "resample")}
    expected = _expected(vision) | shared
    _check(file, own, {key: expected[key] for key in expected if own.get(key) is not None})
    area = (vision.patch_size * vision.merge) ** 2
    least, most = (tokens * area for tokens in published.frame_tokens)
    total = published.clip_tokens * area
    size = image_processor_config.area(own) if _has_size(own) else None
    context = own.get("max_video_tokens")
    if published.joint:
        least, total = (size[LEAST], size[MOST]) if size else (least, total)
        most = most if context is None else int(context * area)
    else:
        least, most = (size[LEAST], size[MOST]) if size else (least, most)
        total = total if context is None else 2 * int(context * area * CONTEXT)
    frames = own.get("min_frames"), own.get("max_frames")
    fewest, longest = (
        default if found is None else int(found)
        for found, default in zip(frames, published.frames, strict=True)
    )
    rule = ClipRule(
        Sampling(
            fps=float(processing.fps or own.get("fps") or published.fps),
            least=(processing.frames or (fewest, longest))[0],
            most=(processing.frames or (fewest, longest))[1],
            spread="rounded" if published.joint else "floored",
            span=vision.frames,
        ),
        frame_pixels=processing.frame_pixels or (least, most),
        clip_pixels=processing.clip_pixels or total,
        joint=published.joint,
    )
    names = {key: own[key] for key in image_processor_config.IDENTITY if own.get(key)}
    settings = {"video_processor_type": published.kind} | names | expected
    return rule, settings | _limits(rule, area)


def _limits(rule: ClipRule, area: int) -> dict[str, Any]:
    """Sampling and sizes in the spelling of transformers' video processor."""
    sampling, (least, most) = rule.sampling, rule.frame_pixels
    if rule.joint:
        size, context = (least, rule.clip_pixels), _whole(most / area)
    else:
        size, context = (least, most), _context(rule.clip_pixels // 2, area)
    return {
        "do_sample_frames": True,
        "fps": _whole(sampling.fps),
        "min_frames": sampling.least,
        "max_frames": sampling.most,
        "size": {LEAST: size[0], MOST: size[1]},
        "cap_pixels_per_frame": True,
        "max_video_tokens": context,
    }


def _context(pixels: int, area: int) -> float:
    """The number of tokens of which Qwen2-VL's processor makes so many pixels, by its floats."""
    exact = pixels / (area * CONTEXT)
    near = (round(exact), exact, math.nextafter(exact, math.inf))
    return next((n for n in near if int(n * area * CONTEXT) == pixels), exact)


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def _has_size(settings: Mapping[str, Any]) -> bool:
    return any(settings.get(key) for key in ("size", *image_processor_config.AREAS))


def _expected(vision: QwenVisionConfig) -> dict[str, Any]:
    """What processors of images and of clips must say."""
    return {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.frames,
        "merge_size": vision.merge,
    }


def _check(file: pathlib.Path, settings: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        own = settings[key]
        if (tuple(own) if isinstance(own, list) else own) != (
            tuple(value) if isinstance(value, list) else value
        ):
            raise ValueError(f"{file}: {key} is {own!r}, but it must be {value!r}")
