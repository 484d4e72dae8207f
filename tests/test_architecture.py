"""The layers in docs/architecture.md, compared with every import."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(file for name in ("hgkd_edge", "exporters") for file in (ROOT / name).rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


LINES = 60, 400  # at most, of a function and of a file
MODULES = {module_of(file): file for file in FILES}


def layers() -> dict[str, list[str]]:
    """Name -> parts, top first, as the page lists them."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("| layer | parts |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    return {name.strip(): re.findall(r"`(\w+)`", parts) for name, parts in rows}


LAYERS = layers()
# The higher the number, the higher the layer.
LEVEL = {part: -level for level, parts in enumerate(LAYERS.values()) for part in parts}


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports_of(nodes: Iterator[ast.AST], file: Path) -> set[str]:
    """Absolute names of the modules that these statements import."""
    package = file.relative_to(ROOT).parts[:-1]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {module}
    return found


@functools.cache
def all_imports(file: Path) -> set[str]:
    """What a file imports, anywhere in it."""
    return imports_of(ast.walk(tree_of(file)), file)


def at_start(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported."""
    for node in body:
        if isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.dump(node.test):
                yield from at_start(node.body)
        elif isinstance(node, ast.Try):
            yield from at_start(node.body)
        else:
            yield node


def part_of(module: str) -> str | None:
    """`hgkd_edge.models.vit` -> `models`; None for modules outside both packages."""
    names = module.split(".")
    if names[0] == "exporters":
        return "exporters"
    return names[1] if names[0] == "hgkd_edge" and len(names) > 1 and names[1] in LEVEL else None


def test_every_part_has_its_place_in_one_layer() -> None:
    entries = [
        path.stem
        for path in (ROOT / "hgkd_edge").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file())
        and not path.name.startswith("_")
    ]

    assert sorted(part for parts in LAYERS.values() for part in parts) == sorted(
        [*entries, "exporters"]
    )
    assert 6 <= len(LAYERS) <= 8


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file: Path) -> None:
    own = part_of(module_of(file))
    if own is None:
        return

    for module in all_imports(file):
        other = part_of(module)
        assert other is None or LEVEL[other] <= LEVEL[own], f"{own} imports {module}"


def test_every_module_that_is_imported_exists() -> None:
    """mypy does not report this: it ignores missing modules, since extras may not be installed."""
    own = ("hgkd_edge", "exporters", "benchmarks")
    others = [file for name in ("benchmarks", "tests") for file in (ROOT / name).rglob("*.py")]
    known = MODULES.keys() | {module_of(file) for file in others} | set(own)

    missing = {
        f"{file.relative_to(ROOT)}: {module}"
        for file in [*FILES, *others]
        for module in all_imports(file)
        if module.split(".")[0] in own and module not in known
    }

    assert not missing


def test_no_module_is_imported_by_what_it_imports() -> None:
    graph = {
        module: imports_of(at_start(tree_of(file).body), file) - {module}
        for module, file in MODULES.items()
    }

    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_exporters_know_nothing_of_the_rest() -> None:
    for file in (ROOT / "exporters").rglob("*.py"):
        assert not any(name.startswith("hgkd_edge") for name in all_imports(file)), file


OPENERS = ("InferenceSession", "compile_model", "deserialize_cuda_engine", "TrtRunner")


def test_files_and_functions_are_short() -> None:
    long = {}
    for module, file in MODULES.items():
        text = file.read_text(encoding="utf-8")
        functions = [n for n in ast.walk(tree_of(file)) if isinstance(n, ast.FunctionDef)]
        sizes = {f"{module}.{n.name}": (n.end_lineno or 0) - n.lineno + 1 for n in functions}
        long |= {name: size for name, size in sizes.items() if size > LINES[0]}
        if (size := text.count("\n")) > LINES[1]:
            long[module] = size

    assert long == {}


def test_networks_are_opened_in_one_place() -> None:
    """Except by programs that run on a device, without hgkd-edge."""
    on_devices = {ROOT / "hgkd_edge" / "bench" / "edge", ROOT / "hgkd_edge" / "bundles" / "device"}
    files = [file for file in FILES if file.parent not in on_devices]

    found = {file.parent.name for file in files for name in OPENERS if name in file.read_text()}

    assert found == {"runtimes"}


def test_the_sparse_engine_could_be_lifted_out() -> None:
    for file in (ROOT / "hgkd_edge" / "sparse").rglob("*.py"):
        parts = {part_of(name) for name in all_imports(file)}
        assert parts <= {None, "sparse", "errors"}, file


@pytest.mark.parametrize(
    "module",
    [
        "hgkd_edge.cli",
        "hgkd_edge.demo",
        "hgkd_edge.recipe",
        "hgkd_edge.rundir",
        "hgkd_edge.bench",
        "hgkd_edge.report",
        "hgkd_edge.tasks.answers",
        "hgkd_edge.tasks.pictures",
        "exporters",
        "exporters.runtimes",
    ],
)
def test_what_starts_fast_or_runs_on_the_edge_never_loads_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules, 'timm' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False"]


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# Methods that PyTorch documents.
OF_TORCH = ("forward", "backward", "train", "extra_repr")


@functools.cache
def classes() -> list[ast.ClassDef]:
    nodes = (node for file in FILES for node in ast.walk(tree_of(file)))
    return [node for node in nodes if isinstance(node, ast.ClassDef)]


def definitions(node: ast.AST, owner: ast.ClassDef | None = None) -> Iterator[Any]:
    """Classes, functions and methods of a file with their class; not those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield child, owner
        if isinstance(child, ast.ClassDef):
            yield from definitions(child, child)
        elif isinstance(child, (ast.If, ast.Try)):
            yield from definitions(child, owner)


def is_explained(name: str, owner: ast.ClassDef) -> bool:
    """Whether a class, or a base class, documents its method of this name."""
    named = {ast.unparse(base).partition("[")[0] for base in owner.bases}
    own = (one for one in owner.body if isinstance(one, Definition) and one.name == name)
    return any(map(ast.get_docstring, own)) or any(
        is_explained(name, base) for base in classes() if base.name in named and base is not owner
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_public_names_have_a_docstring_and_all_parameters_a_type(file: Path) -> None:
    documented = "bench" not in file.relative_to(ROOT).parts
    for node, owner in definitions(tree_of(file)):
        private = node.name.startswith("_") or (owner is not None and owner.name.startswith("_"))
        if documented and not private and node.name not in OF_TORCH:
            explained = ast.get_docstring(node) or (owner and is_explained(node.name, owner))
            assert explained, f"{node.name} has no docstring"
    for node in ast.walk(tree_of(file)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            every += [one for one in (node.args.vararg, node.args.kwarg) if one is not None]
            bare = [one.arg for one in every if one.annotation is None]
            assert set(bare) <= {"self", "cls"}, f"{node.name}: {bare}"
            assert node.returns is not None, f"{node.name} states no result"


# A reader cannot see the fields of such a value, and mypy does not check them.
LOOSE = re.compile(r"\b(dict|Dict|Mapping|MutableMapping)\[str, Any\]")
# What is left, and why. Records, dataclasses and `Mapping[str, object]` take the place of others.
ALLOWED_LOOSE = {
    "hgkd_edge/api/result.py: Result": "a mapping for users: the fields that `--json` prints",
    "hgkd_edge/api/model.py: Prediction.record": "for users: the fields of `predict --json`",
    "hgkd_edge/api/model.py: Predictions.records": "for users: as `predict --json` prints them",
    "hgkd_edge/recipe_reference.py: recipe_schema": "a JSON schema, whose format others chose",
}
# Programs that run on a device, without hgkd-edge: no module imports their functions.
ON_DEVICES = ("bench/edge/ort_device.py", "bundles/device/")


def loose_names(node: ast.AST, owner: str = "") -> Iterator[str]:
    """Public functions, attributes, bases and aliases of a module that hold `dict[str, Any]`.

    `to_dict` is where a record becomes JSON: its fields are those of its class.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.Try):
            yield from loose_names(child, owner)
            continue
        if isinstance(child, ast.AnnAssign | ast.Assign):
            target = child.target if isinstance(child, ast.AnnAssign) else child.targets[0]
            name, text = ast.unparse(target), ast.unparse(child)
        elif isinstance(child, ast.ClassDef):
            name, text = child.name, " ".join(map(ast.unparse, child.bases))
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            result = ast.unparse(child.returns) if child.returns else ""
            name, text = child.name, f"{ast.unparse(child.args)} -> {result}"
        else:
            continue
        if name.startswith("_") or name == "to_dict":
            continue
        if LOOSE.search(text):
            yield f"{owner}{name}"
        if isinstance(child, ast.ClassDef):
            yield from loose_names(child, f"{owner}{name}.")


def test_types_and_not_dictionaries_cross_modules() -> None:
    found = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in FILES
        if not any(program in file.as_posix() for program in ON_DEVICES)
        for name in loose_names(tree_of(file))
    }

    assert found == ALLOWED_LOOSE.keys()
    assert len(ALLOWED_LOOSE) <= 5
