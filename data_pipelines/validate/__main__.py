"""Command line of `validate`: python -m data_pipelines.validate FILE... [--backbone=FOLDER]

Exit status 0: nothing is wrong; 1: there are problems; 2: data, backbone or flags cannot be read,
or the report cannot be written.
"""

import sys
import traceback

import jax
from absl import app, flags

from data_pipelines.validate.report import Options, as_json, text, validate
from unime_jax import files

_COLUMNS = flags.DEFINE_list("columns", [], "As config.data.columns: query=caption,positive=title")
_BACKBONE = flags.DEFINE_string("backbone", "", "Folder or hub id whose lengths are measured")
_MAX_LENGTH = flags.DEFINE_integer("max_length", None, "Most tokens of a row; none: the backbone's")
_SAMPLE = flags.DEFINE_integer(
    "sample", None, "Rows whose lengths are measured; none: all", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the sample")
_REPORT = flags.DEFINE_string("report", "", "JSON file that the whole report is written to")

CLEAN, PROBLEMS, UNREADABLE = 0, 1, 2


def main(argv: list[str]) -> int:
    jax.config.update("jax_platforms", "cpu")  # an accelerator may be another process's
    try:
        return _validate(argv[1:])
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
    except Exception:
        traceback.print_exc()  # Python's own status would say that there are problems
    return UNREADABLE


def _validate(paths: list[str]) -> int:
    if not paths:
        raise ValueError("name the files or folders to look at; --help lists the flags")
    columns = dict(column.partition("=")[::2] for column in _COLUMNS.value)
    options = Options(columns, _BACKBONE.value, _MAX_LENGTH.value, _SAMPLE.value, _SEED.value)
    report = validate(paths, options)
    sys.stdout.write(text(report))
    if _REPORT.value:
        files.write_whole(files.as_path(_REPORT.value), as_json(report))
    return PROBLEMS if report["problems"] else CLEAN


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(UNREADABLE)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
