"""What other libraries say for nothing is silenced by its words, and nothing else is."""

import logging
import os

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
