"""What the demo's page shows, without the page: a folder's entries, their search, maps and cards.

Not a recipe: `demo.py` is the page around it.
"""

import dataclasses
import pathlib
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.mini_mmeb import content, render
from unime_jax import Embedder, Index
from unime_jax.data import images

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
LARGEST = 448  # pixels of a picture's longer side, where parts of it are covered
CELLS = 10  # of a map, along the longer side
Kind = Literal["all", "pictures", "texts"]


class Entry(NamedTuple):
    """A picture, or a line of a text file: its name, and what it is."""

    name: str
    picture: pathlib.Path | None
    text: str


@dataclasses.dataclass(frozen=True)
class Wording:
    """Instructions, as the models were trained with them; "" asks for the prompts of their folder.

    Attributes:
      instructions: for queries, the first of which the page begins with.
      picture: for the pictures of the folder.
      suffix: what follows texts and instructions.
      queries: examples.
    """

    instructions: tuple[str, ...] = ("",)
    picture: str = ""
    suffix: str = ""
    queries: tuple[str, ...] = ()


MINI = Wording(
    (
        "Find an image of this scene: ",
        "Find the image: ",
        "Find this image with a change: ",
        "Find a caption of this scene.",
        "Find an image of this digit.",
    ),
    "Represent the given image.",
    "\n",
    ("a cyan circle above an orange cross on sky", "a big orange cross on gray"),
)


def draw_mini(folder: pathlib.Path, *, pictures: int = 120, texts: int = 60) -> pathlib.Path:
    """MiniMMEB's pictures of scenes, objects and digits, and captions, if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "captions.txt").exists():
        return folder
    share = {"Scenes_t2i": 0.5, "NewScenes_t2i": 0.2, "Objects": 0.2, "Digits": 0.1}
    left = {name: round(part * pictures) for name, part in share.items()}
    for path, picture in content.pictures(0, pictures):
        source = pathlib.PurePath(path).parts[1]
        if left.get(source, 0):
            left[source] -= 1
            name = f"{source.split('_')[0].lower()}-{pathlib.PurePath(path).stem}.png"
            (folder / name).write_bytes(render.encode(picture))
    captions = next(source for source in content.DATASETS if source.name == "Scenes_i2t")
    lines = {side.text for row in content.eval_rows(captions, 0, texts) for side in row.candidates}
    (folder / "captions.txt").write_text("\n".join(sorted(lines)[:texts]) + "\n")  # last: whole
    return folder


def entries_of(folder: pathlib.Path) -> list[Entry]:
    """All pictures below a folder that can be read, and all lines of its .txt files, by name.

    Raises:
      ValueError: there is no such folder, or it has none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    entries = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() in PICTURES:
            entries.append(Entry(name, file, ""))
        elif file.suffix.lower() == ".txt":
            for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
                if line.strip():
                    entries.append(Entry(f"{name}:{number}", None, line.strip()))
    entries = [entry for entry in entries if entry.picture is None or _is_readable(entry.picture)]
    if not entries:
        raise ValueError(
            f"{folder} has no pictures that can be read ({', '.join(PICTURES)}) and no .txt files"
            " with lines"
        )
    return entries


def _is_readable(file: pathlib.Path) -> bool:
    try:
        images.check(images.read(file))
    except (OSError, ValueError):
        return False
    return True


