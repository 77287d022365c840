"""Videos of a public set by their ids: files of any container, or folders of frames."""

import os
from collections.abc import Sequence
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
    for folder, folders, names in os.walk(raw):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(folder)
        for name in sorted(names):
            if name.lower().endswith(VIDEOS) and not name.startswith("."):
                videos.setdefault(Path(name).stem, (here / name).relative_to(raw).as_posix())
        if here != raw and picture_names(names):
            frames.setdefault(here.name, here.relative_to(raw).as_posix())
    return frames | videos


def paths(raw: Path, ids: Sequence[str]) -> list[str]:
    """Paths below `raw` of the videos with these ids.

    Raises:
      FileNotFoundError: some are missing; the message says how many, and names a few.
    """
    known = by_id(raw)
    if missing := [id for id in dict.fromkeys(ids) if id not in known]:
        raise FileNotFoundError(
            f"{raw} has not {len(missing)} of the {len(set(ids))} videos, such as "
            f"{', '.join(missing[:NAMED])}: a file {missing[0]}{VIDEOS[0]} (or "
            f"{', '.join(VIDEOS[1:])}), or a folder {missing[0]} of frames, is expected anywhere "
            "below it"
        )
    return [known[id] for id in ids]
