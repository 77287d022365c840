"""Messages of other libraries that say nothing to a user of this one, each by its words."""

import logging

from absl import logging as absl_logging

# Logger -> how its messages begin.
SILENCED = {
    # Orbax registers a second handler for jax.Array whenever it is imported.
    "absl": ("Type handler registry type",),
    # Nothing here wants torch: transformers reads configurations and tokenizers.
    "transformers": ("PyTorch was not found.",),
}


class _Silence(logging.Filter):
    """Lets through what does not begin with any of these words."""

    def __init__(self, beginnings: tuple[str, ...]):
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginnings)


def silence() -> None:
    """Filters the messages of `SILENCED`; to be called before those libraries are imported."""
    absl_logging.get_absl_logger()  # of a class of its own, which must be there before its name
    for name, beginnings in SILENCED.items():
        logging.getLogger(name).addFilter(_Silence(beginnings))
