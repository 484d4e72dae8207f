"""Networks that have names and shapes, but no weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["on_meta"]

# What fills weights with their initial values, all in place.
_FILLING = frozenset(
    {
        *(Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_, Tensor.clamp_),
        *(Tensor.erfinv_, Tensor.mul_, Tensor.add_),
        *(nn.init.normal_, nn.init.uniform_, nn.init.constant_, nn.init.kaiming_uniform_),
    }
)


class _NothingFilled(TorchFunctionMode):
    """Skips in-place initialization of meta tensors, which hold no values."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLING:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Create networks on the meta device: names and shapes only, nothing is initialized."""
    with torch.device("meta"), _NothingFilled():
        yield
