"""Evaluations side by side: one page and one table of runs, baselines and published scores.

    python -m unime_jax.evaluation.compare runs/clip runs/stage2 runs/peer --baseline=clip \
        --published='UniME*'
    python -m unime_jax.evaluation.compare --runs='stage 2 alone:runs/a_*' --runs='both:runs/b_*' \
        --column=short:Scenes_t2i,Scenes_i2t --column=long:LongCaptions_t2i

It leaves <output>.html, .md, .tex and .csv, and prints the averages.
"""

import glob
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from unime_jax import files
from unime_jax.evaluation.side_by_side import formats
from unime_jax.evaluation.side_by_side.runs import Group, read_run
from unime_jax.evaluation.side_by_side.tables import averages, write

ENDINGS = (".html", ".md", ".tex", ".csv")
BEFORE = " (before)"  # ends the names of lines before training

_RUNS = flags.DEFINE_multi_string(
    "runs", [], "name:pattern of work directories, which make one line; also without a name"
)
_COLUMN = flags.DEFINE_multi_string("column", [], "name:dataset,dataset,... to take the mean of")
_BASELINE = flags.DEFINE_string("baseline", "", "name of the line that changes are from")
_PUBLISHED = flags.DEFINE_list(
    "published", [], "models with published scores, such as UniME*, or all"
)
_BEFORE = flags.DEFINE_boolean("before", False, "also a line before training for training runs")
_OUTPUT = flags.DEFINE_string("output", "compare", "path of the files, without their ending")
_TITLE = flags.DEFINE_string("title", "Evaluations side by side", "of the page")


def read_groups(
    folders: Sequence[str], named: Sequence[str], *, with_before: bool = False
) -> list[Group]:
    """A group of each folder, by its name, and of each "name:pattern".

    Args:
      with_before: of training runs, also a group before training.

    Raises:
      ValueError: no folder matches, one has no scores, or two groups have one name.
    """
    members = _names(folders)
    for given in named:
        name, _, pattern = given.rpartition(":")
        workdirs = [files.as_path(path) for path in sorted(glob.glob(pattern))]
        if not workdirs:
            raise ValueError(f"{name or pattern!r}: no such work directory")
        members.append((name or pattern, workdirs))
    if not members:
        raise ValueError("name work directories, or --runs=name:pattern")
    groups = []
    for name, workdirs in members:
        after = Group(name, tuple(read_run(workdir) for workdir in workdirs))
        if with_before and all(_has_before(workdir) for workdir in workdirs):
            runs = tuple(read_run(workdir, "before") for workdir in workdirs)
            groups.append(Group(name + BEFORE, runs))
        groups.append(after)
    names = [group.name for group in groups]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"two lines are called {', '.join(twice)}; name them by --runs=name:folder"
        )
    return groups


def _names(folders: Sequence[str]) -> list[tuple[str, list[files.Path]]]:
    """Each folder with its name, led by as many of its parents' as make it differ from others."""
    paths = [files.as_path(folder.rstrip("/")) for folder in folders]
    parts = [path.parts for path in paths]
    named = []
    for path, own in zip(paths, parts, strict=True):
        depth = next(
            (n for n in range(1, len(own)) if sum(p[-n:] == own[-n:] for p in parts) == 1), len(own)
        )
        named.append(("/".join(own[-depth:]), [path]))
    return named


def _has_before(workdir: files.Path) -> bool:
    return "before" in files.read_object(workdir / "evaluation.json")


def main(argv: list[str]) -> None:
    columns = {
        name: members.split(",") for name, _, members in (c.partition(":") for c in _COLUMN.value)
    }
    output = files.as_path(_OUTPUT.value)
    if output.suffix in ENDINGS:
        raise app.UsageError(f"--output={output} is the path of four files: leave {output.suffix}")
    try:
        compared = write(
            output,
            read_groups(argv[1:], _RUNS.value, with_before=_BEFORE.value),
            chosen=columns,
            baseline=_BASELINE.value,
            models=_PUBLISHED.value,
            title=_TITLE.value,
        )
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    for sentence in formats.explanations(compared):
        logging.info("%s", sentence)
    sys.stdout.write(averages(compared) + "\n")
    logging.info("%s.html, .md, .tex and .csv", output)


if __name__ == "__main__":
    app.run(main)
