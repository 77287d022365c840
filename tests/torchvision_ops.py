"""Makes `import torchvision` work beside a PyTorch that its compiled operators do not load into.

transformers' processors and sentence-transformers import torchvision, of which the tests need only
Python code. Importing it fails where its binary was built for another PyTorch (CUDA beside CPU):
it describes the operators nms and qnms to torch.compile, and nobody has defined them.
"""

import importlib.abc
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: list[Any] = []  # operators live as long as their library


class _Declaring(importlib.abc.MetaPathFinder):
    """No finder of modules: it is asked for each of them before it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if fullname == "torchvision._meta_registrations":  # its binary was loaded, if it can be
            _declare()


def install() -> None:
    """Lets torchvision be imported from now on; PyTorch is imported when torchvision is.

    A declared operator raises NotImplementedError when called.
    """
    sys.meta_path.insert(0, _Declaring())


def _declare() -> None:
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms" + _BOXES)
        library.define("qnms" + _BOXES)
        _library.append(library)
