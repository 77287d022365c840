"""Flags for GPUs are set where the library knows them, as it ends the process else."""

import subprocess
import sys

from unime_jax.operations import compiler_flags

(FLAG,) = compiler_flags.FLAGS


def test_flags_that_this_jaxlib_knows_are_set_unless_the_user_did(monkeypatch, tmp_path):
    jaxlib = compiler_flags._libraries("jaxlib", "libjax_common*")
    assert jaxlib and compiler_flags._knows(jaxlib[0], FLAG)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    compiler_flags.add(jaxlib)
    flags = f"--xla_dump_to=x --{FLAG}=true"
    assert compiler_flags.os.environ["XLA_FLAGS"] == flags

    # The parser takes them: it ends a process that has one that it does not know.
    start = "import jax, jax.extend.backend; jax.devices()"
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--{FLAG}=true"}
    subprocess.run([sys.executable, "-c", start], env=environment, check=True)

    for users in (f"--{FLAG}=false", f"--xla_dump_to=x --{FLAG}=true"):
        monkeypatch.setenv("XLA_FLAGS", users)
        compiler_flags.add(jaxlib)
        assert compiler_flags.os.environ["XLA_FLAGS"] == users

    # Of two libraries one may be another version, without the flag.
    monkeypatch.setenv("XLA_FLAGS", "")
    other = tmp_path / "xla_cuda_plugin.so"
    other.write_bytes(f"{FLAG}_of_old\0".encode())
    compiler_flags.add([*jaxlib, other])
    assert compiler_flags.os.environ["XLA_FLAGS"] == ""

    # Without a GPU's plugin there is nothing to set.
    compiler_flags.set_for_gpus()
    assert compiler_flags.os.environ["XLA_FLAGS"] == ""
