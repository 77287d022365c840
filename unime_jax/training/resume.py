"""A work directory holds one run: what may change when it goes on, and what makes it another."""

import contextlib
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from unime_jax import files
from unime_jax.backbones import Backbone
from unime_jax.backbones.io.fingerprint import fingerprint

# Keys, and groups of keys, that are no part of what is trained. Whatever is not named here is.
FREE = (
    "job",
    "log_every",
    "max_skipped",
    "chunk_size",
    "mesh",
    "checkpoint",
    "compilation_cache",
    "profile",
    "watchdog",
    "plan",
    "wandb_project",
    "export",
    "evaluation",
    "execution.remat",
    "execution.attention",
    "execution.recompute",
    "data.workers",
    "data.max_bad_share",
    "data.prepare.module",
    "data.prepare.eval_rows",
    # Where things are; that they are the same things, the facts in each checkpoint tell.
    "data.folder",
    "backbone",
    "revision",
    "init_from",
)


# Keys of the length of a run, and of its schedule.
LENGTH = ("steps", "optimizer.schedule_steps")
PROBE = 2**20  # bytes: with less room than that, a run does not get far


def open_workdir(workdir: files.Path) -> None:
    """Makes the folder, and sees that it can be written, which is better known before a long run.

    Raises:
      ValueError: it cannot.
    """
    probe = workdir / f".writable-{jax.process_index()}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(PROBE))  # a full disk has room for an empty file
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
        raise ValueError(
            f"--workdir={workdir} cannot be written: {error.strerror or error}. Everything that a "
            "run leaves goes there: give one that can be, with room for its checkpoints."
        ) from error


def check_config(workdir: files.Path, config: Mapping[str, Any]) -> None:
    """Compares `config` with <workdir>/config.json, if anything has been trained there.

    `steps` may change where that leaves the learning rates so far as they were: with the schedule
    "constant", and with others if they end at the same step as before, which
    `optimizer.schedule_steps` says. Changes that are allowed are logged. Scores of an evaluation
    that is no longer the same are forgotten, because those after training are to be compared with
    them.

    Raises:
      ValueError: something else would be trained; the message lists what.
    """
    file = workdir / "config.json"
    if jax.process_index() != 0:  # which may be writing it
        return
    if not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        return
    try:
        earlier = files.read_object(file)
    except FileNotFoundError:
        logging.warning("%s is gone, so that the config cannot be compared with it", file)
        return
    except ValueError as error:
        raise ValueError(
            f"{error}; repair it, or remove it if the config has not changed."
        ) from error
    found = files.changes(earlier, config)
    free: tuple[str, ...] = FREE
    constant = config["optimizer"]["schedule"] == "constant"
    same_end = _schedule_end(earlier) == _schedule_end(config)
    if constant or same_end or config["job"] == "export":
        free += LENGTH
    serious = {key: both for key, both in found.items() if not _is_in(key, free)}
    if serious:
        raise ValueError(
            f"{workdir} holds a run of another config. Changed since:\n{_listed(serious)}\n"
            f"{_how_to_extend(earlier, config) if _is_longer(serious, earlier, config) else ''}Go "
            "on with the earlier values; or use another work directory for a run of its own, with "
            "config.init_from if it is to start from the model of this one."
        )
    if found:
        logging.info("the config has changed, applied from now on:\n%s", _listed(found))
    if config["job"] == "train" and any(_is_in(key, ("evaluation",)) for key in found):
        (workdir / "evaluation.json").unlink(missing_ok=True)


def _schedule_end(config: Mapping[str, Any]) -> Any:
    """The step where the learning rate stops falling, as far as a config says it."""
    values = dict(files.leaves(config))
    return values.get("optimizer.schedule_steps") or values.get("steps")


def _is_longer(
    serious: Mapping[str, Any], earlier: Mapping[str, Any], config: Mapping[str, Any]
) -> bool:
    """Whether the run is to be extended, and that is all that is in the way."""
    before = earlier.get("steps")
    return set(serious) <= {*LENGTH} and isinstance(before, int) and config["steps"] > before


def _how_to_extend(earlier: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    end, optimizer = _schedule_end(earlier), config["optimizer"]
    rate = optimizer["final_learning_rate"]
    now = (
        f"For more steps at that rate add --config.optimizer.schedule_steps={end}. "
        if rate
        else "More steps of it would learn nothing. "
    )
    return (
        f'The schedule "{optimizer["schedule"]}" of this run ends at step {end} with a learning '
        f"rate of {rate}. {now}A run that is to be extended says so at its start: "
        f"--config.optimizer.schedule_steps={config['steps']}, or "
        "--config.optimizer.schedule=constant.\n"
    )


def facts(backbone: Backbone, rows: Mapping[str, int] | None = None) -> dict[str, Any]:
    """What must not change under a checkpoint: contents of the backbone, rows of the data.

    Process 0 reads all of the backbone's files; the others wait for it.
    """
    digest = np.zeros(16, np.uint8)
    if jax.process_index() == 0:
        digest = np.frombuffer(bytes.fromhex(_digest(backbone)), np.uint8)
    if jax.process_count() > 1:
        digest = np.asarray(multihost_utils.broadcast_one_to_all(digest))
    found: dict[str, Any] = {"backbone": digest.tobytes().hex()}
    return found | ({"data": dict(rows)} if rows is not None else {})


def _digest(backbone: Backbone) -> str:
    """One hash of all its files; the record of an export's self-check is no part of a model."""
    files = fingerprint(backbone)
    kept = [f"{name} {files[name]}" for name in files if not name.startswith("self_check")]
    return hashlib.blake2b("\n".join(kept).encode(), digest_size=16).hexdigest()


def _is_in(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith(group + ".") for group in groups)


def _listed(found: Mapping[str, tuple[str, str]]) -> str:
    return "\n".join(f"  config.{key}: {old} -> {new}" for key, (old, new) in found.items())
