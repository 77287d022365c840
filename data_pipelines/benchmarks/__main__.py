"""Command line: python -m data_pipelines.benchmarks --folder=/data/benchmarks --sets=flickr30k

Exit status 0: every set is there, or, with --check, right; 1: some are not; 2: wrong flags.
"""

import logging as std_logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags, logging

from data_pipelines.benchmarks import catalogue, check, download, prepare, table
from data_pipelines.benchmarks.catalogue import Catalogue
from data_pipelines.benchmarks.hub import Hub, HuggingFaceHub, UnreachableError
from data_pipelines.benchmarks.public_set import PublicSet
from unime_jax import files

_FOLDER = flags.DEFINE_string(
    "folder", None, "Where sets are prepared, a folder each", required=True
)
_SETS = flags.DEFINE_list(
    "sets", [], "Names or globs, such as flickr30k,mteb_*; none: all but training data"
)
_RAW = flags.DEFINE_string(
    "raw", "", "Local copies, <raw>/<set>/... or those of the only set; nothing is downloaded"
)
_LIST = flags.DEFINE_bool("list", False, "Only list the sets, and which are prepared")
_CHECK = flags.DEFINE_bool("check", False, "Only look at prepared sets: rows, and their images")

ALL, SOME, USAGE = 0, 1, 2
TRAINING = "pairs"  # the kind of sets that are trained on, some of them hundreds of gigabytes


def main(argv: list[str]) -> int:
    jax.config.update("jax_platforms", "cpu")  # an accelerator may be another process's
    logging.set_verbosity(logging.INFO)
    for client in ("httpx", "httpx2"):  # which have a line for each request
        std_logging.getLogger(client).setLevel(std_logging.WARNING)
    known = catalogue.load()
    try:
        if argv[1:]:
            raise ValueError(f"unexpected arguments: {' '.join(argv[1:])}")
        if files.is_remote(_FOLDER.value) or files.is_remote(_RAW.value):
            raise ValueError("--folder and --raw are local; copy what is prepared to the bucket")
        chosen = known.chosen(_SETS.value)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE
    folder = Path(_FOLDER.value).expanduser().absolute()
    if _LIST.value:
        sys.stdout.write(table.text(chosen, folder))
        return _said("not listed", {}, known)
    if _CHECK.value:
        there = [p for p in chosen if _SETS.value or (folder / p.name / prepare.SET).exists()]
        wrong = _each(there, lambda public: check.check(public, folder / public.name))
        sys.stdout.write(f"{len(there) - len(wrong)} of {len(there)} sets are right\n")
        return _said("wrong", wrong, known)
    if not _SETS.value:
        chosen = [public for public in chosen if public.kind != TRAINING]
    failed = _prepare(chosen, folder, HuggingFaceHub())
    sys.stdout.write(f"{len(chosen) - len(failed)} of {len(chosen)} sets are in {folder}\n")
    return _said("not prepared", failed, known)


def _prepare(sets: list[PublicSet], folder: Path, hub: Hub) -> dict[str, str]:
    waits: list[Sequence[float]] = [download.WAITS]

    def one_set(public: PublicSet) -> None:
        try:
            prepare.prepare(public, folder, _copies(public, sets), hub, waits[-1])
        except UnreachableError:
            waits.append(())  # the network has been waited for; others need not wait as long again
            raise

    return _each(sets, one_set)


def _each(sets: list[PublicSet], work: Callable[[PublicSet], None]) -> dict[str, str]:
    """Does the work of every set; of those that failed, why."""
    failed: dict[str, str] = {}
    for public in sets:
        try:
            work(public)
        except (OSError, ValueError, RuntimeError) as error:
            licence = f" (licence: {public.licence})" if public.gated and public.licence else ""
            failed[public.name] = f"{error}{licence}"
        except Exception as error:  # a mistake of a reader stops its set alone
            traceback.print_exc()
            failed[public.name] = f"{type(error).__name__}: {error}"
    return failed


def _copies(public: PublicSet, chosen: list[PublicSet]) -> Path | None:
    """The folder of a set's local copies; None: they are downloaded."""
    if not _RAW.value:
        return None
    raw = Path(_RAW.value).expanduser().absolute()
    own = raw / public.name
    return raw if len(chosen) == 1 and not own.is_dir() else own


def _said(what: str, failed: dict[str, str], known: Catalogue) -> int:
    """Writes what failed, and the exit status. Where sets are named, all of them are known."""
    broken = {} if _SETS.value else known.broken
    for name, why in failed.items():
        sys.stdout.write(f"{what}: {name}: {why}\n")
    for module, why in broken.items():
        sys.stdout.write(f"{what}: the sets of {module}, which cannot be imported: {why}\n")
    return SOME if failed or broken else ALL


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(USAGE)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
