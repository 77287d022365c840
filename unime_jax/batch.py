"""Items on the host, rows ready for a bucket, and the batch that a step consumes.

The alphabet of every shape in this package; a capital letter has this meaning and no other:

    B  pairs; queries of a loss           M  candidates of a loss, or of a query
    H  explicit negatives of a query      K  hardest negatives that are kept
    C  chunks of a group                  R  rows of a chunk
    G  rows of all groups of a batch      T  tokens of a row
    A  axes of rotary positions           S  slots: table rows blended into one token
    N  image tiles of a row               P  patches of a tile
    F  features of a patch: its bytes     V  rows of the image-token table of a row
    D  width of the model's embeddings    E  width of the teacher's embeddings
    L  layers of a stack

Words in lower case are sizes that one function knows (`in`, `out`, `rank`, `heads`), or that
differ from row to row: t tokens and n tiles before padding, n items of a list. `_` is a size
that differs between the arrays of one tuple. Subscripts of einsum are these letters in lower case.
Tests check the shapes of all annotations (tests/shapes.py).
"""

import dataclasses
import functools
import hashlib
from typing import Any, Literal

import jax
from jaxtyping import Bool, Float32, Int32, UInt8, UInt32

MediaKind = Literal["image", "clip"]
ArrayLike = Any  # numpy on the host, jax.Array or ShapeDtypeStruct on the device side
CLIP = "clip:"  # begins the name of a clip: the same file may also be read as an image


@dataclasses.dataclass(frozen=True)
class Media:
    """An encoded image or clip, and the path it is known by.

    `data` is the content of a file; a path without it is a missing file. Media are equal if path,
    content and kind are; `identity` does without the path. The content is never printed.

    Raises:
      ValueError: there is neither a path nor content.
    """

    path: str
    data: bytes | None = dataclasses.field(default=None, repr=False)
    kind: MediaKind = "image"

    def __post_init__(self) -> None:
        if not self.path and not self.data:
            raise ValueError(f"{self} is no {self.kind}: it has neither a path nor content")

    @functools.cached_property
    def identity(self) -> str:
        """ "blake2b:" and 32 hex digits of the content (128 bit); the path where there is none.

        That of a clip has `CLIP` before it.
        """
        if not self.data:
            return self.key
        name = f"blake2b:{hashlib.blake2b(self.data, digest_size=16).hexdigest()}"
        return name if self.kind == "image" else CLIP + name

    @property
    def key(self) -> str:
        """The path; that of a clip has `CLIP` before it."""
        return self.path if self.kind == "image" else CLIP + self.path


@dataclasses.dataclass(frozen=True)
class Item:
    """One side of a pair: text, images, or both.

    `text` marks the places of `media` with MMEB's `<|image_1|>`, `<|image_2|>` and so on. `prefix`
    and `suffix` are instructions before and after the text, as they are; a suffix is never cut off,
    and models that pool over tokens may leave a prefix out.
    """

    text: str
    media: tuple[Media, ...] = ()
    prefix: str = ""
    suffix: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """MMEB's name of an item within a dataset: its text and its media's paths."""
        return self._words, "\0".join(media.key for media in self.media)

    @functools.cached_property
    def identity(self) -> tuple[str, str]:
        """An item's text and its media's content, wherever they lie.

        Equal identities are encoded once and are the same target. Paths will not do: two sources
        may each have an image of their own at images/1.jpg.
        """
        return self._words, "\0".join(media.identity for media in self.media)

    @property
    def _words(self) -> str:
        return self.prefix + self.text + self.suffix


