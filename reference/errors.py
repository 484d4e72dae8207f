"""All errors that the tool prints, with their hints, as the source writes them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import exporters.errors
import hgkd_edge.errors
from hgkd_edge.bench.edge.ssh import REASONS
from hgkd_edge.errors import UserError
from reference.markdown import code, table

ROOT = Path(__file__).parents[1]
SOURCES = ("exporters", "hgkd_edge")
VALUE = "..."
KINDS: dict[str, type[UserError]] = {
    name: kind
    for module in (exporters.errors, hgkd_edge.errors)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, UserError)
}
# Its arguments are not the message: the class writes it.
WRITES_ITS_OWN = "MissingPackageError"

INTRODUCTION = """# Errors

Every error that hgkd-edge raises itself, with its hint, by type. `...` stands for a value. For the
frequent ones, see
[Fix an error](../troubleshooting.md).

"""


@dataclass(frozen=True, order=True)
class Message:
    """One error; `...` stands for a value in `text` and `hint`."""

    kind: str
    text: str
    hint: str


def page() -> str:
    """The page as Markdown."""
    found = sorted(set(messages()))
    parts = [INTRODUCTION]
    for name in sorted({message.kind for message in found}):
        kind = KINDS[name]
        rows = [(code(one.text), code(one.hint)) for one in found if one.kind == name]
        parts.append(f"## {name}\n\n{kind.__doc__}\n\nExit code {kind.exit_code}.\n")
        parts.append(table(("error", "hint"), rows))
    return "\n".join(parts)


def messages() -> Iterator[Message]:
    """The errors that the source raises with their own text."""
    for package in SOURCES:
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and node.args and _kind(node) in KINDS:
                    hints = [_text(given.value) for given in node.keywords if given.arg == "hint"]
                    message = Message(_kind(node), _text(node.args[0]), "".join(hints))
                    if re.search(r"\w", message.text) and message.kind != WRITES_ITS_OWN:
                        yield message
    for _, text, hint in REASONS:
        yield Message("DeviceError", _filled(text), _filled(hint))


def _filled(template: str) -> str:
    return re.sub(r"\{\w+\}", VALUE, template)


def _kind(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _text(node: ast.expr) -> str:
    """The text that an expression gives, as far as it is written there."""
    text = re.sub(r"(\.\.\.){2,}", VALUE, _parts(node))
    return "" if text == VALUE else text


def _parts(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_parts, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _parts(node.left) + _parts(node.right)
    return VALUE
