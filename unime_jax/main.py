"""Command line: flags to a config, then the job it names. Kept short on purpose."""

import logging as std_logging
import pathlib
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from unime_jax.jobs import embed, export, train

JOBS = {"train": train.run, "export": export.run, "embed": embed.run}

_CONFIG = config_flags.DEFINE_config_file("config", help_string="experiments/<name>.py[:variant]")
_WORKDIR = flags.DEFINE_string("workdir", None, "Everything a run writes. runs/<config name>")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes, as on a TPU pod.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _CONFIG.value is None:
        raise app.UsageError("--config=experiments/<name>.py is required")
    if _DISTRIBUTED.value:
        jax.distributed.initialize()
    config = _CONFIG.value
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}")
    if config.job not in JOBS:
        raise app.UsageError(f'config.job is "{config.job}"; use one of {", ".join(JOBS)}')
    logging.info("job %s in %s on %s", config.job, workdir, jax.devices())
    JOBS[config.job](config, workdir)


def run() -> None:
    logging.set_verbosity(logging.INFO)
    # Libraries log through absl as well; of theirs, only what needs attention.
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno > std_logging.INFO or "unime_jax" in record.pathname
    )
    try:
        app.run(main)
    except Exception as error:
        if not says_it_all(error) or logging.level_debug():
            raise
        message: object = error
        while isinstance(message, Exception) and message.args:  # config flags wrap one in another
            message = message.args[0]
        sys.exit(f"error: {message}\n(--verbosity=1 shows where it was raised)")


def says_it_all(error: Exception) -> bool:
    """Whether the error was raised on purpose to be read by a user, here or by config flags."""
    frames = traceback.extract_tb(error.__traceback__)
    packages = {"unime_jax", "data_pipelines", "experiments", "ml_collections"}
    raised_by = set(pathlib.Path(frames[-1].filename).parts)
    return bool(packages & raised_by) and (frames[-1].line or "").startswith("raise ")


if __name__ == "__main__":
    run()
