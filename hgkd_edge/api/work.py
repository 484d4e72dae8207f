"""What all trainings of the API share: their settings, and the packages that they need."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence

from hgkd_edge.errors import MissingPackageError

__all__ = ["Overrides", "as_assignments", "require_training_packages"]

_PAIR = re.compile(r"\\ud[89ab]..\\ud[c-f]..")
Overrides = Mapping[str, object] | Sequence[str]


def as_assignments(overrides: Overrides) -> list[str]:
    """`{"train.epochs": 10}` or `["train.epochs=10"]` as the latter, as `--set` takes them."""
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [f"{key}={_quoted(value)}" for key, value in overrides.items()]


def _quoted(value: object) -> str:
    """A value as JSON that is YAML too: YAML reads an emoji's two escapes as two characters."""
    return _PAIR.sub(lambda pair: _unescaped(pair[0]), json.dumps(value, default=str))


def _unescaped(pair: str) -> str:
    halves = pair.encode().decode("unicode_escape")
    return halves.encode("utf-16", "surrogatepass").decode("utf-16")


def require_training_packages(what: str) -> None:
    """Refuse to train in the base install, which has no PyTorch.

    Raises:
        MissingPackageError: Names the extra.
    """
    for package in ("torch", "timm"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(what, package=package, extra="train")
