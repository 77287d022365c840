"""The study of negatives on MiniMMEB: python -m tests.study [--folder runs/study] [--seeds 0,1,2].

One process trains the start, every variant of experiments/study.py with every seed, mines, judges
and merges, and leaves <folder>/study.md, after every variant anew. What is finished is kept: the
same command goes on. --config.<key>=<value> changes all training runs.
"""

import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence

import jax
from absl import logging

from experiments import study
from tests.study import runs, table
from unime_jax import files
from unime_jax.operations import command_line

PAGE = "study.md"
MERGED = ("default", "k:4", "k:16", "margin:off")  # variants whose seeds are merged


def main(argv: Sequence[str]) -> None:
    overrides, others = command_line.split(argv)
    given = _arguments(others)
    this = runs.Study(
        given.folder.resolve(),
        (given.data or given.folder / "data").resolve(),
        [int(seed) for seed in given.seeds.split(",")],
        overrides,
        given.start_steps,
    )
    command = shlex.join(["python", "-m", "tests.study", *argv])
    this.folder.mkdir(parents=True, exist_ok=True)
    runs.start(this)
    names = given.variants.split(",") if given.variants else list(study.variants())
    runs.measured(this, "start")
    for name in names:
        for seed in this.seeds:
            runs.variant(this, name, seed)
        if name in MERGED and len(this.seeds) > 1:
            runs.merged(this, name)
        if name == "default":
            runs.measured(this, f"default-{this.seeds[0]}")
        files.write_whole(this.folder / PAGE, table.markdown(runs.results(this.folder), command))
    print(f"{this.folder / PAGE}", flush=True)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.study")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(study.FOLDER))
    parser.add_argument("--data", type=pathlib.Path, help="<folder>/data without it")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--variants", default="", help="default,margin:off,...; all without it")
    parser.add_argument("--start_steps", type=int, default=study.START_STEPS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    logging.set_verbosity(logging.WARNING)
    main(sys.argv[1:])
