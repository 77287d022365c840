"""Command line of `prepare`."""

from absl import app, flags

from data_pipelines.texts.prepare import prepare

_INPUT = flags.DEFINE_multi_string("input", None, ".csv or .txt; may be repeated", required=True)
_FOLDER = flags.DEFINE_string("folder", None, "What is built, such as /data/nli", required=True)
_TEST_ROWS = flags.DEFINE_integer("test_rows", 1000, "How many rows are held out")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    prepare(_INPUT.value, _FOLDER.value, _TEST_ROWS.value)


if __name__ == "__main__":
    app.run(main)
