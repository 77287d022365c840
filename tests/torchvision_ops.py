"""Makes `import torchvision` work beside a PyTorch that its compiled operators do not load into.

transformers' processors and sentence-transformers import torchvision, of which the tests need only
Python code. Importing it fails where its binary was built for another PyTorch (CUDA beside CPU):
it describes the operators nms and qnms to torch.compile, and nobody has defined them. transformers
imports torchvision by itself wherever it is installed, so this comes first.
"""

import sys

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: list[torch.library.Library] = []  # operators live as long as their library


def import_torchvision() -> None:
    """Imports torchvision; where its operators are missing, declares them first.

    A declared operator raises NotImplementedError when called.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        for name in [x for x in sys.modules if x.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # a half-imported package
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms" + _BOXES)
        library.define("qnms" + _BOXES)
        _library.append(library)
        import torchvision  # noqa: F401
