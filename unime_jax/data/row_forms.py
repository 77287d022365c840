"""Row forms: which columns of a source are the sides of an example, told by their names."""

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterable, Mapping

from unime_jax.data.settings import COLUMN_KEYS as KEYS

# The column that a key stands for, where it is the only one of these.
NAMES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "anchor", "question", "sentence1", "sent0"),
    "query_image": ("query_image",),
    "query_video": ("query_video",),
    "positive": ("positive", "answer", "document", "passage", "sentence2", "sent1"),
    "positive_image": ("positive_image",),
    "positive_video": ("positive_video",),
    "negatives": ("negatives", "negative", "hard_neg"),
    "negatives_image": ("negatives_image", "negative_image"),
    "negatives_video": ("negatives_video", "negative_video"),
    "scores": ("scores",),
    "score": ("score",),
    "id": ("id", "_id"),
}
PICTURES = ("image", "file_name", "file", "image_path")
CLIPS = ("video", "video_path")
CAPTIONS = ("caption", "text", "txt")  # the last of webdataset, whose JSON has the first, too
KNOWN = (
    "query and positive (also anchor, question, sentence1; answer, document, passage, sentence2),"
    " and, if there are any, query_image, positive_image, negatives (negative, negative_1 and so"
    " on), negatives_image, the same with _video, scores, score, id; MMEB-train's qry, pos_text,"
    " ...; or a picture (image, file_name) or a clip (video) and its caption (caption, text, txt)"
)

_NUMBERED = re.compile(r"(?:negative|neg)_?(\d+)")


@dataclasses.dataclass(frozen=True)
class Side:
    """The columns of a side; "" is none. Those of negatives hold lists.

    Attributes:
      text: a text, or an item of text, images and clips.
      image: images: bytes, paths, or both.
      path: paths of the images, where there is a column for them.
      video, video_path: the same of clips.
    """

    text: str = ""
    image: str = ""
    path: str = ""
    video: str = ""
    video_path: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        names = (self.text, self.image, self.path, self.video, self.video_path)
        return tuple(filter(None, names))


