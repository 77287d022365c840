"""The same work by other libraries: a script outside of this package, in a process of its own."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from unime_jax import config, files
from unime_jax.jobs import benchmark_peer_folder


def check(peers: config.PeersConfig) -> None:
    """Raises ValueError if peers are asked for and the script that measures them is missing."""
    if peers.names and not pathlib.Path(peers.script).is_file():
        raise ValueError(
            f"config.peers.names={peers.names}: there is no file config.peers.script="
            f"{peers.script!r}. It comes with a clone of this project, not with the package; run "
            "the job in the clone's folder, or name the file"
        )


def missing(values: Mapping[str, Any]) -> bool:
    """Whether a peer of a kept case failed, and is to be tried again."""
    return any(
        of_peer["problem"] and not of_peer["unsupported"]
        for of_peer in values.get("peers", {}).values()
    )


def measure(
    settings: config.BenchmarkConfig, name: str, case: config.BenchmarkCase, folder: pathlib.Path
) -> dict[str, dict[str, Any]]:
    """Figures by peer; `problem` says why there are none, `unsupported` that there cannot be."""
    return {
        peer: _one_peer(settings, peer, name, case, folder)
        for peer in settings.peers.names
        if peer != "sentence_transformers" or isinstance(case.run, config.EmbedConfig)
    }


def _one_peer(
    settings: config.BenchmarkConfig,
    peer: str,
    name: str,
    case: config.BenchmarkCase,
    folder: pathlib.Path,
) -> dict[str, Any]:
    result = folder / f"{peer}.json"
    log = folder.parent / f"{name}.{peer}.log"
    request = described(settings, peer, case, folder) | {"result": str(result)}
    try:
        with log.open("wb") as stream:
            ended = subprocess.run(
                [settings.peers.python or sys.executable, settings.peers.script],
                input=json.dumps(request).encode(),
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=settings.peers.seconds,
                check=False,
            )
        status = f"ended with status {ended.returncode}"
    except subprocess.TimeoutExpired:
        status = f"took longer than config.peers.seconds={settings.peers.seconds:g}"
    except OSError as error:
        status = f"could not be started: {error}"
    if result.exists():
        return files.read_object(result)
    problem = f"the process {status}; its output is in {log}"
    return {"problem": problem, "unsupported": False}


def described(
    settings: config.BenchmarkConfig, peer: str, case: config.BenchmarkCase, folder: pathlib.Path
) -> dict[str, Any]:
    """A case in plain values, for a script that does not know this package."""
    run = case.run
    values = {
        "peer": peer,
        "platform": settings.platform,
        "model": str(folder / benchmark_peer_folder.WEIGHTS),
        "rows": str(folder / benchmark_peer_folder.ROWS),
        "embeddings": str(folder / benchmark_peer_folder.EMBEDDINGS),
        "image": case.image,
        "warmup": settings.warmup,
        "repetitions": settings.repetitions,
    }
    if isinstance(run, config.TrainConfig):
        loss = run.loss
        return values | {
            "work": "train",
            "pairs": run.batch_size,
            "chunk_size": run.chunk_size,
            "dtype": run.execution.dtype,
            "frozen_dtype": run.execution.frozen_dtype,
            "remat": run.execution.remat,
            "objective": loss.objective,
            "temperature": loss.temperature,
            "lora": {
                "rank": run.lora.rank,
                "alpha": run.lora.alpha,
                "dora": run.lora.dora,
                "targets": run.lora.targets,
            },
            "learning_rate": run.optimizer.learning_rate,
            "trainable": run.trainable,
        }
    return values | {"work": "encode", "dtype": run.dtype, "batch_size": run.batch_size}
