"""Where compiled programs are kept, by whom, and what is said while something compiles."""

import os
import pathlib
import re
import time

import pytest

from tests import children
from tests.backbones.tiny_texts import write_bert
from tests.jobs import tiny_run
from tests.operations import embedding
from tests.tables import for_each
from unime_jax.operations import compilation_cache

FILES, ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"


@pytest.fixture
def chosen(monkeypatch):
    """What JAX is told, in place of telling it; nobody has chosen anything yet."""
    told = {}
    monkeypatch.setattr(compilation_cache, "_chosen", False)
    monkeypatch.setattr(compilation_cache.jax.config, "update", told.__setitem__)
    before = {FILES: None, ENABLED: True}
    monkeypatch.setattr(compilation_cache, "_told", before.get)
    return told


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "unime_jax" / "compiled"


def test_programs_of_a_cpu_are_the_users_and_the_cpus(chosen, home, tmp_path, monkeypatch):
    compilation_cache.use_for_job("auto", tmp_path / "run")
    (folder,) = home.iterdir()
    assert folder.name.startswith("cpu-") and chosen[FILES] == str(folder)
    assert folder.stat().st_mode & 0o077 == 0  # programs of others would be run
    monkeypatch.setattr(compilation_cache.platform, "machine", lambda: "another")
    assert compilation_cache.folder_for(None) != folder

    # Programs of an accelerator are the runs
    monkeypatch.setattr(compilation_cache.jax, "default_backend", lambda: "tpu")
    assert compilation_cache.folder_for(tmp_path) == tmp_path / "compilation_cache"
    assert compilation_cache.folder_for(None) == home / "tpu"


def test_what_was_asked_for_is_used_and_no_cache_is_no_error(chosen, home, tmp_path, monkeypatch):
    compilation_cache.use_for_job(str(tmp_path / "mine"), tmp_path)
    assert chosen == {FILES: str(tmp_path / "mine")}
    compilation_cache.use_for_library()  # within a job
    assert chosen == {FILES: str(tmp_path / "mine")} and not home.exists()

    # A job without a cache has none.
    monkeypatch.setattr(compilation_cache, "_chosen", False)
    chosen.clear()
    compilation_cache.use_for_job("", tmp_path)
    compilation_cache.use_for_library()
    assert not chosen and not home.exists()

    # A folder that cannot be made is no error.
    monkeypatch.setattr(compilation_cache, "_chosen", False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilation_cache.use_for_library()
    assert not chosen


@for_each("theirs", [{FILES: "/theirs", ENABLED: True}, {FILES: None, ENABLED: False}])
def test_jaxs_own_settings_come_first(chosen, home, tmp_path, monkeypatch, theirs):
    monkeypatch.setattr(compilation_cache, "_chosen", False)
    monkeypatch.setattr(compilation_cache, "_told", theirs.get)
    compilation_cache.use_for_job("auto", tmp_path)
    compilation_cache.use_for_library()
    assert not chosen and not home.exists()


def test_the_oldest_programs_go_first(chosen, home, monkeypatch):
    folder = compilation_cache.folder_for(None)
    folder.mkdir(parents=True)
    for age, name in enumerate(["new", "middle", "old"]):
        (folder / name).write_bytes(bytes(100))
        seconds = 1e9 - age
        os.utime(folder / name, (seconds, seconds))
    monkeypatch.setattr(compilation_cache, "MOST_BYTES", 250)
    compilation_cache.use_for_library()
    assert {file.name for file in folder.iterdir()} == {"new", "middle"}


def test_what_compiles_is_said_and_for_how_long(monkeypatch, caplog):
    monkeypatch.setattr(compilation_cache, "SECONDS_BETWEEN_LINES", 0.02)
    with caplog.at_level("INFO"), compilation_cache.announced("the step"):
        time.sleep(0.1)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "compiling the step"
    assert lines[1].startswith("still compiling the step, for 0 s now")
    assert lines[-1].startswith("compiled the step in 0.1 s")


def test_an_embedder_compiles_once_a_machine(tmp_path):
    """A second process reads its programs, and its embeddings are the same to the bit."""
    folder, found = write_bert(tmp_path / "model"), []
    for number in range(2):
        file = tmp_path / f"{number}.npy"
        done = children.start(
            *(embedding.embed, folder, file),
            output=tmp_path / f"{number}.log",
            environment=tiny_run.environment(XDG_CACHE_HOME=str(tmp_path / "cache")),
            jax_options={FILES: None},
        )
        assert done.wait(timeout=300) == 0, done.said()
        found.append((file.read_bytes(), done.said()))
    (first, said), (second, again) = found
    assert first == second
    assert re.search(r"compiling the encoder of \d+ rows, 32 tokens", said)
    assert "kept from" not in said
    assert "kept from an earlier start" in again
    assert len(list(pathlib.Path(tmp_path / "cache").rglob("*-cache"))) > 0
