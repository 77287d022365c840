"""Items to rows for LLaVA-OneVision: prompt, token ids, image slots and uint8 patches, on the host.

The same numbers as transformers' processor, without torch or torchvision and without floats: the
pixels stay bytes (the device rescales and normalises) and the image token is expanded here, with
`anyres` saying what every copy of it reads. Padding and batching are the loader's.
"""

import dataclasses
import functools
import io
import os
import re
from collections.abc import Sequence

import numpy as np
import tokenizers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.utils import cached_file

from unime_jax.backbones import anyres, prompts
from unime_jax.batch import Item, Row

# A folder needs one of each; newer ones keep the image processor in processor_config.json.
_FILES = (
    ("config.json",),
    ("tokenizer.json",),
    ("preprocessor_config.json", "processor_config.json"),
)


@dataclasses.dataclass(frozen=True)
class LlavaOnevisionPreprocessor:
    """Callable `Item -> Row`; picklable. Build it with `from_folder`.

    A row has token ids in reading order, positions 0, 1, ... (A = 1), and slots of
    `slots_per_token` table rows as `anyres.image_slots` gives them (-1 for text).
    """

    tokenizer: tokenizers.Tokenizer
    text_frame: tuple[str, str]  # prompt before and after the text of an item without image
    image_frame: tuple[str, str]  # the same with an image; one of the two holds `image_token`
    image_token: str
    image_token_id: int
    pinpoints: tuple[anyres.Size, ...]
    tile: int  # pixels along a side of a tile
    patch: int  # pixels along a side of a patch
    max_tiles: int
    resample: int  # Pillow's number of the resizing filter
    rescale_factor: float
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    max_length: int

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        *,
        max_length: int,
        pinpoints: Sequence[anyres.Size] = (),
    ) -> "LlavaOnevisionPreprocessor":
        """Reads the tokenizer, image processor, chat template and configuration of a checkpoint.

        Args:
          folder: a Hugging Face folder or hub id.
          max_length: the most tokens of a row, image tokens included.
          pinpoints: canvases (height, width) to use instead of the checkpoint's, for instance one
            tile only to train at a low resolution.

        Raises:
          FileNotFoundError: the folder, or one of its files, is missing.
          ValueError: the files contradict each other, or ask for what this family does not do.
        """
        _require_files(folder)
        config = AutoConfig.from_pretrained(folder)
        _expect(folder, "config.json", "model_type", config.model_type, "llava_onevision")
        strategy = config.vision_feature_select_strategy
        _expect(folder, "config.json", "vision_feature_select_strategy", strategy, "full")
        tile, patch = config.vision_config.image_size, config.vision_config.patch_size
        own = tuple((int(h), int(w)) for h, w in config.image_grid_pinpoints)
        pinpoints = tuple((int(h), int(w)) for h, w in pinpoints) or own
        if not pinpoints or any(h < 1 or w < 1 or h % tile or w % tile for h, w in pinpoints):
            where = (
                f"{folder}/config.json: image_grid_pinpoints" if pinpoints == own else "pinpoints"
            )
            raise ValueError(
                f"{where} are {pinpoints}; they must be multiples of"
                f" vision_config.image_size, {tile}"
            )
        aspect = re.fullmatch(r"anyres_max_([1-9]\d*)", config.vision_aspect_ratio)
        if aspect is None:
            raise ValueError(
                f"{folder}/config.json: vision_aspect_ratio is {config.vision_aspect_ratio!r};"
                " only 'anyres_max_<number>' is supported"
            )

        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        where = "preprocessor_config.json"
        theirs = tuple((int(h), int(w)) for h, w in processor.image_grid_pinpoints)
        _expect(folder, where, "image_grid_pinpoints", theirs, own)
        size = (processor.size.get("height"), processor.size.get("width"))
        _expect(folder, where, "size", size, (tile, tile))
        for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            _expect(folder, where, key, bool(getattr(processor, key)), True)
        _expect(folder, where, "do_center_crop", bool(processor.do_center_crop), False)

        tokenizer = AutoTokenizer.from_pretrained(folder)
        image_token_id = config.image_token_index
        image_token = tokenizer.convert_ids_to_tokens(image_token_id)
        if image_token not in tokenizer.get_added_vocab():
            raise ValueError(
                f"{folder}: image_token_index of config.json is {image_token_id}, which is"
                f" {image_token!r} in tokenizer.json and not an added (special) token"
            )
        template = prompts.chat_template(folder, tokenizer)
        text_frame = prompts.frame(tokenizer, template, image=False)
        image_frame = prompts.frame(tokenizer, template, image=True)
        counts = tuple("".join(frame).count(image_token) for frame in (text_frame, image_frame))
        if counts != (0, 1):
            raise ValueError(
                f"{folder}: the chat template writes {image_token!r} {counts[0]} times without an"
                f" image and {counts[1]} times with one; it must be 0 and 1. The rendered turns"
                f" are {'...'.join(text_frame)!r} and {'...'.join(image_frame)!r}"
            )
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # a tokenizer.json may carry a length or padding of its own
        backend.no_padding()
        return cls(
            tokenizer=backend,
            text_frame=text_frame,
            image_frame=image_frame,
            image_token=image_token,
            image_token_id=image_token_id,
            pinpoints=pinpoints,
            tile=tile,
            patch=patch,
            max_tiles=int(aspect.group(1)),
            resample=int(processor.resample),
            rescale_factor=float(processor.rescale_factor),
            image_mean=_rgb(processor.image_mean),
            image_std=_rgb(processor.image_std),
            max_length=max_length,
        )

    @property
    def side(self) -> int:
        """Patches along a side of a tile; pixels that fill no patch are dropped, as in a conv."""
        return self.tile // self.patch

    @functools.cached_property
    def slots_per_token(self) -> int:
        """S of every row: 4 if maps can be shrunk under these pinpoints, else 1."""
        blended = anyres.resamples(
            self.pinpoints, tile=self.tile, side=self.side, max_tiles=self.max_tiles
        )
        return 4 if blended else 1

    def rendered(self, item: Item) -> str:
        """The prompt of an item as text, with a single image token where the image goes."""
        prefix, suffix = self._frame(item)
        return prefix + self._text(item)[0] + suffix

    def __call__(self, item: Item) -> Row:
        """One row.

        A marker of an item without image is left out and counted in `orphan_images`. A row longer
        than `max_length` loses tokens from the end of its text, counted in `truncated`; never image
        tokens, the template around the text, or the last token, which is pooled.

        Raises:
          ValueError: the image is missing or unreadable, or the row cannot be made short enough.
        """
        text, orphans = self._text(item)
        prefix, suffix = self._frame(item)
        encoding = self.tokenizer.encode(prefix + text + suffix)
        slots = weights = patches = None
        length = len(encoding.ids)
        if _has_image(item):
            picture = to_rgb(_open(item))
            slots, weights = anyres.image_slots(
                picture.height,
                picture.width,
                pinpoints=self.pinpoints,
                tile=self.tile,
                side=self.side,
                max_tiles=self.max_tiles,
            )
            length += len(slots) - 1
        ids = encoding.ids
        excess = max(0, length - self.max_length)
        if excess:
            ids = self._shortened(item, encoding, len(prefix), len(prefix) + len(text), excess)
            length -= excess

        tokens = np.asarray(ids, np.int32)
        slot = np.full((length, self.slots_per_token), anyres.TEXT, np.int32)
        slot_weight = np.zeros(slot.shape, np.float32) if self.slots_per_token > 1 else None
        if slots is not None:
            at = ids.index(self.image_token_id)
            copies = np.full(len(slots), self.image_token_id, np.int32)
            tokens = np.concatenate([tokens[:at], copies, tokens[at + 1 :]])
            slot[at : at + len(slots)] = slots
            if slot_weight is not None:
                slot_weight[at : at + len(slots)] = weights
            tiles = anyres.cut_tiles(picture, self.pinpoints, self.tile, self.resample)
            patches = anyres.cut_patches(tiles, self.patch)
        return Row(
            tokens=tokens,
            positions=np.arange(length, dtype=np.int32)[:, None],
            slot=slot,
            slot_weight=slot_weight,
            patches=patches,
            truncated=excess,
            orphan_images=orphans,
        )

    def _frame(self, item: Item) -> tuple[str, str]:
        return self.image_frame if _has_image(item) else self.text_frame

    def _text(self, item: Item) -> tuple[str, int]:
        """The item's text without image markers, stripped; and how many of them had no image.

        The text may also hold the image token itself: left in, it would be an image token without
        an image.
        """
        text, markers = item.text, 0
        for marker in (prompts.MMEB_IMAGE_MARKER, self.image_token):
            while marker in text:  # leaving one out may form another
                markers += text.count(marker)
                text = text.replace(marker + "\n", "").replace(marker, "")
        return text.strip(), max(0, markers - _has_image(item))

    def _shortened(
        self, item: Item, encoding: tokenizers.Encoding, start: int, stop: int, excess: int
    ) -> list[int]:
        """Token ids without the last `excess` of those that lie in characters [start, stop)."""
        ids = encoding.ids
        inside = [
            i
            for i, (first, last) in enumerate(encoding.offsets[:-1])  # the last token is pooled
            if start <= first < last <= stop
        ]
        low, high = (inside[0], inside[-1] + 1) if inside else (0, 0)
        if high - low < excess:
            fixed = self.max_length + excess - (high - low)
            what = "image tokens and " if _has_image(item) else ""
            raise ValueError(
                f"{_name(item)}: its {what}prompt template alone are {fixed} tokens, and"
                f" max_length is {self.max_length}; raise it, or use fewer image_grid_pinpoints"
            )
        return ids[: high - excess] + ids[high:]


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as transformers' processor makes it: transparency is laid on white, EXIF is ignored."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _has_image(item: Item) -> bool:
    return bool(item.image_path or item.image)


def _open(item: Item) -> Image.Image:
    if not item.image:
        raise ValueError(f"{_name(item)}: the image file is missing")
    try:
        image = Image.open(io.BytesIO(item.image))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{_name(item)}: the image cannot be read: {error}") from error
    return image


def _name(item: Item) -> str:
    text = item.text if len(item.text) <= 60 else item.text[:57] + "..."
    return f"item {text!r} with image {item.image_path!r}" if item.image_path else f"item {text!r}"


def _rgb(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _require_files(folder: str | os.PathLike[str]) -> None:
    if os.path.isabs(folder) and not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder} is not a folder")
    for names in _FILES:
        found = [cached_file(folder, x, _raise_exceptions_for_missing_entries=False) for x in names]
        if not any(found):
            raise FileNotFoundError(
                f"{folder} has no {' or '.join(names)}; it must be the folder or hub id of a"
                " LLaVA-OneVision checkpoint in Hugging Face form"
            )


def _expect(
    folder: str | os.PathLike[str], file: str, key: str, found: object, expected: object
) -> None:
    if found != expected:
        raise ValueError(f"{folder}/{file}: {key} is {found!r}, but it must be {expected!r}")
