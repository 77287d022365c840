"""Shapes and dtypes of the package's arrays, checked at every call while the tests run.

jaxtyping's import hook compiles modules anew, which takes time: it is given those that import
jaxtyping, for no others annotate arrays. Functions and dataclasses that do are wrapped, and
beartype looks at those annotations alone: stand-ins for other objects are the tests' business. All
others stay as they are, and can be pickled by worker processes.
"""

import contextlib
import inspect
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, get_args

import beartype
import jax
import jaxtyping

Function = Callable[..., Any]


def install() -> None:
    """Wraps what is imported of the package from now on, in this process only."""
    jaxtyping.install_import_hook(_modules_with_arrays(), "tests.shapes.checked")
    wrap = jaxtyping.jaxtyped

    def wrap_if_arrays(*, typechecker: Function) -> Function:
        return lambda target: (
            wrap(target, typechecker=typechecker) if _annotated(target) else target
        )

    jaxtyping.jaxtyped = wrap_if_arrays


def _modules_with_arrays() -> list[str]:
    """Names of the modules that import jaxtyping, from their text."""
    root = pathlib.Path(__file__).parents[1]
    return [
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for file in (root / "unime_jax").rglob("*.py")
        if "jaxtyping" in file.read_text()
    ]


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """For tests of what functions themselves say of wrong shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def checked(function: Function) -> Function:
    """`function` with beartype on the annotations that hold an array.

    A dataclass that is a pytree is also made of what is no array: of shardings, or of the
    placeholders of `jax.tree`. Its fields are checked if all of them are arrays.
    """
    annotations = {
        name: annotation if _holds_array(annotation) else Any
        for name, annotation in function.__annotations__.items()
    }
    function.__annotations__ = annotations
    check = beartype.beartype(function)
    if function.__name__ != "__init__":
        return check
    signature = inspect.signature(function)
    fields = [name for name, annotation in annotations.items() if annotation is not Any]

    def check_arrays(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        values = [given[name] for name in fields if given.get(name) is not None]
        arrays = values and all(map(_is_array, values))
        return (check if arrays else function)(*args, **kwargs)

    return check_arrays


def _annotated(target: Any) -> bool:
    """Whether a function or class annotates any array."""
    return any(map(_holds_array, target.__annotations__.values()))


def _holds_array(annotation: Any) -> bool:
    """Whether `annotation` is of arrays; NumPy's may stand for JAX's, as in JAX's own functions."""
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        if annotation.array_type is jax.Array:
            annotation.array_type = Any
        return True
    return any([_holds_array(part) for part in get_args(annotation)])


def _is_array(field: Any) -> bool:
    if isinstance(field, tuple):
        return all(_is_array(part) for part in field)
    # float0: the gradient of an integer.
    return hasattr(field, "shape") and getattr(field, "dtype", None) not in (
        None,
        jax.dtypes.float0,
    )
