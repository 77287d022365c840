"""Filters for log messages of other libraries that say nothing to a user of this one."""

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
    """A log filter that drops messages with one of these beginnings."""

    def __init__(self, beginnings: tuple[str, ...]):
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginnings)


def silence() -> None:
    """Filters the messages of `SILENCED`; call it before those libraries are imported.

    On a machine without a TPU libtpu, if installed, is kept quiet as well.
    """
    absl_logging.get_absl_logger()  # of a class of its own, which must be there before its name
    for name, beginnings in SILENCED.items():
        logging.getLogger(name).addFilter(_Silence(beginnings))
    if not _may_have_tpu():
        tell_libtpu_of_no_tpu()


def tell_libtpu_of_no_tpu() -> None:
    """Sets the environment variables that libtpu would ask a metadata server for, where unset.

    Without a TPU it gets no answer and complains ("Failed to find host bounds", "E0000 ...
    unexpected worker hostname"). They do not decide what it compiles for.
    """
    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)


def _may_have_tpu() -> bool:
    """True if a device is named as TPUs are, or a PCI device has their vendor's number."""
    devices, buses = pathlib.Path("/dev"), pathlib.Path("/sys/bus/pci/devices")
    if any(devices.glob("accel*")) or any(devices.glob("vfio/[0-9]*")):
        return True
    return any(file.read_text().strip() == "0x1ae0" for file in buses.glob("*/vendor"))
