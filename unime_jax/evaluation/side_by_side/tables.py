"""The files of a comparison, which a command or a job writes, and its averages as a table."""

from collections.abc import Sequence

from unime_jax import files
from unime_jax.evaluation.benchmarks import published
from unime_jax.evaluation.side_by_side import comparison, formats, page, places
from unime_jax.evaluation.side_by_side.columns import AVERAGES, CHOSEN, COMPOSITION, Column
from unime_jax.evaluation.side_by_side.lines import Comparison
from unime_jax.evaluation.side_by_side.runs import Group


def write(
    output: files.Path,
    groups: Sequence[Group],
    *,
    chosen: dict[str, list[str]],
    baseline: str,
    models: Sequence[str],
    title: str,
) -> Comparison:
    """Writes <output>.html, .md, .tex and .csv of groups of runs, and returns what they show.

    Args:
      chosen: datasets or averages by name of a column that is their mean.
      baseline: name of a group; "": none.
      models: names or patterns of published rows.

    Raises:
      ValueError: see `comparison.compare` and `published.choose`.
    """
    tables = {group.name: places.table_of(group.first) for group in groups}
    compared = comparison.compare(
        groups,
        chosen=chosen,
        baseline=baseline,
        published=published.read(published.choose(models)),
        tables=tables,
    )
    images = page.images_of_all({g.name: places.images_of(g.first) for g in groups})
    page.write_page(
        output.with_name(f"{output.name}.html"),
        compared,
        groups,
        tables=tables,
        images=images,
        title=title,
    )
    for ending, text in (
        (".md", formats.markdown_text(compared, title)),
        (".tex", formats.latex_text(compared, title)),
        (".csv", formats.csv_text(compared)),
    ):
        files.write_whole(output.with_name(output.name + ending), text)
    return compared


def averages(compared: Comparison) -> str:
    """The averages as Markdown: of all datasets, of the chosen columns, and of composition."""
    columns: list[Column] = []
    for name, members in compared.groups.items():
        if name == CHOSEN:
            columns += members
        elif name.startswith(AVERAGES):
            columns += [c for c in members if c[-1] == "All" or CHOSEN not in compared.groups]
    columns.sort(key=lambda column: column == COMPOSITION)
    if COMPOSITION not in columns:
        columns += [c for c in compared.groups.get(AVERAGES, ()) if c == COMPOSITION]
    return formats.markdown_table(compared, columns or list(next(iter(compared.groups.values()))))
