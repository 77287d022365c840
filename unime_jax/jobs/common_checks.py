"""Problems of a config that are collected, and the checks that several jobs have in common."""

import contextlib
import dataclasses
import importlib.util
import pathlib
from collections.abc import Iterator, Mapping

from unime_jax import backbones, config_reader, files
from unime_jax.backbones import Backbone, Processing
from unime_jax.backbones.io import tensor_files
from unime_jax.data import (
    embedding_store,
    formats,
)
from unime_jax.evaluation.retrieval import files as retrieval_files
from unime_jax.evaluation.tasks import distillation


class Problems:
    """Errors that are collected, to be said in one."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextlib.contextmanager
    def collected(self, key: str = "") -> Iterator[None]:
        """Collects an error of its body, led by `key` unless the error names it."""
        try:
            yield
        except (ValueError, OSError) as error:
            said = str(error)
            self._found.append(said if not key or key in said else f"{key}: {said}")

    def add(self, problem: str) -> None:
        self._found.append(problem)

    @property
    def listed(self) -> tuple[str, ...]:
        """All of them, in order."""
        return tuple(self._found)

    @contextlib.contextmanager
    def of_part(self, kind: type, where: str) -> Iterator["Problems"]:
        """Collects those of a whole config of this dataclass, at its place in another config."""
        part = Problems()
        yield part
        for problem in part._found:
            said = config_reader.placed(kind, problem, where)
            self._found.append(said if where in said else f"{where}: {said}")

    def raise_any(self) -> None:
        """Raises ValueError if there are any."""
        if len(self._found) > 1:
            listed = "\n".join(f"- {problem}" for problem in self._found)
            raise ValueError(
                f"{len(self._found)} things are wrong, and nothing has been read or built yet:\n"
                f"{listed}"
            )
        if self._found:
            raise ValueError(self._found[0])


@dataclasses.dataclass(frozen=True)
class Made:
    """Files that a run makes itself, below a folder, if it prepares any."""

    folder: files.Path
    prepares: bool

    def later(self, path: files.Path) -> bool:
        """True if the run itself may still make this path."""
        inside = files.resolved(path).is_relative_to(files.resolved(self.folder))
        return self.prepares and inside and not path.exists()


def open_model(
    source: str,
    revision: str | None,
    max_length: int | None,
    processing: Processing | None,
    *,
    weights: bool,
    clips: bool = False,
) -> Backbone:
    """The model without its weights; of a folder it is looked whether they are there.

    `clips` is as of `backbones.open_backbone`.
    """
    backbone = backbones.open_backbone(
        source,
        max_length=max_length,
        revision=revision,
        processing=processing,
        weights=False,
        clips=clips,
    )
    if weights:
        check_weights(backbone)
    return backbone


def check_weights(backbone: Backbone) -> None:
    """Raises ValueError for a folder without weights; a hub's have not been asked for."""
    base = pathlib.Path(backbone.base)
    if base.is_dir() and not tensor_files.checkpoint_files(base):
        raise ValueError(
            f"{base} holds no {tensor_files.SINGLE} or {tensor_files.INDEX}. Download the whole "
            "repository, or convert pickled weights to safetensors; a training run that is to "
            'start from scratch has config.init="random".'
        )


def check_module(module: str, problems: Problems) -> None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of a package above it
        spec = None
    if spec is None:
        problems.add(
            f'config.data.prepare.module={module!r}: there is no such module; "" prepares nothing'
        )


def check_texts(
    name: str,
    columns: Mapping[str, str],
    folder: files.Path,
    made: Made,
    problems: Problems,
) -> None:
    """The held-out texts of a distillation; "": none."""
    if name and not made.later(folder / name):
        with problems.collected("config.evaluation.texts"):
            distillation.open_texts(folder / name, columns)


def check_sets(
    name: str,
    columns: Mapping[str, str],
    folder: files.Path,
    made: Made,
    problems: Problems,
) -> None:
    """The retrieval sets of `data.eval`; "": none."""
    if name and not made.later(folder / name):
        with problems.collected("config.data.eval"):
            retrieval_files.open_sets(folder / name, columns)


def check_teacher(name: str, folder: files.Path, made: Made, problems: Problems) -> None:
    """The folder of a teacher's embeddings; "": none."""
    if name and not made.later(folder / name):
        with problems.collected("config.data.teacher"):
            embedding_store.check_folder(folder / name)


def check_tasks(
    parts: Mapping[str, str],
    images: str,
    folder: pathlib.Path,
    made: Made,
    problems: Problems,
) -> None:
    """Folders of the tasks by key of `config.evaluation`, "": none, and of their images."""
    for key, name in parts.items():
        if name and not made.later(folder / name):
            with problems.collected(f"config.evaluation.{key}"):
                formats.open_dataset(folder / name)
    pictured = bool(parts["mmeb"] or parts["composition"])
    if pictured and not made.later(folder / images) and not (folder / images).is_dir():
        problems.add(f"config.evaluation.images: there is no folder {folder / images}")
