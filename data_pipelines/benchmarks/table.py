"""Tables of the catalogue: for a terminal, with what is prepared, and for the docs."""

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.benchmarks import download, prepare
from data_pipelines.benchmarks.public_set import PublicSet
from unime_jax import files

HEADER = ("name", "kind", "source", "revision", "rows", "size", "prepared")
SHORT = 8  # digits of a commit


def text(sets: Sequence[PublicSet], folder: Path) -> str:
    """A line a set, in columns. Sizes are those of the download, once that has begun."""
    lines = [HEADER, *(_cells(public, folder / public.name) for public in sets)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def markdown(sets: Sequence[PublicSet]) -> str:
    """The table of docs/benchmarks.md."""
    lines = ["| Set | Kind | Source | Revision | Rows |", "|---|---|---|---|---|"]
    for public in sets:
        repository = f"`{public.repository}`" if public.repository else ""
        note = public.note or ("gated" if public.gated else "")
        source = "; ".join(filter(None, (repository, note.replace("|", "\\|"))))
        cells = (f"`{public.name}`", public.kind, source, _revision(public), _rows(public))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(public: PublicSet, own: Path) -> tuple[str, ...]:
    manifest = download.read_manifest(own / prepare.RAW)
    size = f"{manifest.size / 1e9:.2f} GB" if manifest else "?"
    source = public.repository or "not on the hub"
    try:
        rows = str(sum(files.read_object(own / prepare.SET)["counts"].values()))
        prepared = "yes"
    except (FileNotFoundError, ValueError, KeyError, AttributeError):
        rows, prepared = _rows(public), "no"
    return (public.name, public.kind, source, _revision(public), rows, size, prepared)


def _revision(public: PublicSet) -> str:
    return public.revision[:SHORT] if public.repository and public.revision else "-"


def _rows(public: PublicSet) -> str:
    if public.kind == "retrieval" and "corpus" not in public.counts:
        return "?"  # a number of queries alone
    return str(sum(public.counts.values())) if public.counts else "?"
