"""Data that a work directory was evaluated on, where they still are: images, and meta tasks."""

import contextlib
import functools
import urllib.parse
from collections.abc import Iterator, Mapping

from absl import logging

from unime_jax import files
from unime_jax.data.images import ImageError
from unime_jax.evaluation import scores as scores_lib
from unime_jax.evaluation import suite
from unime_jax.evaluation.benchmarks import prepared_set
from unime_jax.evaluation.encoding.item_table import Images
from unime_jax.evaluation.encoding.stored_images import open_images
from unime_jax.evaluation.retrieval import data as retrieval_data
from unime_jax.evaluation.retrieval.files import open_sets
from unime_jax.evaluation.side_by_side.runs import Run


def table_of(run: Run) -> scores_lib.Table:
    """Meta task and split of the run's datasets, of those whose data, or MMEB, name them."""
    if run.datasets <= scores_lib.MMEB_V1.keys():
        return {name: scores_lib.MMEB_V1[name] for name in run.datasets}
    name = _setting(run, "evaluation", "mmeb")
    table: scores_lib.Table = {}
    if name:
        with _missing(f"the meta tasks of {run.workdir}"):
            table = suite.table_of(_folder(run) / name)
    return {name: table[name] for name in run.datasets if name in table}


def images_of(run: Run) -> Images:
    """Encoded bytes of an image by path; b"" of one that is not where the run has read it."""
    in_rows, stored, of_sets = _retrieval_images(run), _stored_images(run), _set_images(run)

    @functools.lru_cache(maxsize=64)
    def read(path: str) -> bytes:
        with contextlib.suppress(KeyError, IndexError, OSError, ValueError, ImageError):
            if path.startswith(retrieval_data.PLACE):
                return in_rows(path)
            return of_sets(path) if path.startswith(prepared_set.PLACE) else stored(path)
        return b""

    return read


def _set_images(run: Run) -> Images:
    """Images of prepared benchmark sets, each of which is opened when it is asked for."""
    folder = _folder(run) / _setting(run, "evaluation", "benchmarks")

    @functools.cache
    def images_of_set(name: str) -> Images:
        with _missing(f"the images of benchmark set {name}"):
            return prepared_set.images_of([prepared_set.open_set(folder / name)])
        return _none

    def read(path: str) -> bytes:
        name, _, _ = path.removeprefix(prepared_set.PLACE).partition("/")
        return images_of_set(urllib.parse.unquote(name))(path)

    return read


def _stored_images(run: Run) -> Images:
    with _missing(f"the images of {run.workdir}"):
        return open_images(_folder(run) / _setting(run, "evaluation", "images"))
    return _none


def _retrieval_images(run: Run) -> Images:
    name = _setting(run, "data", "eval")
    with _missing(f"the retrieval data of {run.workdir}"):
        columns = (run.config.get("data") or {}).get("columns") or {}
        sets = open_sets(_folder(run) / name, columns) if name else []
        return retrieval_data.images_of({data.name: data for data in sets})
    return _none


def _none(path: str) -> bytes:
    return b""


@contextlib.contextmanager
def _missing(what: str) -> Iterator[None]:
    """Goes on without data that are not there, with a warning."""
    try:
        yield
    except (OSError, ValueError) as error:
        logging.warning("%s are not there: %s", what, error)


def _folder(run: Run) -> files.Path:
    return files.as_path(_setting(run, "data", "folder") or ".")


def _setting(run: Run, group: str, key: str) -> str:
    values = run.config.get(group)
    return str(values.get(key) or "") if isinstance(values, Mapping) else ""
