"""Methods that take the fields of a dataclass as typed keywords, without listing them twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

__all__ = ["takes_fields_of"]

Owner = TypeVar("Owner")
Fields = ParamSpec("Fields")
Made = TypeVar("Made")


def takes_fields_of(
    options: Callable[Fields, object],
) -> Callable[[Callable[..., Made]], Callable[Concatenate[Owner, Fields], Made]]:
    """Give a method `(self, **options)` the signature of a dataclass.

    Type checkers, editors and `help` then show each field with its type and default.

    Args:
        options: The dataclass.
    """

    def signed(method: Callable[..., Made]) -> Callable[Concatenate[Owner, Fields], Made]:
        own = inspect.signature(method)
        fields = inspect.signature(options).parameters.values()
        method.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[next(iter(own.parameters.values())), *fields]
        )
        return method

    return signed
