"""Resume checks: which config changes an existing workdir accepts; input fingerprints."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from unime_jax import config_reader, files
from unime_jax.backbones import Backbone
from unime_jax.backbones.io.fingerprint import fingerprint
from unime_jax.data.settings import Bucket
from unime_jax.training import evaluations
from unime_jax.training.loss_settings import Contrastive, JudgeDistillation

# Keys and groups of keys that may change when a run goes on; any other one makes it another run.
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
    "wandb_project",
    "export",
    "evaluation",
    "execution.remat",
    "execution.attention",
    "execution.recompute",
    "execution.keep_features",
    "execution.kept_chunks",
    "execution.merged_chunks",
    "data.eval",
    "data.workers",
    "data.max_bad_share",
    "data.prepare.module",
    "data.prepare.eval_rows",
    # Where things are; that they are the same, the fingerprints in each checkpoint tell.
    "data.folder",
    "data.mined",
    "backbone",
    "revision",
    "init_from",
)


# Keys of the length of a run, and of its schedule.
LENGTH = ("steps", "epochs", "optimizer.schedule_steps")
PROBE = 2**20  # bytes: with less room than that, a run does not get far


def open_workdir(workdir: files.Path) -> None:
    """Makes the folder, and probes that it can be written, before a long run needs it.

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
    """Compares `config` with <workdir>/config.json, if there are checkpoints.

    Allowed changes, see `changes`, are logged. A change of the evaluation, other than of when it is
    made, removes earlier scores, which later ones could not be compared with.

    Raises:
      ValueError: something else would be trained; the message lists what.
    """
    if jax.process_index() != 0:  # which may be writing it
        return
    changed = changes(workdir, config)
    if changed:
        logging.info("the config has changed, applied from now on:\n%s", listed(changed))
    evaluation = {key for key in changed if is_in(key, ("evaluation", "data.eval"))}
    if config["job"] == "train" and evaluation - {"evaluation.every"}:
        (workdir / "evaluation.json").unlink(missing_ok=True)
        (workdir / evaluations.FILE).unlink(missing_ok=True)


