"""The docs' table of sets is the catalogue's; `python -m` of this module writes it."""

import pathlib

from data_pipelines.benchmarks import catalogue, table

PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- sets -->\n", "<!-- end of sets -->\n"


def test_the_docs_list_the_sets_of_the_catalogue():
    written = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert written == made(), (
        "if the change is meant: python -m tests.data_pipelines.benchmarks.test_table"
    )


def made() -> str:
    return f"\n{table.markdown(list(catalogue.load().sets.values()))}\n"


def rewrite() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + made() + END + rest.partition(END)[2])


if __name__ == "__main__":
    rewrite()
