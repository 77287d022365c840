"""Compiler flags are set where the library knows them, as it ends the process else."""

import os
import subprocess
import sys

from unime_jax.operations import compiler_flags

(FLAG,) = compiler_flags.GPU


def test_flags_that_a_library_knows_are_set_unless_the_user_did(monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")

    def after(before, *readers):
        monkeypatch.setenv("XLA_FLAGS", before)
        compiler_flags.add("XLA_FLAGS", compiler_flags.GPU, readers)
        return os.environ["XLA_FLAGS"]

    (jaxlib,) = compiler_flags.libraries("jaxlib", "libjax_common*")
    assert after("--xla_dump_to=x", jaxlib) == f"--xla_dump_to=x --{FLAG}=true"
    assert f"--{FLAG}=true" in caplog.text and "--nooverlap" in caplog.text
    for users in (f"--{FLAG}=false", f"--xla_dump_to=x --{FLAG}"):
        assert after(users, jaxlib) == users

    # Of two libraries one may be another version, without the flag.
    other = tmp_path / "xla_cuda_plugin.so"
    other.write_bytes(f"\0{FLAG}_of_old\0".encode())
    assert after("", jaxlib, other) == "" and f"does not know {FLAG}" in caplog.text

    # The parser does take what is found that way: it ends a process for what it does not know.
    start = "import jax; jax.devices()"
    for flag, taken in ((FLAG, True), (f"{FLAG}_of_old", False)):
        environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--{flag}=true"}
        process = subprocess.run(
            [sys.executable, "-c", start], env=environment, capture_output=True
        )
        assert (process.returncode == 0) == taken, flag


def test_only_for_devices_that_may_be_used(monkeypatch):
    set_for = []
    found = {"libtpu": ["libtpu.so"], "jaxlib": ["libjax_common.so"]}
    monkeypatch.setattr(compiler_flags, "add", lambda name, *_: set_for.append(name))
    monkeypatch.setattr(compiler_flags, "libraries", lambda package, _: found[package])
    monkeypatch.setattr(compiler_flags, "_gpu_plugins", lambda: ["xla_cuda_plugin.so"])
    for platforms, planned, expected in (
        ("cpu", False, []),
        ("cpu", True, ["LIBTPU_INIT_ARGS"]),
        ("cuda", False, ["XLA_FLAGS"]),
        ("tpu", False, ["LIBTPU_INIT_ARGS"]),
        ("", False, ["LIBTPU_INIT_ARGS", "XLA_FLAGS"]),
    ):
        compiler_flags.overlap_transfers(platforms, planned=planned)
        assert set_for == expected, platforms
        set_for.clear()
