"""Whether every file that has its final name is whole."""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

__all__ = ["leftovers", "problems", "results"]


def problems(root: Path) -> list[str]:
    """What is wrong with the files below a folder, one line each; temporary names do not count."""
    found = []
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if hidden or file.is_symlink():
            continue
        try:
            _read(file)
            found += [f"{file}: {line}" for line in _recorded(file)]
        except Exception as error:
            found.append(f"{file}: {type(error).__name__}: {error}")
    return found


def leftovers(root: Path) -> list[str]:
    """Temporary files and folders."""
    names = (".unproven-*", ".*.tmp")
    return [str(path.relative_to(root)) for name in names for path in root.rglob(name)]


def results(root: Path, pattern: str) -> dict[str, str]:
    """Digest by name of the files that a pattern names: of tensors where a file holds tensors."""
    return {
        str(file.relative_to(root)): _digest(file)
        for file in sorted(root.glob(pattern))
        if file.is_file()
    }


def _read(file: Path) -> None:
    kind = file.suffix
    if kind == ".json":
        json.loads(file.read_text())
    elif kind == ".jsonl":
        *lines, unfinished = file.read_text().split("\n")  # a log grows: its end may be cut
        for line in lines:
            json.loads(line)
        assert len(unfinished) < 10_000
    elif kind == ".yaml":
        assert isinstance(yaml.safe_load(file.read_text()), dict)
    elif kind == ".safetensors":
        load_file(file)
    elif kind == ".pt":
        torch.load(file, map_location="cpu", weights_only=True)
        recorded = file.with_name(f"{file.name}.sha256").read_text()
        assert _sha256(file) in recorded, "is not the checkpoint that its .sha256 names"
    elif kind == ".onnx":
        onnx.checker.check_model(onnx.load(file))
    elif kind == ".html":
        assert file.read_text().rstrip().endswith("</html>"), "is cut off"
    elif kind in (".png", ".jpg", ".webp"):
        with Image.open(file) as image:
            image.load()
    elif kind == ".npz":
        with np.load(file) as content:
            assert all(content[name] is not None for name in content.files)
    elif kind == ".npy":
        np.load(file)
    elif kind in (".svg", ".xml"):
        xml.etree.ElementTree.parse(file)
    elif kind == ".md":
        assert file.read_text().endswith("\n"), "is cut off"
    else:
        grows = ".tfevents." in file.name  # as a log does
        assert grows or kind in (".txt", ".sha256"), "is of no known kind"


def _recorded(manifest: Path) -> Iterator[str]:
    """Files that a manifest records and that are missing or differ."""
    if manifest.name != "manifest.json":
        return
    for name, entry in json.loads(manifest.read_text()).get("artifacts", {}).items():
        file = manifest.parent / name
        if not file.is_file():
            yield f"records {name}, which is not there"
        elif _sha256(file) != entry["sha256"]:
            yield f"records another {name}"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _digest(file: Path) -> str:
    if file.suffix != ".safetensors" and file.suffix != ".pt":
        return _sha256(file)
    content: Any = (
        load_file(file)
        if file.suffix == ".safetensors"
        else torch.load(file, map_location="cpu", weights_only=True)
    )
    digest = hashlib.sha256()
    for name in sorted(content):
        value = content[name]
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