@dataclasses.dataclass(frozen=True)
class Form:
    """The columns of an example.

    Attributes:
      numbered: columns of one negative each, after those of `negatives`.
    """

    query: Side
    positive: Side
    negatives: Side = Side()
    numbered: tuple[str, ...] = ()
    scores: str = ""
    score: str = ""
    id: str = ""

    @property
    def sides(self) -> tuple[Side, Side, Side]:
        return self.query, self.positive, self.negatives

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are read."""
        named = [name for side in self.sides for name in side.columns]
        return tuple(filter(None, (*named, *self.numbered, self.scores, self.score, self.id)))


MMEB_TRAIN = Form(
    query=Side("qry", "qry_image", "qry_image_path", "qry_video", "qry_video_path"),
    positive=Side("pos_text", "pos_image", "pos_image_path", "pos_video", "pos_video_path"),
    negatives=Side("neg_text", "neg_image", "neg_image_path", "neg_video", "neg_video_path"),
    scores="scores",
    score="score",
    id="id",
)


def is_known(column: str) -> bool:
    """Whether a column has a name that some form reads."""
    return any(column in names for names in NAMES.values()) or bool(_NUMBERED.fullmatch(column))


def recognise(
    columns: Collection[str], chosen: Mapping[str, str], *, has_schema: bool = True
) -> Form:
    """The form of a source with these columns.

    Args:
      chosen: `data.columns`, names by key of `KEYS`; other keys have their usual names.
      has_schema: there are no other columns; if not, rows that were not seen may have negatives,
        scores and ids.

    Raises:
      ValueError: query or positive are not there, or two columns could be the same key, or one has
        a name that is almost known.
    """
    targets = {"pos_text", "pos_image_path", "pos_video_path"}
    if not chosen and "qry" in columns and targets & set(columns):
        return MMEB_TRAIN
    _check_chosen(columns, chosen, has_schema)
    names = {key: chosen.get(key) or _named(key, columns, chosen) for key in KEYS}
    has = {
        side: names[side] or names[f"{side}_image"] or names[f"{side}_video"]
        for side in ("query", "positive")
    }
    if not chosen and not any(has.values()) and (sides := _captioned(columns)):
        return Form(*sides, score=names["score"], id=names["id"])
    if missing := [side for side, name in has.items() if not name]:
        raise ValueError(
            f"no column is the {' or the '.join(missing)}. The columns are"
            f" {', '.join(columns)}{_hints(columns, missing)}; known are {KNOWN}. Say which is"
            " which by config.data.columns, for example {'query': 'question', 'positive': 'answer'}"
        )
    _check_labels(columns, names, chosen)
    numbered = [] if "negatives" in chosen else _numbered(columns)
    if numbered and names["negatives"]:
        raise ValueError(
            f"columns {names['negatives']!r} and {numbered[0]!r} could both be the negatives; say"
            " which by config.data.columns.negatives"
        )
    optional = [key for key in KEYS if not names[key] and not (numbered and "neg" in key)]
    # Anything may be called nearly a score.
    near = [key for key in optional if key != "score"]
    _check_near(columns, near, [*names.values(), *numbered])
    if not has_schema:
        names |= {key: NAMES[key][0] for key in optional}
    return Form(
        query=_side("query", names),
        positive=_side("positive", names),
        negatives=_side("negatives", names),
        numbered=tuple(numbered),
        scores=names["scores"],
        score=names["score"],
        id=names["id"],
    )


def _side(side: str, names: Mapping[str, str]) -> Side:
    return Side(names[side], names[f"{side}_image"], video=names[f"{side}_video"])


def _captioned(columns: Collection[str]) -> tuple[Side, Side] | None:
    """The sides of pictures or clips with captions; None: it is not told which is which."""
    pictures, clips = _present(PICTURES, columns), _present(CLIPS, columns)
    captions = ["txt"] if "txt" in columns else _present(CAPTIONS, columns)
    if len(captions) != 1 or len(pictures) + len(clips) != 1:
        return None
    shown = Side(image=pictures[0]) if pictures else Side(video=clips[0])
    return shown, Side(captions[0])


def _present(names: Iterable[str], columns: Collection[str]) -> list[str]:
    return [name for name in names if name in columns]


def _named(key: str, columns: Collection[str], chosen: Mapping[str, str]) -> str:
    """The column of a key by its usual names, "" if there is none."""
    present = [name for name in _present(NAMES[key], columns) if name not in chosen.values()]
    if len(present) > 1 and key != "id":
        raise ValueError(
            f"columns {' and '.join(map(repr, present))} could both be the {key}; say which by"
            f" config.data.columns.{key}"
        )
    return present[0] if present else ""


def _numbered(columns: Collection[str]) -> list[str]:
    """Columns of one negative each, by their numbers."""
    numbers = {name: int(m[1]) for name in columns if (m := _NUMBERED.fullmatch(name))}
    return sorted(numbers, key=lambda name: numbers[name])


def _check_chosen(columns: Collection[str], chosen: Mapping[str, str], has_schema: bool) -> None:
    """Raises ValueError for a column that is not there."""
    for key, name in chosen.items():
        may_come = not has_schema and not key.startswith(("query", "positive"))
        if name not in columns and not may_come:
            near = difflib.get_close_matches(name, columns, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(
                f"config.data.columns.{key}={name!r}: there is no such column{hint} The columns"
                f" are {', '.join(columns)}"
            )


def _check_labels(
    columns: Collection[str], names: Mapping[str, str], chosen: Mapping[str, str]
) -> None:
    """Raises ValueError for pairs with a label that says which of them belong together."""
    labels = _present(("label", "score", "similarity"), columns)
    pairs = (names["query"], names["positive"]) == ("sentence1", "sentence2")
    if labels and pairs and not {"query", "positive"} & set(chosen):
        raise ValueError(
            f"sentence1 and sentence2 come with a {labels[0]}, so that not every pair belongs"
            " together. Of pairs graded by how alike they are, set config.data.columns={'query':"
            f" 'sentence1', 'positive': 'sentence2', 'score': {labels[0]!r}}} and name the source"
            " in config.loss.graded_sources. Else keep the rows whose second sentence is the"
            " first's positive, and name the columns query and positive, or say by"
            " config.data.columns that all are"
        )


def _check_near(columns: Collection[str], optional: Iterable[str], used: Collection[str]) -> None:
    """Raises ValueError for a column that would be left out, as its name is almost a known one."""
    for key in optional:
        for column in columns:
            if column not in used and (name := _nearly(column, NAMES[key])):
                raise ValueError(
                    f"column {column!r} would be left out; did you mean {name!r}? Rename it, or"
                    f" set config.data.columns.{key}={column!r}"
                )


def _nearly(column: str, names: Iterable[str]) -> str:
    """The name that a column is, but for its case or a letter or two."""
    for name in names:
        if len(name) < 4 or column.startswith(f"{name}_") or column == "score":  # others' own
            continue
        if name.endswith("_video") and "vid" not in column:  # as positive_id has not
            continue
        if column.lower() == name or difflib.SequenceMatcher(None, column, name).ratio() > 0.84:
            return name
    return ""


def _hints(columns: Collection[str], missing: Iterable[str]) -> str:
    """Columns that may be meant, in words."""
    near = {
        column: names[0]
        for side in missing
        for column in columns
        if (names := difflib.get_close_matches(column.lower(), NAMES[side], n=1, cutoff=0.75))
    }
    said = ", ".join(f"{column!r}: did you mean {name!r}?" for column, name in near.items())
    return f" ({said})" if said else ""
