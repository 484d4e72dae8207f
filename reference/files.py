"""Every source file of the two packages, with the first line of its description."""

from __future__ import annotations

import ast
from itertools import groupby
from pathlib import Path

from reference.markdown import code, table

ROOT = Path(__file__).parents[1]
SOURCES = ("hgkd_edge", "exporters")
INTRODUCTION = """# Files

What is where in the source. How the parts depend on each other:
[Architecture](../architecture.md).

"""


def page() -> str:
    """The page as Markdown: a table per folder."""
    found = [file for name in SOURCES for file in (ROOT / name).rglob("*.*")]
    found = [file for file in found if file.suffix in (".py", ".sh")]
    parts = [INTRODUCTION]
    for folder, files in groupby(sorted(found, key=_folder_first), lambda file: file.parent):
        rows = [(code(file.name), summary(file)) for file in files if file.stem[:2] != "__"]
        about = folder / "__init__.py"
        parts.append(f"## {folder.relative_to(ROOT)}/\n\n{summary(about)}\n")
        parts.append(table(("file", "what it does"), rows))
    return "\n".join(parts)


def summary(file: Path) -> str:
    """The first sentence or two of a file: of its docstring, or of a shell script's comments."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    return text.partition("\n")[0].removeprefix("# ")


def _folder_first(file: Path) -> tuple[Path, str]:
    return file.parent, file.name