@dataclasses.dataclass(frozen=True)
class Example:
    """A query, its positive and any number of explicit negatives, from one training source.

    `scores`: a judge's or a miner's, of the positive and each negative; empty: there are none.
    `negative_numbers`: where the negatives stand among those of the row, if they were drawn;
    empty: they are all, in order. `grade`: how alike query and positive are, on any scale of the
    source; None: the row does not say.
    """

    source: str
    id: str
    query: Item
    positive: Item
    negatives: tuple[Item, ...] = ()
    scores: tuple[float, ...] = ()
    negative_numbers: tuple[int, ...] = ()
    undrawn_negatives: int = 0  # that the row has besides
    grade: float | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
    """One item after a family's host preprocessing, unpadded.

    `slot[t]` is -1 for a text token, else rows of the item's image-token table, which the family's
    model computes from `patches`. With S > 1 they are blended by `slot_weight`: the token's
    embedding is sum_s slot_weight[t, s] * table[slot[t, s]].

    A patch is flattened as (channel, frame, y, x); images have one frame. `patch_position` is
    (number of the image, row, column) for towers that need it, -1 where a tile is not filled;
    patches see those of the same number, and every time step of a clip has a number of its own.
    `pool_start` is the first token that is pooled over, of models that pool over tokens.

    `segment` splits a row of a causal decoder that holds several sequences: each token attends to
    those of its own number and of number 0, which all sequences begin with. `segment_end` is the
    last token of each sequence from 1 on; where there are fewer, the last of all stands again.
    """

    tokens: Int32[ArrayLike, " t"]
    positions: Int32[ArrayLike, "t A"]
    slot: Int32[ArrayLike, "t S"]
    slot_weight: Float32[ArrayLike, "t S"] | None = None
    patches: UInt8[ArrayLike, "n P F"] | None = None
    patch_position: Int32[ArrayLike, "n P 3"] | None = None
    pool_start: int = 0
    teacher: Float32[ArrayLike, " E"] | None = None  # the item's embedding by a teacher
    segment: Int32[ArrayLike, " t"] | None = None
    segment_end: Int32[ArrayLike, " segments"] | None = None
    truncated: int = 0  # text tokens cut off to fit the longest length; at least, of huge texts
    unmatched_markers: int = 0  # image markers of the text without an image
    clips: int = 0  # of the item


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """All rows of one bucket, laid out in chunks.

    Every chunk is spread over all data shards. Live rows fill the chunks in order; the others are
    padding, whose embeddings nothing reads. A live row may have no tokens (an image for a dual
    encoder). A model sees one chunk, [R, ...].
    """

    tokens: Int32[ArrayLike, "*C R T"]
    length: Int32[ArrayLike, "*C R"]  # tokens of a row
    live: Bool[ArrayLike, "*C R"]  # False: padding
    positions: Int32[ArrayLike, "*C R T A"]
    slot: Int32[ArrayLike, "*C R T S"]
    slot_weight: Float32[ArrayLike, "*C R T S"] | None
    patches: UInt8[ArrayLike, "*C R N P F"] | None
    patch_position: Int32[ArrayLike, "*C R N P 3"] | None
    pool_start: Int32[ArrayLike, "*C R"] | None = None
    teacher: Float32[ArrayLike, "*C _ E"] | None = None  # of each that is `embedded`
    segment: Int32[ArrayLike, "*C R T"] | None = None  # -1: padding
    segment_end: Int32[ArrayLike, "*C R segments"] | None = None
    # of rows of several whole texts, which share no beginning: which segments are one
    segment_live: Bool[ArrayLike, "*C R segments"] | None = None
    # Features [*C, R, ...] of a tower that are read in the place of `patches`, which are then None.
    vision: Any = None

    @property
    def embedded(self) -> Bool[ArrayLike, "*C _"]:
        """Which embeddings of the rows are of an item: one a row, or one a text of each row."""
        if self.segment_live is None:
            return self.live
        return self.segment_live.reshape(self.embedded_shape)

    @property
    def embedded_shape(self) -> tuple[int, ...]:
        """The shape of `embedded`, also of abstract arrays."""
        if self.segment_live is None:
            return tuple(self.live.shape)
        *chunks, rows, segments = self.segment_live.shape
        return *chunks, rows * segments


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows by bucket, and pairs as numbers of rows.

    Row numbers count through the groups in order: chunk by chunk, row by row, G = sum of C * R.
    Of rows of several texts each text has a number, and R in these shapes is the texts of a chunk.
    """

    groups: tuple[Inputs, ...]
    query: Int32[ArrayLike, " B"]
    positive: Int32[ArrayLike, " B"]
    negative: Int32[ArrayLike, "B H"]  # -1: none
    # [C, R] of each group; 0: no target; equal ids: the same one
    target_id: tuple[UInt32[ArrayLike, "_ _"], ...]
    source: Int32[ArrayLike, " B"]
    query_id: UInt32[ArrayLike, " B"] | None = None  # equal ids: the same query
    # a judge's, of the positive and each negative; NaN: there is no such negative
    scores: Float32[ArrayLike, "B H+1"] | None = None
    grade: Float32[ArrayLike, " B"] | None = None  # of graded pairs; NaN: the pair is none
