"""SIGTERM, with something to save and without; processes of their own, because they end."""

import json
import pathlib
import signal
import subprocess
import sys
import time

from unime_jax.operations.stop import StopSignal

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Compiled code that no signal interrupts, as a compilation by XLA is.
COMPILE = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"


def start(*lines: str) -> subprocess.Popen:
    code = "\n".join(
        ["import time", "from unime_jax.operations.stop import StopSignal, STATUS", *lines]
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


ENDS = f"""
import json, os, signal, sys
found = []
for number in (signal.SIGTERM, signal.SIGINT):
    for sleeps in (False, True):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            with StopSignal():
                os.write(write, b"ready")
                if sleeps: time.sleep(60)
                {COMPILE}
            os._exit(0)
        os.read(read, 5)
        time.sleep(0.2)
        os.kill(child, number)
        began = time.monotonic()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found.append((number, sleeps, status, time.monotonic() - began))
print(json.dumps(found), flush=True)
"""


def test_without_anything_to_save_it_ends_at_once():
    """In compiled code as in Python's; in children of one process, which imports once."""
    process = start("print('ready', flush=True)", ENDS)
    found = json.loads(process.communicate(timeout=60)[0])
    assert len(found) == 4
    for number, sleeps, status, seconds in found:
        assert status == 128 + number and seconds < 5, (number, sleeps)

    # With something to save the caller ends it
    process = start(
        "with StopSignal() as stop:",
        "  stop.unsaved = True",
        "  print('ready', flush=True)",
        "  while not stop.told: time.sleep(0.01)",
        "  time.sleep(0.5)",
        "  print('saved', flush=True)",
        "raise SystemExit(STATUS)",
    )
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # impatience changes nothing
    assert process.communicate(timeout=30)[0] == b"saved\n" and process.returncode == 143

    # Ctrl c saves and a second one ends at once
    lines = (
        "with StopSignal() as stop:",
        "  stop.unsaved = True",
        "  print('ready', flush=True)",
        "  while not stop.told: time.sleep(0.01)",
        "  print('told', flush=True)",
        "  time.sleep({})",
        "  print('saved', flush=True)",
        "raise SystemExit(stop.status)",
    )
    process = start(*(line.format(0.3) for line in lines))
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == b"told\nsaved\n" and process.returncode == 130
    process = start(*(line.format(60) for line in lines))
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == b"told\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == b"" and process.returncode == 130

    # Everything is as before afterwards
    before = signal.getsignal(signal.SIGTERM)
    for _ in range(3):
        with StopSignal() as stop:
            assert signal.getsignal(signal.SIGTERM) != before and not stop.told
        assert signal.getsignal(signal.SIGTERM) == before
        assert signal.set_wakeup_fd(-1) == -1
