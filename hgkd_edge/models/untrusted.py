"""Checks names and arguments of timm models from files: only an architecture is allowed.

Recipes, file metadata and model cards are shared, so they are untrusted. `timm.create_model` also
takes files to load, URLs to fetch and names of repositories. Untrusted files must not choose any of
these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from timm.models import model_entrypoint
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from hgkd_edge.errors import RecipeError
from hgkd_edge.models.meta import on_meta

__all__ = ["bounded", "check_args", "check_name", "is_array", "not_finite", "require_stored"]

LARGEST_NUMBER = 16_384  # limit on a width, depth or side
LARGEST_NETWORK = 4_000_000_000  # limit on the number of weights
LARGEST_REPEATED = 2**26  # limit on bytes that a checkpoint's tensors claim but do not store
MOST_TENSORS = 20_000  # parameters; the deepest of timm's networks have a few thousand
LONGEST_TEXT, DEEPEST, MOST_VALUES = 64, 4, 1_000
_NAME = re.compile(r"[A-Za-z0-9_]{1,80}(\.[A-Za-z0-9_]{1,80})*")
_TEXT = re.compile(r"[A-Za-z0-9_+-]*")
# Arguments that choose what is loaded or from where, not the architecture, whatever the signature.
_LOADING = re.compile(
    r"pretrained|checkpoint|cache|url|hub|filter|state_dict|source|(^|_)(file|cfg)"
)


class _TooLargeError(Exception):
    """A network larger than every published one."""


def check_name(key: str, name: str) -> None:
    """Refuse names that are URLs, such as `hf-hub:...` and `local-dir:...`.

    Raises:
        RecipeError: The name is not the plain name of a timm model.
    """
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"{key} = {name[:80]!r}: is not the name of a timm model",
            hint="use a plain name such as resnet18: addresses and folders are not loaded",
        )


def check_args(key: str, name: str, args: dict[str, object]) -> None:
    """Refuse arguments that are not plain numbers and strings of the model's architecture.

    Args:
        key: Recipe key of the arguments, such as `student.args`.
        name: A model that timm knows.
        args: The arguments as read.

    Raises:
        RecipeError: An argument does not belong to the architecture, is not plain data, or makes a
            network larger than any published one.
    """
    allowed = _parameters(name) if args else frozenset()
    for argument in args:
        if argument not in allowed:
            raise RecipeError(
                f"{key}.{str(argument)[:80]}: is not an architecture argument of '{name}'",
                hint=f"remove it; {key} takes arguments such as channels, depth or embed_dim",
            )
    if sum(1 for _ in _values(key, args)) > MOST_VALUES:
        raise RecipeError(f"{key}: has more than {MOST_VALUES} values", hint="shorten it")


def _parameters(name: str) -> frozenset[str]:
    """The arguments that the model classes of an architecture's module accept."""
    module = sys.modules[model_entrypoint(name).__module__]
    own = [value for value in vars(module).values() if _is_of(value, module.__name__)]
    named = {p for value in own for p in inspect.signature(value).parameters}
    return frozenset(p for p in named if not _LOADING.search(p))


def _is_of(value: Any, module: str) -> bool:
    if getattr(value, "__module__", "") != module:
        return False
    if inspect.isclass(value):
        return issubclass(value, nn.Module) or dataclasses.is_dataclass(value)
    return inspect.isfunction(value) and value.__name__.startswith("_gen_")


def _values(key: str, value: Any, depth: int = 0) -> Iterator[Any]:
    """Every value of nested arguments; each must be a number or a string."""
    if depth <= DEEPEST and isinstance(value, dict):
        for inner, each in value.items():
            if not isinstance(inner, str) or _LOADING.search(inner):
                raise RecipeError(f"{key}.{str(inner)[:80]}: is not plain data", hint="remove it")
            yield from _values(f"{key}.{inner[:80]}", each, depth + 1)
    elif depth <= DEEPEST and isinstance(value, list | tuple):
        for each in value:
            yield from _values(key, each, depth + 1)
    elif _is_plain(value):
        yield value
    else:
        raise RecipeError(
            f"{key} = {repr(value)[:80]}: is not an architecture argument",
            hint=f"use numbers up to {LARGEST_NUMBER}, plain words, and lists of them",
        )


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_TEXT and _TEXT.fullmatch(value) is not None
    if isinstance(value, int | float):
        return abs(value) <= LARGEST_NUMBER
    return value is None


def require_stored(content: Any) -> None:
    """Refuse tensors that claim more memory than a checkpoint's bytes hold.

    A file of one kilobyte may describe tensors of any size that repeat the same byte. The first
    copy of them would fill the memory.

    Args:
        content: The loaded, nested content.

    Raises:
        ValueError: The tensors exceed the stored bytes by more than `LARGEST_REPEATED`.
    """
    repeated, left = 0, [content]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            left += each.values()
        elif isinstance(each, list | tuple):
            left += each
        elif is_array(each):
            size = each.numel() * each.element_size()
            repeated += max(0, size - each.untyped_storage().nbytes())
            if repeated > LARGEST_REPEATED:
                raise ValueError(f"holds a tensor {list(each.shape)} that it does not store")


def is_array(value: Any) -> bool:
    """Whether a value is a tensor of real numbers in memory, as every weight is."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_complex() or value.is_quantized)
    )


def not_finite(state: dict[str, torch.Tensor]) -> str:
    """Name of the first tensor that holds NaN or infinity; '' if there is none."""
    return next((name for name, value in state.items() if not torch.isfinite(value).all()), "")


@contextlib.contextmanager
def bounded(key: str) -> Iterator[None]:
    """Count the weights of networks created on the meta device while the context is active.

    Raises:
        RecipeError: The count exceeds that of any published network.
    """
    total, count = 0, 0

    def add(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        nonlocal total, count
        total, count = total + (parameter.numel() if parameter is not None else 0), count + 1
        if total > LARGEST_NETWORK or count > MOST_TENSORS:
            raise _TooLargeError

    handle = register_module_parameter_registration_hook(add)
    try:
        with on_meta(), torch.random.fork_rng(devices=[]):
            yield
    except _TooLargeError:
        raise RecipeError(
            f"{key}: makes a network of more than {LARGEST_NETWORK:,} weights or {MOST_TENSORS:,} "
            "tensors",
            hint="use smaller widths and depths",
        ) from None
    finally:
        handle.remove()