def changes(workdir: files.Path, config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Allowed changes of `config` since <workdir>/config.json, as of `files.changes`.

    None without checkpoints. `steps` may change where that leaves the learning rates so far as they
    were: with the schedule "constant", and with others if they end at the same step as before,
    which `optimizer.schedule_steps` says.

    Raises:
      ValueError: something else would be trained; the message lists what.
    """
    file = workdir / "config.json"
    if not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        return {}
    try:
        earlier = _with_keys_of_today(files.read_object(file))
    except FileNotFoundError:
        logging.warning("%s is gone, so that the config cannot be compared with it", file)
        return {}
    except ValueError as error:
        raise ValueError(
            f"{error}; repair it, or remove it if the config has not changed."
        ) from error
    changed = files.changes(earlier, config)
    # own.py once gave the number that None stands for.
    if changed.get("optimizer.warmup_steps") == (str(config["steps"] // 10), "null"):
        del changed["optimizer.warmup_steps"]
    free: tuple[str, ...] = FREE
    constant = config["optimizer"]["schedule"] == "constant"
    same_end = _schedule_end(earlier) == _schedule_end(config)
    if constant or same_end or config["job"] == "export":
        free += LENGTH
    serious = {key: both for key, both in changed.items() if not is_in(key, free)}
    if serious:
        raise ValueError(
            f"{workdir} holds a run of another config. Changed since:\n{listed(serious)}\n"
            f"{_how_to_extend(earlier, config) if _is_longer(serious, earlier, config) else ''}Go "
            "on with the earlier values; or use another work directory for a run of its own, with "
            "config.init_from if it is to start from the model of this one."
        )
    return changed


def _with_options_of_today(loss: Mapping[str, Any]) -> dict[str, Any]:
    """A loss with the options that came later, at their defaults."""
    kinds = {"contrastive": Contrastive, "judge_distillation": JudgeDistillation}
    kind = kinds.get(loss.get("objective", ""))
    added = {
        field.name: field.default
        for field in (dataclasses.fields(kind) if kind else ())
        if field.default is not dataclasses.MISSING
    }
    if isinstance(contrastive := loss.get("contrastive"), Mapping):
        loss = {**loss, "contrastive": _with_options_of_today(contrastive)}
    return added | dict(loss)


def _with_keys_of_today(earlier: Mapping[str, Any]) -> dict[str, Any]:
    """A config of before keys were renamed or added, so that its run can go on."""
    config = {
        group: {config_reader.RENAMED.get(key, key): value for key, value in values.items()}
        if group in ("data", "evaluation", "loss", "processing") and isinstance(values, Mapping)
        else values
        for group, values in earlier.items()
        if group != "plan"  # which has a config of its own now
    }
    config.setdefault("epochs", 0.0)
    config.setdefault("matryoshka", {"dims": [], "weights": []})
    data = config.get("data")
    if isinstance(data, dict):
        data["buckets"] = _with_fields_of_today(data.get("buckets"))
        data.setdefault("columns", {})
        data.setdefault("eval", "")
        data.setdefault("first_rows", 0)
        data.setdefault("size_temperature", None)
        data.setdefault("split_modalities", False)
        data.setdefault("first_rows_by_source", {})
        data.setdefault("mined", "")
        data.setdefault("mined_use", "beside")
        data.setdefault("cluster_size", 0)
        data.setdefault("packing", "auto")
        data.setdefault("cluster_ranks", [1, 100])
    loss: Any = config.get("loss")
    if isinstance(loss, dict):
        config["loss"] = _with_options_of_today(loss)
    if isinstance(optimizer := config.get("optimizer"), Mapping):
        config["optimizer"] = {"schedule_steps": 0} | dict(optimizer)
    if isinstance(processing := config.get("processing"), dict):
        processing.setdefault("resolution", None)
    if isinstance(evaluation := config.get("evaluation"), dict):
        evaluation.setdefault("instructions", "data")
        evaluation.setdefault("dims", None)
        evaluation.setdefault("precisions", [])
    return config


def _with_fields_of_today(buckets: Any) -> Any:
    """Recorded buckets, once lists of fields, with those that came later, at their defaults."""
    fields = dataclasses.fields(Bucket)
    added = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    names = [field.name for field in fields]
    records = (dict(zip(names, each)) if isinstance(each, list) else each for each in buckets or ())
    return [added | record for record in records]


def _schedule_end(config: Mapping[str, Any]) -> Any:
    """The step where the learning rate stops falling, or the passes over the data until then.

    None if the config has none of the keys.
    """
    values = dict(files.leaves(config))
    end = values.get("optimizer.schedule_steps") or values.get("steps")
    return f"{values['epochs']} epochs" if not end and values.get("epochs") else end


def _is_longer(
    serious: Mapping[str, Any], earlier: Mapping[str, Any], config: Mapping[str, Any]
) -> bool:
    """True if more steps are the only serious change."""
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


def fingerprints(backbone: Backbone, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Fingerprints of backbone and data, verified when a checkpoint is restored.

    Process 0 reads all of the backbone's files; the others wait for it.

    Args:
      data: rows by source and what was mined for them; None: the data are not needed.
    """
    digest = np.zeros(16, np.uint8)
    if jax.process_index() == 0:
        digest = np.frombuffer(bytes.fromhex(_digest(backbone)), np.uint8)
    if jax.process_count() > 1:
        digest = np.asarray(multihost_utils.broadcast_one_to_all(digest))
    own = {} if data is None else {"data": dict(data)}
    return {"backbone": digest.tobytes().hex()} | own


def _digest(backbone: Backbone) -> str:
    """One hash of all files of a model, but for the record of an export's self-check."""
    hashes = fingerprint(backbone)
    kept = [f"{name} {hashes[name]}" for name in hashes if not name.startswith("self_check")]
    return hashlib.blake2b("\n".join(kept).encode(), digest_size=16).hexdigest()


def is_in(key: str, groups: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of these, or in a group of them."""
    return any(key == group or key.startswith(group + ".") for group in groups)


def listed(changed: Mapping[str, tuple[str, str]]) -> str:
    """Lines of changed keys, of `files.changes`."""
    return "\n".join(f"  config.{key}: {old} -> {new}" for key, (old, new) in changed.items())
