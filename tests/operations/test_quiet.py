"""What other libraries say for nothing is silenced by its words, and nothing else is."""

import logging
import os
import subprocess
import sys

from tests.jobs import tiny_run
from tests.tables import for_each
from unime_jax.operations import quiet


@for_each(("name", "beginnings"), quiet.SILENCED.items())
def test_only_these_words(name, beginnings, caplog):
    logger = logging.getLogger(name)
    logger.addHandler(caplog.handler)  # transformers' messages go no further than its own
    try:
        for words in beginnings:
            logger.warning("%s and so on", words)
        logger.warning("something else, %s", beginnings[0])
    finally:
        logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {
        f"something else, {beginnings[0]}"
    }


def test_libtpu_is_answered_where_there_is_no_tpu(monkeypatch):
    for name in quiet.NO_TPU:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(quiet, "_may_have_tpu", lambda: True)
    quiet.silence()
    assert not quiet.NO_TPU.keys() & os.environ.keys()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    monkeypatch.setattr(quiet, "_may_have_tpu", lambda: False)
    quiet.silence()
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "a,b"
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"


def test_importing_everything_says_nothing():
    script = (
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *r: None if n == 'torch' else find(n, *r)\n"
        "from unime_jax import Embedder, main\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tiny_run.ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
