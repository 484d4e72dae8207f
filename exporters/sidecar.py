"""The note beside an engine: what it was built from, by what, for what.

Deserialising an engine runs code from the file, and an engine of another release or GPU fails in
ways that are hard to read. So an engine is loaded only when its sidecar is there and agrees. This
guards against mix-ups and damage; it is no signature: whoever can write both files can fool it.
Against that, engines built on this machine are remembered by their sha256 in a folder of the
user's own (`remember_engine`), and others need the user's word.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ._trt_compat import Flavour, gpu_name
from .errors import ExportError
from .files import digest, write_bytes
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


@dataclass(frozen=True)
class Sidecar:
    """What an engine is. `gpu` for TensorRT, `targets` (compute capabilities) for TensorRT-RTX."""

    engine_sha256: str
    onnx_sha256: str
    backend: str
    version: str
    gpu: str | None
    targets: list[str]
    precision: str
    profile: dict[str, list[int]]
    version_compatible: bool = False
    hardware_compatible: bool = False


def sidecar_path(engine: str | Path) -> Path:
    """`resnet18.plan` -> `resnet18.plan.json`."""
    engine = Path(engine)
    return engine.with_name(engine.name + ".json")


def write_sidecar(engine: str | Path, sidecar: Sidecar) -> Path:
    path = sidecar_path(engine)
    write_bytes(path, (json.dumps(asdict(sidecar), indent=2) + "\n").encode())
    return path


def read_sidecar(engine: str | Path) -> Sidecar:
    """Read the sidecar of an engine.

    Raises:
        ExportError: Engine or sidecar missing, or the sidecar is not one of ours.
    """
    engine, path = Path(engine), sidecar_path(engine)
    if not engine.is_file():
        raise ExportError(f"no engine at '{engine}'", hint="check the path, or build one first")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(Sidecar)}
        sidecar = Sidecar(**{key: value for key, value in content.items() if key in known})
        if not all(isinstance(v, str) for v in (sidecar.backend, sidecar.version)):
            raise TypeError("backend and version must be text")
    except FileNotFoundError as error:
        raise ExportError(
            f"engine '{engine}' has no sidecar '{path.name}', so nothing says where it comes from",
            hint=_REBUILD,
        ) from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(f"'{path}' is not an engine's sidecar", hint=_REBUILD) from error
    return sidecar


def remember_engine(engine: str | Path, folder: Path) -> None:
    """Note that an engine was built on this machine.

    Args:
        engine: The engine file.
        folder: Of the user's own, outside every folder that is shared.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / digest(engine)).touch()


def require_built_here(engine: str | Path, content: bytes, folder: Path) -> None:
    """Refuse an engine that `remember_engine` has not noted: an engine is machine code.

    Raises:
        ExportError: It was built elsewhere.
    """
    if not (folder / hashlib.sha256(content).hexdigest()).is_file():
        raise ExportError(
            f"engine '{engine}' was not built on this machine, and loading an engine runs its code",
            hint=f"{_REBUILD}; or use --trust-engine if you know who built it",
        )


def require_own_engine(
    engine: str | Path, content: bytes, flavour: Flavour, *, onnx_path: str | Path | None = None
) -> Sidecar:
    """Refuse an engine that is damaged, or not made by this release for this GPU.

    Args:
        engine: The engine file.
        content: Its bytes, the very ones that would be loaded.
        flavour: The TensorRT that would load it.
        onnx_path: When given, the engine must have been built from exactly this network.

    Raises:
        ExportError: Says which of these it is.
    """
    sidecar = read_sidecar(engine)
    if hashlib.sha256(content).hexdigest() != sidecar.engine_sha256:
        raise ExportError(
            f"engine '{engine}' is not the file its sidecar describes (sha256 differs): "
            "it is damaged or was replaced",
            hint=_REBUILD,
        )
    made_by, here = f"{sidecar.backend} {sidecar.version}", f"{flavour.name} {flavour.version}"
    later = sidecar.version_compatible and sidecar.backend == flavour.name
    if made_by != here and not later:
        raise ExportError(
            f"engine '{engine}' was built by {made_by}; this is {here}", hint=_REBUILD
        )
    present = gpu_name()
    if sidecar.gpu and present != sidecar.gpu and not sidecar.hardware_compatible:
        raise ExportError(
            f"engine '{engine}' was built for {sidecar.gpu}; here is {present or 'none'}",
            hint=_REBUILD,
        )
    if onnx_path is not None and network_digest(onnx_path) != sidecar.onnx_sha256:
        raise ExportError(
            f"engine '{engine}' was not built from '{onnx_path}' (sha256 differs)", hint=_REBUILD
        )
    return sidecar
