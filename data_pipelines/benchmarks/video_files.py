"""Videos of a public set by their ids: files of any container, or folders of frames."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from unime_jax.data.clip_pictures import picture_names

VIDEOS = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".gif")
NAMED = 3  # missing videos that an error names


def by_id(raw: Path) -> dict[str, str]:
    """Paths below a folder of all videos in it, by their names without the ending.

    A folder with images is one of frames, and has the id in its name. Where a video has both, the
    file counts; of several files the first.
    """
    videos: dict[str, str] = {}
    frames: dict[str, str] = {}
    for path, is_file in _walk(raw):
        name = path.rpartition("/")[2]
        if is_file:
            videos.setdefault(without_ending(name), path)
        else:
            frames.setdefault(name, path)
    return frames | videos


def by_last_name(raw: Path) -> dict[str, list[str]]:
    """Paths below a folder of all videos in it, files before folders of frames, by the last name.

    Names of files have their endings: videos of two folders may have the same.
    """
    known: dict[str, list[str]] = {}
    for path, _ in sorted(_walk(raw), key=lambda found: not found[1]):
        known.setdefault(path.rpartition("/")[2], []).append(path)
    return known


def ending_in(known: Mapping[str, Sequence[str]], *tails: str) -> str | None:
    """The first path of `by_last_name` that ends in one of `tails`, whole names; None: none does.

    An earlier tail goes before a later one.
    """
    for tail in tails:
        for path in known.get(tail.rpartition("/")[2], ()):
            if f"/{path}".endswith(f"/{tail}"):
                return path
    return None


def without_ending(name: str) -> str:
    """A name or path without the ending of a video's file, if it has one."""
    return name[: name.rindex(".")] if name.lower().endswith(VIDEOS) else name


def paths(raw: Path, ids: Sequence[str]) -> list[str]:
    """Paths below `raw` of the videos with these ids.

    Raises:
      FileNotFoundError: some are missing; the message says how many, and names a few.
    """
    known = by_id(raw)
    if missing := [id for id in dict.fromkeys(ids) if id not in known]:
        expected = (
            f"a file {missing[0]}{VIDEOS[0]} (or {', '.join(VIDEOS[1:])}), or a folder {missing[0]}"
            " of frames,"
        )
        check_missing(raw, missing, len(set(ids)), expected)
    return [known[id] for id in ids]


def check_missing(raw: Path, missing: Sequence[str], count: int, expected: str) -> None:
    """Raises FileNotFoundError if any of `count` videos are missing; `expected` says of what."""
    if missing:
        raise FileNotFoundError(
            f"{raw} has not {len(missing)} of the {count} videos, such as "
            f"{', '.join(missing[:NAMED])}: {expected} is expected anywhere below it"
        )


def _walk(raw: Path) -> Iterator[tuple[str, bool]]:
    """Paths below a folder of all videos in it, and whether each is a file."""
    for folder, folders, names in os.walk(raw):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(folder)
        for name in sorted(names):
            if name.lower().endswith(VIDEOS) and not name.startswith("."):
                yield (here / name).relative_to(raw).as_posix(), True
        if here != raw and picture_names(names):
            yield here.relative_to(raw).as_posix(), False
