"""Messages of other libraries that say nothing to a user of this one, each by its words."""

import logging
import os
import pathlib

from absl import logging as absl_logging

# Logger -> how its messages begin.
SILENCED = {
    # Orbax registers a second handler for jax.Array whenever it is imported.
    "absl": ("Type handler registry type",),
    # Nothing here wants torch: transformers reads configurations and tokenizers.
    "transformers": ("PyTorch was not found.",),
}

NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}


class _Silence(logging.Filter):
    """Lets through what does not begin with any of these words."""

    def __init__(self, beginnings: tuple[str, ...]):
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginnings)


def silence() -> None:
    """Filters the messages of `SILENCED`; to be called before those libraries are imported.

    Where there is no TPU, libtpu, if it is installed, has nothing to say either.
    """
    absl_logging.get_absl_logger()  # of a class of its own, which must be there before its name
    for name, beginnings in SILENCED.items():
        logging.getLogger(name).addFilter(_Silence(beginnings))
    if not _may_have_tpu():
        tell_libtpu_of_no_tpu()


def tell_libtpu_of_no_tpu() -> None:
    """Answers what libtpu asks on a machine without a TPU, unless the environment does.

    It would ask a cloud's metadata server which TPU there is, and complain without an answer
    ("Failed to find host bounds", "E0000 ... unexpected worker hostname"). What it compiles for
    does not follow from this.
    """
    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)


def _may_have_tpu() -> bool:
    """Whether there is a device of the names that TPUs have, or a PCI device of their maker."""
    devices, buses = pathlib.Path("/dev"), pathlib.Path("/sys/bus/pci/devices")
    if any(devices.glob("accel*")) or any(devices.glob("vfio/[0-9]*")):
        return True
    return any(file.read_text().strip() == "0x1ae0" for file in buses.glob("*/vendor"))
