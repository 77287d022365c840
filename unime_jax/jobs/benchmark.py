"""Times encode and train steps of random weights and generated rows on the devices at hand.

Each case runs in a process of its own, and its figures are kept in <workdir>/cases: the same
command goes on after the last finished case. This process leaves the devices to the others.
"""

import dataclasses
import hashlib
import pathlib
import pickle
import subprocess
import sys
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from unime_jax import config, config_reader, files
from unime_jax.jobs import benchmark_case, benchmark_peers, benchmark_report, boundary
from unime_jax.planning import compiler

PACKAGE = pathlib.Path(__file__).parents[1]


def run(config_dict: ConfigDict, workdir: files.Path) -> None:
    """Measures every case that has no figures yet; leaves benchmark.json and benchmark.md.

    A case that fails, for want of memory for example, is a line of the table that says why; the
    next start tries it again. Figures are kept while case, code and versions are the same.

    Raises:
      ValueError: the config does not make sense, the work directory is in a bucket, there are
        several processes, or another process measures there.
      RuntimeError: every single case failed, and the table says why, too; or a disk takes no more.
    """
    settings = config_reader.read(config.BenchmarkConfig, config_dict.to_dict())
    if jax.process_count() > 1 or not isinstance(workdir, pathlib.Path):
        raise ValueError(
            f"job benchmark measures the devices of one machine and writes to its disk, but there "
            f"are {jax.process_count()} processes and the work directory is {workdir}"
        )
    benchmark_peers.check(settings.peers)
    results: dict[str, dict[str, Any]] = {}
    with boundary.owning(workdir, "benchmark.lock", "measures in"):
        for name in settings.only or settings.cases:
            results[name] = _case(settings, name, workdir)
            _write(settings, results, workdir)  # what is done is kept if a later one is interrupted
    logging.info("%s\n\n%s", workdir, benchmark_report.table(results))
    problems = {name: values["problem"] for name, values in results.items()}
    if problems and all(problems.values()):
        listed = "\n".join(f"- {name}: {problem}" for name, problem in problems.items())
        raise RuntimeError(f"not one of {len(problems)} cases could be measured:\n{listed}")


def _case(settings: config.BenchmarkConfig, name: str, workdir: pathlib.Path) -> dict[str, Any]:
    """Figures of a case and of its peers, measured or kept; `problem` says why there are none."""
    folder = workdir / "cases"
    result = folder / f"{name}.json"
    key = _key(settings, name)
    if result.exists():
        try:
            kept = files.read_object(result)
            if kept["key"] == key and not kept["problem"] and not benchmark_peers.missing(kept):
                logging.info("%s was measured before, at %s", name, kept["date"])
                return kept
        except (ValueError, KeyError) as error:
            files.set_aside(result, error)
    folder.mkdir(parents=True, exist_ok=True)
    logging.info("measuring %s", name)
    peer_folder = folder / f"{name}.peers" if settings.peers.names else None
    if peer_folder is not None:
        files.remove_tree(peer_folder)
        peer_folder.mkdir(parents=True)
    try:
        values = {"name": name, "key": key} | _measured(settings, name, workdir, peer_folder)
        if peer_folder is not None and not values["problem"]:
            case = settings.cases[name]
            values["peers"] = benchmark_peers.measure(settings, name, case, peer_folder)
    finally:
        if peer_folder is not None:
            files.remove_tree(peer_folder)  # as large as the model
    files.write_whole(result, benchmark_report.as_json(values))
    if values["problem"]:
        logging.error("%s: %s", name, values["problem"])
    return values


def _measured(
    settings: config.BenchmarkConfig,
    name: str,
    workdir: pathlib.Path,
    peer_folder: pathlib.Path | None,
) -> dict[str, Any]:
    """What the process that measures a case has found out."""
    output, log = workdir / "cases" / f"{name}.new.json", workdir / "cases" / f"{name}.log"
    output.unlink(missing_ok=True)
    request = benchmark_case.Request(
        name=name,
        case=settings.cases[name],
        platform=settings.platform,
        warmup=settings.warmup,
        repetitions=settings.repetitions,
        compilation_cache=settings.compilation_cache,
        workdir=str(workdir),
        result=str(output),
        peer_folder="" if peer_folder is None else str(peer_folder),
    )
    with log.open("wb") as stream:
        ended = subprocess.run(
            [sys.executable, "-m", benchmark_case.__name__],
            input=pickle.dumps(request),
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if not output.exists():
        return {"problem": ending(ended.returncode, log)}
    values = files.read_object(output)
    output.unlink()
    return values


def ending(status: int, log: pathlib.Path) -> str:
    """A sentence on a process that ended without figures."""
    if status < 0:
        why = f"was ended by signal {-status}"
        why += ", as the system does when memory is used up" if status == -9 else ""
    else:
        why = f"ended with status {status}"
    return f"the process {why}; its output is in {log}"


def _write(
    settings: config.BenchmarkConfig, results: dict[str, dict[str, Any]], workdir: pathlib.Path
) -> None:
    """Writes the JSON and the table."""
    note = benchmark_report.note(settings.warmup, settings.repetitions)
    values = {"note": note, "cases": list(results.values())}
    files.write_whole(workdir / "benchmark.json", benchmark_report.as_json(values))
    table = benchmark_report.table(results)
    files.write_whole(workdir / "benchmark.md", f"{table}\n\n{note}\n")


def _key(settings: config.BenchmarkConfig, name: str) -> str:
    """Hash of everything that decides the figures of a case on a machine."""
    case = settings.cases[name]
    asked = dataclasses.replace(settings, cases={name: case}, only=())
    script = pathlib.Path(settings.peers.script)
    sources = [
        *sorted(PACKAGE.rglob("*.py")),
        *sorted(pathlib.Path(case.model).glob("*.json")),
        *([script] if settings.peers.names else []),
    ]
    digest = hashlib.blake2b(digest_size=12)
    for text in (repr(asked), compiler.versions(), sys.version):
        digest.update(text.encode() + b"\0")
    for file in sources:
        digest.update(file.read_bytes())
    return digest.hexdigest()