class Searcher:
    """A model, and the index of the entries by it."""

    def __init__(self, embedder: Embedder, entries: Sequence[Entry], wording: Wording):
        self.entries = {entry.name: entry for entry in entries}
        self._embedder, self._wording = embedder, wording
        self._lock = threading.Lock()  # a model embeds one call at a time
        self._is_picture = np.array([entry.picture is not None for entry in entries])
        vectors = np.zeros((len(entries), embedder.dimension), np.float32)
        pictures = [{"image": entry.picture} for entry in entries if entry.picture is not None]
        texts = [{"text": entry.text} for entry in entries if entry.picture is None]
        if pictures:
            vectors[self._is_picture] = self._document(pictures)
        if texts:
            vectors[~self._is_picture] = embedder.encode_document(texts)
        self._index = Index(vectors, [entry.name for entry in entries])
        self._vectors = dict(zip(self._index.ids, vectors, strict=True))

    def query(
        self, text: str, image: Image.Image | None, instruction: str
    ) -> Float32[np.ndarray, " D"]:
        """The vector of a text, an image, or both.

        Raises:
          ValueError: it is neither.
        """
        if not text.strip() and image is None:
            raise ValueError("write something, or choose a picture")
        item: dict[str, Any] = {"text": text.strip()}
        if image is not None:
            item["image"] = image
        with self._lock:
            if not instruction:
                return self._embedder.encode_query(item)
            return self._embedder.encode(item, prompt=instruction, suffix=self._wording.suffix)

    def search(
        self, query: Float32[np.ndarray, " D"], k: int, kind: Kind
    ) -> list[tuple[Entry, float]]:
        """The nearest entries of a kind, with their cosines."""
        where = {"all": None, "pictures": self._is_picture, "texts": ~self._is_picture}[kind]
        hits = self._index.search(query[None], k, where=where)[0]
        return [(self.entries[hit.id], hit.score) for hit in hits]

    def neighbours(self, name: str, k: int) -> list[tuple[Entry, float]]:
        """The entries nearest to an entry, without itself."""
        near = self.search(self._vectors[name], k + 1, "all")
        return [(entry, score) for entry, score in near if entry.name != name][:k]

    def map_of(
        self, name: str, query: Float32[np.ndarray, " D"]
    ) -> tuple[Image.Image, Float32[np.ndarray, "rows columns"]]:
        """A picture, and how much its cosine with a query falls where it is covered.

        A square of two cells is covered around each cell, in the median colour of the picture's
        rim. This asks the model for nothing but embeddings, so that it works with any.
        """
        file = self.entries[name].picture
        if file is None:
            raise ValueError(f"{name} is a text; maps are of pictures")
        picture = images.decode(images.read(file))
        picture.thumbnail((LARGEST, LARGEST))
        rows, columns = grid_of(*picture.size)
        parts = [{"image": part} for part in covered(np.asarray(picture), rows, columns)]
        whole, *others = self._document([{"image": picture}, *parts])
        falls = (whole - np.stack(others)) @ query
        return picture, falls.reshape(rows, columns).astype(np.float32)

    def _document(self, items: list[dict[str, Any]]) -> Float32[np.ndarray, "n D"]:
        with self._lock:
            if not self._wording.picture:
                return self._embedder.encode_document(items)
            return self._embedder.encode(
                items, prompt=self._wording.picture, suffix=self._wording.suffix
            )


class Searchers:
    """A searcher for each model, made when it is first asked for."""

    def __init__(self, models: Sequence[str], make: Callable[[str], Searcher]):
        self.models = list(models)
        self._make, self._made = make, dict[str, Searcher]()
        self._lock = threading.Lock()

    def __getitem__(self, model: str) -> Searcher:
        with self._lock:
            if model not in self._made:
                self._made[model] = self._make(model)
            return self._made[model]


def grid_of(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of a picture's map: `CELLS` along the longer side."""
    cell = max(width, height) / CELLS
    return max(1, round(height / cell)), max(1, round(width / cell))


def covered(pixels: np.ndarray, rows: int, columns: int) -> Iterator[np.ndarray]:
    """The picture with a square around each cell in the median colour of its rim, row by row."""
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(rim, axis=0).astype(np.uint8)
    high, wide = pixels.shape[0] / rows, pixels.shape[1] / columns
    for row in range(rows):
        for column in range(columns):
            copy = pixels.copy()
            top, left = (row - 0.5) * high, (column - 0.5) * wide
            copy[
                max(0, round(top)) : round(top + 2 * high),
                max(0, round(left)) : round(left + 2 * wide),
            ] = ground
            yield copy


def overlay(picture: Image.Image, falls: np.ndarray, *, side: int = 480) -> Image.Image:
    """A map over its picture: from dark, where covering changes nothing, to bright."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    strength = np.clip(falls, 0, None)
    strength = strength / strength.max() if strength.max() > 0 else strength
    heat = Image.fromarray(np.uint8(255 * strength)).resize(size, Image.Resampling.BICUBIC)
    share = np.asarray(heat, np.float32)[..., None] / 255
    colours = 255 * matplotlib.colormaps["inferno"](share[..., 0])[..., :3]
    below = np.asarray(picture.resize(size, Image.Resampling.LANCZOS).convert("L"), np.float32)
    mixed = (0.25 + 0.3 * share) * below[..., None] + (0.75 - 0.3 * share) * colours
    return Image.fromarray(np.uint8(np.clip(mixed, 0, 255)))


def card(entry: Entry, *, side: int = 320) -> Image.Image:
    """What stands for an entry among others: a picture in a square, a text as written on it."""
    if entry.picture is not None:
        picture = images.decode(images.read(entry.picture))
        scale = side / max(picture.size)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        filter = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
        square = Image.new("RGB", (side, side), "#f1f3f5")
        square.paste(picture.resize(size, filter), ((side - size[0]) // 2, (side - size[1]) // 2))
        return square
    square = Image.new("RGB", (side, side), "#fdf6e3")
    pen = ImageDraw.Draw(square)
    lines = textwrap.wrap(entry.text, 18)
    if len(lines) > 7:
        lines = [*lines[:6], lines[6][:16] + " ..."]
    font = ImageFont.load_default(28)
    pen.multiline_text(
        (side / 2, side / 2), "\n".join(lines), "#33302a", font, "mm", spacing=8, align="center"
    )
    return square


def captioned(hits: Sequence[tuple[Entry, float]]) -> list[tuple[Image.Image, str]]:
    """Cards with scores and names, as a gallery shows them."""
    return [(card(entry), f"{score:.3f}  {entry.name}") for entry, score in hits]
