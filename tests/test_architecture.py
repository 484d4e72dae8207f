"""The picture in docs/architecture.md, held against every import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Lower layers first: a module may import from its own layer's package and from what stands before.
LAYERS = [
    {"errors"},
    {"parsing"},
    {"confidence", "files", "settings"},
    {"pretrain_settings"},
    {"recipe"},
    {"processes"},
    {"console"},
    {"run_files"},
    {"rundir"},
    {"export_record"},
    {"sparse", "data", "bench"},
    {"models"},
    {"engine"},
    {"parts", "probe", "provenance"},
    {"tasks"},
    {"pretrain"},
    {"target_cache"},
    {"distill"},
    {"finetune"},
    {"serving"},
    {"evaluate", "predict", "survey"},
    {"embed", "export_options"},
    {"exportable"},
    {"bundles"},
    {"export"},
    {"comparison"},
    {"doctor", "tables"},
    {"report"},
    {"demo"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports_of(file: Path) -> set[str]:
    """Absolute module names that a file imports, anywhere in it."""
    tree = ast.parse(file.read_text())
    package = file.relative_to(ROOT).parts[:-1]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def part_of(module: str) -> str | None:
    """`hgkd_edge.models.vit` -> `models`; None for what is not a part of the package."""
    names = module.split(".")
    return names[1] if names[0] == "hgkd_edge" and len(names) > 1 and names[1] in LEVEL else None


def test_every_part_of_the_package_has_its_place_in_the_layers() -> None:
    entries = {
        path.stem
        for path in (ROOT / "hgkd_edge").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file())
        and not path.name.startswith("_")
    }

    assert entries == set(LEVEL)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "hgkd_edge").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT))
)
def test_imports_point_down(file: Path) -> None:
    own = part_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
    if own is None:
        return

    for module in imports_of(file):
        other = part_of(module)
        if other is not None and other != own:
            assert LEVEL[other] < LEVEL[own], f"{own} imports {module}"


def test_exporters_know_nothing_of_the_rest() -> None:
    for file in (ROOT / "exporters").rglob("*.py"):
        assert not any(name.startswith("hgkd_edge") for name in imports_of(file)), file


def test_the_sparse_engine_could_be_lifted_out() -> None:
    for file in (ROOT / "hgkd_edge" / "sparse").rglob("*.py"):
        parts = {part_of(name) for name in imports_of(file)}
        assert parts <= {None, "sparse", "errors"}, file


@pytest.mark.parametrize(
    "module",
    ["hgkd_edge.cli", "hgkd_edge.recipe", "hgkd_edge.rundir", "hgkd_edge.bench", "exporters"],
)
def test_what_starts_fast_or_runs_on_the_edge_never_loads_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules, 'timm' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False"]
