"""The sidecar of an engine: what it was built from, by which release, for which GPU.

Deserializing an engine runs code from the file, and an engine of another release or GPU fails with
unclear errors. So an engine is loaded only when its sidecar exists and matches. This guards against
mix-ups and damage. It is not a signature: anyone who can write both files can forge it. Therefore
engines built on this machine are recorded by their sha256 in a private folder of the user
(`remember_engine`), and others need the user's explicit consent.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ._trt_compat import Flavor, gpu_name
from .atomic_files import file_sha256, new_artifact
from .errors import ExportError
from .network_files import network_digest

__all__ = [
    "Sidecar",
    "read_sidecar",
    "remember_engine",
    "require_built_here",
    "require_own_engine",
    "sidecar_path",
    "write_sidecar",
]

_REBUILD = "build the engine again here, from its ONNX file"
_MOST_BYTES = 1 << 20  # of a sidecar; usual ones have a kilobyte
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _all(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


# The JSON form of each field type.
_FITS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: type(value) is str,
    "str | None": lambda value: value is None or type(value) is str,
    "list[str]": lambda value: _all(str, value),
    "dict[str, list[int]]": lambda value: (
        isinstance(value, dict) and all(_all(int, shape) for shape in value.values())
    ),
}


@dataclass(frozen=True)
class Sidecar:
    """What an engine is. `gpu` for TensorRT, `targets` (compute capabilities) for TensorRT-RTX.

    Raises:
        TypeError: A field has the wrong type: a sidecar may come from anywhere.
        ValueError: A digest is malformed, or the profile lacks a shape or has an invalid one.
    """

    engine_sha256: str
    onnx_sha256: str
    backend: str
    version: str
    gpu: str | None
    targets: list[str]
    precision: str
    profile: dict[str, list[int]]

    def __post_init__(self) -> None:
        for field in fields(self):
            if not _FITS[str(field.type)](getattr(self, field.name)):
                raise TypeError(f"'{field.name}' is not of type {field.type}")
        if not all(_SHA256.fullmatch(each) for each in (self.engine_sha256, self.onnx_sha256)):
            raise ValueError("'engine_sha256' or 'onnx_sha256' is not a sha256")
        if not {"min", "opt", "max"} <= self.profile.keys():
            raise ValueError("'profile' lacks min, opt or max")
        if not all(shape and min(shape) > 0 for shape in self.profile.values()):
            raise ValueError("'profile' holds a shape without a size")


def sidecar_path(engine: str | Path) -> Path:
    """`resnet18.plan` -> `resnet18.plan.json`."""
    engine = Path(engine)
    return engine.with_name(engine.name + ".json")


def write_sidecar(engine: str | Path, sidecar: Sidecar) -> Path:
    """Write `<engine>.json`; returns its path."""
    path = sidecar_path(engine)
    with new_artifact(path) as temporary:
        temporary.write_text(json.dumps(asdict(sidecar), indent=2) + "\n", encoding="utf-8")
    return path


def read_sidecar(engine: str | Path) -> Sidecar:
    """Read the sidecar of an engine.

    Raises:
        ExportError: Engine or sidecar missing, or the sidecar was not written by this package.
    """
    engine, path = Path(engine), sidecar_path(engine)
    if not engine.is_file():
        raise ExportError(f"no engine at '{engine}'", hint="check the path, or build one first")
    try:
        content: dict[str, Any] = json.loads(_text_of(path))
        known = {field.name for field in fields(Sidecar)}
        return Sidecar(**{key: value for key, value in content.items() if key in known})
    except FileNotFoundError as error:
        raise ExportError(
            f"engine '{engine}' has no sidecar '{path.name}', so nothing says where it comes from",
            hint=_REBUILD,
        ) from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(
            f"'{path}' is not an engine's sidecar: {_reason(error)}", hint=_REBUILD
        ) from error


def _text_of(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    with path.open("rb") as stream:
        content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    return content.decode()


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].removeprefix("Sidecar.__init__() ")[:200]


def remember_engine(engine: str | Path, folder: Path) -> None:
    """Note that an engine was built on this machine.

    Args:
        engine: The engine file.
        folder: A private folder of the user, outside any shared folder.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / file_sha256(engine)).touch()


def require_built_here(engine: str | Path, content: bytes, folder: Path) -> None:
    """Refuse an engine that `remember_engine` has not noted: an engine is machine code.

    Raises:
        ExportError: It was built elsewhere, or other users can write to the folder.
    """
    if others := _who_else_writes(folder):
        raise ExportError(
            f"'{folder}', which lists the engines built here, can be written by {others}",
            hint=f"restrict it to your user: chmod go-w {shlex.quote(str(folder))}; then build the "
            "engine again here",
        )
    if not (folder / hashlib.sha256(content).hexdigest()).is_file():
        raise ExportError(
            f"engine '{engine}' was not built on this machine, and loading an engine runs its code",
            hint=f"{_REBUILD}; or use --trust-engine if you know who built it",
        )


def _who_else_writes(folder: Path) -> str:
    """Who else can write to a folder; '' if only this user."""
    if not folder.is_dir() or not hasattr(os, "geteuid"):
        return ""
    about = folder.stat()
    if about.st_uid not in (0, os.geteuid()):
        return "its owner, another user"
    return "other users" if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


def require_own_engine(
    engine: str | Path, content: bytes, flavor: Flavor, *, onnx_path: str | Path | None = None
) -> Sidecar:
    """Refuse an engine that is damaged, or not made by this release for this GPU.

    Args:
        engine: The engine file.
        content: Its bytes, exactly those that would be loaded.
        flavor: The TensorRT that would load it.
        onnx_path: When given, the engine must have been built from exactly this network.

    Raises:
        ExportError: Names the reason.
    """
    sidecar = read_sidecar(engine)
    if hashlib.sha256(content).hexdigest() != sidecar.engine_sha256:
        raise ExportError(
            f"engine '{engine}' is not the file its sidecar describes (sha256 differs): "
            "it is damaged or was replaced",
            hint=_REBUILD,
        )
    made_by, here = f"{sidecar.backend} {sidecar.version}", f"{flavor.name} {flavor.version}"
    if made_by != here:
        raise ExportError(
            f"engine '{engine}' was built by {made_by}; this is {here}", hint=_REBUILD
        )
    present = gpu_name()
    if sidecar.gpu and present != sidecar.gpu:
        raise ExportError(
            f"engine '{engine}' was built for {sidecar.gpu}; here is {present or 'none'}",
            hint=_REBUILD,
        )
    if onnx_path is not None and network_digest(onnx_path) != sidecar.onnx_sha256:
        raise ExportError(
            f"engine '{engine}' was not built from '{onnx_path}' (sha256 differs)", hint=_REBUILD
        )
    return sidecar
