"""Runs of tests in forks of a process that has imported the libraries, which cost no imports.

The process reads requests from its standard input and answers on its standard output, a line of
JSON each. Nothing of this repository but this module is imported before a fork, so that every run
has the code that lies there at its start.
"""

import contextlib
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

LIBRARIES = (
    "jax", "jax.numpy", "jax.experimental.multihost_utils", "flax.nnx", "optax", "orbax.checkpoint",
    "grain", "tensorflow_datasets", "transformers", "torch", "PIL.Image", "scipy.stats",
    "safetensors.numpy", "peft", "sentence_transformers",
)  # fmt: skip
# JAX reads these when it is imported; as in tests/conftest.py.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # a changed file may have the size and second of the other
}
POLL = 0.05  # seconds


class ForkServer:
    """The process that forks, in a copy of the repository.

    Args:
      copy: root of the copy, whose folder `compiled` is JAX's compilation cache.
    """

    def __init__(self, copy: pathlib.Path):
        self.copy = copy
        self.compiled = copy / "compiled"
        paths = {
            "PYTHONPATH": str(copy),
            "UNIME_JAX_TESTS_COMPILED": str(self.compiled),
            "JAX_COMPILATION_CACHE_DIR": str(self.compiled),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutation.fork_server"],
            cwd=copy,
            env=os.environ | ENVIRONMENT | paths,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, tests: list[str], *, limit: float, lines: pathlib.Path | None = None) -> dict:
        """Runs files of tests until the first failure.

        Args:
          limit: seconds, after which the run is killed.
          lines: a file for the lines that were executed, JSON by path of a module.

        Returns:
          {"status": pytest's or None where it was killed, "seconds": ..., "output": its end}.
        """
        request = {"tests": tests, "limit": limit, "lines": lines and str(lines)}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server of {self.copy} ended: {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """Answers requests until the input ends."""
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):  # torch is absent on Python 3.13
            importlib.import_module(library)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def answer(tests: list[str], limit: float, lines: str | None) -> dict:
    started = time.monotonic()
    log = pathlib.Path("mutant.log")
    child = os.fork()
    if not child:
        run_forked(tests, log, lines)
    status = None
    while status is None and time.monotonic() - started < limit:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
        else:
            time.sleep(POLL)
    with contextlib.suppress(ProcessLookupError):  # what it has left behind, too
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    output = log.read_text(errors="replace")
    return {"status": status, "seconds": time.monotonic() - started, "output": output[-2000:]}


def run_forked(tests: list[str], log: pathlib.Path, lines: str | None) -> None:
    """The child's whole life, as a group of processes of its own."""
    status = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, target in enumerate((nothing, file, file)):
            os.dup2(target, number)
        status = run_pytest(tests) if lines is None else run_traced(tests, lines)
        sys.stdout.flush()
    finally:
        os._exit(status)


def run_pytest(tests: list[str]) -> int:
    import pytest

    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def run_traced(tests: list[str], lines: str) -> int:
    import coverage

    tracer = coverage.Coverage(data_file=None, source=["unime_jax"], config_file=False)
    tracer.start()
    status = run_pytest(tests)
    tracer.stop()
    data, root = tracer.get_data(), pathlib.Path.cwd()
    executed = {
        str(pathlib.Path(file).relative_to(root)): sorted(data.lines(file) or ())
        for file in data.measured_files()
    }
    pathlib.Path(lines).write_text(json.dumps(executed))
    return status


if __name__ == "__main__":
    serve()
