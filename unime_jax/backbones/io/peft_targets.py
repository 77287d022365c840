"""Target modules of a PEFT adapter's configuration, by PEFT's own rules.

PEFT loads an adapter whose file lacks some target modules without an error: they keep the weights
of the base.
"""

import re
from collections.abc import Mapping
from typing import Any

ALL_LINEAR = "all-linear"


def is_target(config: Mapping[str, Any], module: str, *, linear: bool) -> bool:
    """Whether adapter_config.json targets a module.

    The rules of `peft.tuners.tuners_utils.check_target_module_exists`: a string is a regular
    expression of whole names, a list has names or ends of names; `layers_to_transform` and
    `layers_pattern` choose among what a list's ends of names match.

    Args:
      config: the content of adapter_config.json; `target_modules` must be there.
      module: the module's name in the model that the adapter was trained on.
      linear: whether it is a linear layer, which "all-linear" stands for; convolutions and
        embeddings are not.
    """
    excluded = config.get("exclude_modules")
    if excluded and _named(excluded, module):
        return False
    targets = config["target_modules"]
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return linear
    if isinstance(targets, str) or module in targets:
        return _named(targets, module)
    return _named(targets, module) and _in_layers(config, module)


def _named(names: str | list[str], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _in_layers(config: Mapping[str, Any], module: str) -> bool:
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern")
    if layers is None or layers == []:
        return True
    stacks = [r".*?\.[^.]*"]  # the first number in a name is the layer's
    if patterns:
        names = [patterns] if isinstance(patterns, str) else patterns
        stacks = [rf"(?:^|.*?\.){name}" for name in names]
    for stack in stacks:
        if match := re.match(rf"{stack}\.(?P<layer>\d+)\.", module):
            return int(match["layer"]) in ([layers] if isinstance(layers, int) else layers)
    return False
