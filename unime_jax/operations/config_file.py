"""The config of a job in its work directory, as whoever reads the results finds it."""

import dataclasses
import json

import jax
from ml_collections import ConfigDict

from unime_jax import files


def write_config(workdir: files.Path, config_dict: ConfigDict) -> None:
    """Leaves the whole config in <workdir>/config.json."""
    if jax.process_index() == 0:
        text = json.dumps(config_dict.to_dict(), indent=2, default=dataclasses.asdict) + "\n"
        files.write_whole(workdir / "config.json", text)  # half of it would count as a change
