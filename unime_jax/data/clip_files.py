"""Files of clips: a video, or a folder of pictures in the order of their names' numbers."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

from unime_jax import files
from unime_jax.data import clips, images
from unime_jax.data.clip_pictures import picture_names
from unime_jax.data.images import ImageFile

# Of videos. A path that ends so is a clip in columns of images, too; ".gif" is an image there.
SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")


@dataclasses.dataclass(frozen=True)
class ClipFile:
    """A clip that a row of data names or has, read when it is wanted.

    Attributes:
      folders: that its path is below; tried in turn.
      path: of its file, or of a folder of pictures.
      content: of its file, where the row has it; or its frames, each a path or an image's content.
      fps: frames a second of mere frames; None: unknown.
    """

    folders: tuple[str, ...] = ()
    path: str = ""
    content: bytes | tuple[bytes | ImageFile, ...] = b""
    fps: float | None = None

    def read(self) -> bytes:
        """The content of a file: the video's, or one that is made of the frames.

        Raises:
          OSError: it cannot be opened.
          ImageError: as `read_below`, or frames are no images.
        """
        if isinstance(self.content, tuple):
            frames = self.content
            return clips.archive(
                _bounded(
                    len(frames),
                    lambda n: f.read() if isinstance(f := frames[n], ImageFile) else f,
                ),
                self.fps,
            )
        if self.content:
            return self.content
        return read_below(self._folder(), self.path, self.fps)

    def files(self) -> Iterator[ImageFile]:
        """The files that it is read from."""
        if isinstance(self.content, tuple):
            yield from (frame for frame in self.content if isinstance(frame, ImageFile))
        elif not self.content:
            folder = self._folder()
            whole = files.as_path(folder) / self.path
            names = [e.name for e in whole.iterdir()] if whole.is_dir() else []
            for name in picture_names(names):
                yield ImageFile((folder,), f"{self.path}/{name}")
            if not names:
                yield ImageFile((folder,), self.path)

    def _folder(self) -> str:
        """The first that has something at the path, or else the last."""
        *others, last = self.folders
        there = (f for f in others if (files.as_path(f) / self.path).exists())
        return next(there, last)


def is_video_name(path: str) -> bool:
    """Whether a path ends as those of videos do."""
    return path.lower().endswith(SUFFIXES)


def read(path: str | os.PathLike[str]) -> bytes:
    """The content of a clip's file; of a folder of pictures, see `read_folder`.

    Raises:
      OSError: it cannot be opened.
      ImageError: it is a URL, no regular file, or too large, or a folder without pictures.
    """
    if os.path.isdir(path):
        return read_folder(path, None)
    return images.read(path, max_bytes=clips.MAX_BYTES)


def read_folder(path: str | os.PathLike[str], fps: float | None) -> bytes:
    """A folder of pictures as one file; `fps`: frames a second, None: unknown.

    Raises:
      OSError: it is no folder, or a picture cannot be opened.
      ImageError: it has no pictures, too many, or one that is none.
    """
    names = picture_names(os.listdir(path))
    _check_names(names, os.fspath(path))
    return clips.archive(
        _bounded(len(names), lambda n: images.read(os.path.join(path, names[n]))), fps
    )


def read_below(folder: str | os.PathLike[str], path: str, fps: float | None = None) -> bytes:
    """As `read`, of what a data set names by its path below a folder, which it must not leave.

    Raises:
      OSError: it cannot be opened.
      ImageError: as `read` and `images.path_below`; links out of the folder count for each picture.
    """
    whole = files.as_path(images.path_below(folder, path))
    if not whole.is_dir():
        return images.read_below(folder, path, max_bytes=clips.MAX_BYTES)
    names = picture_names([entry.name for entry in whole.iterdir()])
    _check_names(names, path)
    return clips.archive(
        _bounded(len(names), lambda n: images.read_below(folder, f"{path}/{names[n]}")), fps
    )


def _check_names(names: Sequence[str], path: str) -> None:
    if not names:
        raise clips.ClipError(f"{path!r} is a folder without pictures")
    if len(names) > clips.MAX_FRAMES:
        raise clips.ClipError(
            f"{path!r} is a folder of {len(names)} pictures, the limit is {clips.MAX_FRAMES}"
        )


def _bounded(count: int, read_frame: Callable[[int], bytes]) -> list[bytes]:
    """All frames; ClipError as soon as they are too large together."""
    frames, size = [], 0
    for number in range(count):
        frames.append(read_frame(number))
        size += len(frames[-1])
        if size > clips.MAX_BYTES:
            raise clips.ClipError(
                f"{number + 1} of {count} frames have {size} bytes, the limit is {clips.MAX_BYTES}"
            )
    return frames
