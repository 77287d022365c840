"""Command line: flags to a config, then the job it names. Kept short on purpose."""

import contextlib
import gc
import importlib
import logging as std_logging
import pathlib
import sys
import traceback
from collections.abc import Iterator

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from unime_jax import __version__, config, config_reader, files
from unime_jax.operations import (
    command_line,
    compiler_flags,
    config_help,
    doctor_command,
    exits,
    processes,
    recipes,
    stop,
)

# Name -> module, which is imported when the job runs: others' libraries are not waited for.
JOBS = {
    name: f"unime_jax.jobs.{name}"
    for name in (
        "benchmark",
        "doctor",
        "train",
        "export",
        "evaluate",
        "embed",
        "judge",
        "merge",
        "mine",
        "plan",
        "rounds",
    )
}

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "A recipe, <name>[:variant], or a file of your own, <folder>/<file>.py[:variant].",
)
_PRINT_CONFIG = flags.DEFINE_bool(
    "print_config", False, "Print every key of the config, what it is and means, and exit."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "The folder of everything a run writes, also gs://<bucket>/<folder>; runs/<recipe> by default.",
)
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
_OVERLAP = flags.DEFINE_bool(
    "overlap", True, "Ask XLA to hide transfers between devices behind computation, see docs."
)

# What --help shows; absl itself has more, shown by --helpfull.
_SHOWN = (
    _CONFIG,
    _PRINT_CONFIG,
    _WORKDIR,
    _DISTRIBUTED,
    _COORDINATOR,
    _PROCESS_ID,
    _NUM_PROCESSES,
    _JOIN_SECONDS,
    _HEARTBEAT_SECONDS,
    _OVERLAP,
)
_HELP = {"--help", "-help", "-h", "-?", "--helpshort", "-helpshort"}


def main(argv: list[str]) -> None:
    overrides, unexpected = command_line.split(argv[1:])
    if unexpected:
        raise app.UsageError(f"unexpected arguments: {' '.join(unexpected)}")
    if _CONFIG.value is None:
        raise app.UsageError(
            f"--config=<recipe> is required: {', '.join(recipes.names())}, or a file of your own; "
            "--help describes them"
        )
    values, remarks = _resolve(_CONFIG.value, overrides)
    if _PRINT_CONFIG.value:
        headline = "\n# ".join([f"unime_jax {__version__}, --config={_CONFIG.value}", *remarks])
        sys.stdout.write(config_help.config_text(values, headline))
        return
    workdir = files.as_path(_WORKDIR.value or f"runs/{recipes.name_of(_CONFIG.value)}")
    if values.job not in JOBS:
        raise app.UsageError(f'config.job is "{values.job}"; use one of {", ".join(JOBS)}')
    if values.job in ("benchmark", "plan"):
        # What is planned for is not here; what is measured, processes of their own need whole.
        jax.config.update("jax_platforms", "cpu")
    if _OVERLAP.value:
        platforms = jax.config.values["jax_platforms"] or ""
        compiler_flags.overlap_transfers(platforms, planned=values.job == "plan")
    explicit = _COORDINATOR.value, _PROCESS_ID.value, _NUM_PROCESSES.value
    looks_only = values.job == "doctor"  # by itself, and devices may be another process's
    if not looks_only and (_DISTRIBUTED.value or any(value is not None for value in explicit)):
        processes.join(
            coordinator=_COORDINATOR.value,
            process_id=_PROCESS_ID.value,
            num_processes=_NUM_PROCESSES.value,
            join_seconds=_JOIN_SECONDS.value,
            heartbeat_seconds=_HEARTBEAT_SECONDS.value,
        )
        processes.check_shared(workdir)
    if not looks_only:
        logging.info("job %s in %s on %s", values.job, workdir, jax.devices())
    for remark in remarks:
        logging.warning("%s", remark)
    with _without_collections():
        job = importlib.import_module(JOBS[values.job])
    job.run(values, workdir)
    processes.leave()


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """For imports: garbage is collected later, and not looked for among what modules hold.

    Collections take a quarter of the time of importing, and of tracing if they pass over modules.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _resolve(recipe: str, overrides: list[command_line.Override]) -> tuple[ConfigDict, list[str]]:
    """The config that a command asks for, and remarks on it for the log."""
    values = recipes.load(recipe)
    looked_at, of_doctor, overrides = doctor_command.split(overrides)
    if values.job != "plan":
        command_line.refuse_plan(recipe, overrides)
    before = values.to_dict()
    command_line.apply(values, overrides)
    config_reader.read(config.kind_of(values), values.to_dict())
    remarks = command_line.fit_short_run(values, before, {key for key, _ in overrides})
    if looked_at:
        command = {
            "recipe": recipe,
            "distributed": _DISTRIBUTED.value,
            "coordinator": _COORDINATOR.value,
            "process_id": _PROCESS_ID.value,
            "num_processes": _NUM_PROCESSES.value,
        }
        values = doctor_command.whole(values, of_doctor, command)
        config_reader.read(config.kind_of(values), values.to_dict())
    return values, remarks


def _parse(argv: list[str]) -> list[str]:
    """Flags to absl; what is left is `main`'s, --config.<key>=<value> first of all."""
    argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    overrides, others = command_line.split(argv[1:])
    if _HELP & set(others):
        shown = [flags.FLAGS[holder.name] for holder in _SHOWN]
        sys.stdout.write(config_help.help_text(JOBS, shown))
        sys.exit(0)
    left = app.parse_flags_with_usage([argv[0], *others])
    return [*left, *(f"--config.{key}={value}" for key, value in overrides)]


def run() -> None:
    logging.set_verbosity(logging.INFO)
    # Libraries log through absl as well; of theirs, only what needs attention.
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno > std_logging.INFO or _is_ours(record.pathname)
    )
    try:
        app.run(main, flags_parser=_parse)
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
    """True if the error was raised on purpose, to be read by a user."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return _is_ours(last.filename) and (last.line or "").startswith("raise ")


def _is_ours(file: str) -> bool:
    package = pathlib.Path(__file__).resolve().parent
    folders = package, package.with_name("data_pipelines"), recipes.FOLDER.resolve()
    return any(pathlib.Path(file).resolve().is_relative_to(folder) for folder in folders)


if __name__ == "__main__":
    run()
