"""Command line: flags to a config, then the job it names. Kept short on purpose."""

import logging as std_logging
import pathlib
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from unime_jax import exits, processes, stop
from unime_jax.jobs import embed, export, plan, train

JOBS = {"train": train.run, "export": export.run, "embed": embed.run, "plan": plan.run}

_CONFIG = config_flags.DEFINE_config_file("config", help_string="experiments/<name>.py[:variant]")
_WORKDIR = flags.DEFINE_string("workdir", None, "Everything a run writes. runs/<config name>")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join other processes, which JAX finds on TPU pods and in SLURM."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0: join other processes that JAX does not find."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: 0, 1, ...")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many.")
_JOIN_SECONDS = flags.DEFINE_integer("join_seconds", 300, "How long to wait for other processes.")
_HEARTBEAT_SECONDS = flags.DEFINE_integer(
    "heartbeat_seconds", 100, "A process that is silent for so long counts as dead; all end then."
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _CONFIG.value is None:
        raise app.UsageError("--config=experiments/<name>.py is required")
    config = _CONFIG.value
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}")
    if config.job not in JOBS:
        raise app.UsageError(f'config.job is "{config.job}"; use one of {", ".join(JOBS)}')
    if config.job == "plan":
        jax.config.update("jax_platforms", "cpu")  # what is planned for is not here
    if "://" in (_WORKDIR.value or ""):
        raise app.UsageError(
            f"--workdir={_WORKDIR.value} must be a path: mount the bucket, for example by gcsfuse"
        )
    explicit = _COORDINATOR.value, _PROCESS_ID.value, _NUM_PROCESSES.value
    if _DISTRIBUTED.value or any(value is not None for value in explicit):
        processes.join(
            coordinator=_COORDINATOR.value,
            process_id=_PROCESS_ID.value,
            num_processes=_NUM_PROCESSES.value,
            join_seconds=_JOIN_SECONDS.value,
            heartbeat_seconds=_HEARTBEAT_SECONDS.value,
        )
        processes.check_shared(workdir)
    logging.info("job %s in %s on %s", config.job, workdir, jax.devices())
    JOBS[config.job](config, workdir)
    processes.leave()


def run() -> None:
    logging.set_verbosity(logging.INFO)
    # Libraries log through absl as well; of theirs, only what needs attention.
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno > std_logging.INFO or "unime_jax" in record.pathname
    )
    try:
        app.run(main)
    except KeyboardInterrupt:  # where no job sees to it itself
        text = "told to stop by Ctrl-C: the same command goes on from what is complete"
        processes.fail(text, expected=True, status=stop.INTERRUPTED)
        sys.stderr.write(f"{text}\n")
        exits.exit_now(stop.INTERRUPTED)  # Python would wait for threads that read
    except Exception as error:
        if not says_it_all(error) or logging.level_debug():
            processes.fail(traceback.format_exc(), expected=False)
            raise
        message: object = error
        while isinstance(message, Exception) and message.args:  # config flags wrap one in another
            message = message.args[0]
        text = f"error: {message}\n(--verbosity=1 shows where it was raised)"
        processes.fail(text, expected=True)
        sys.exit(text)


def says_it_all(error: Exception) -> bool:
    """Whether the error was raised on purpose to be read by a user, here or by config flags."""
    frames = traceback.extract_tb(error.__traceback__)
    packages = {"unime_jax", "data_pipelines", "experiments", "ml_collections"}
    raised_by = set(pathlib.Path(frames[-1].filename).parts)
    return bool(packages & raised_by) and (frames[-1].line or "").startswith("raise ")


if __name__ == "__main__":
    run()
