"""Which model files are measured, and what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters.errors import ExportError
from exporters.onnx_info import OnnxInfo, TensorInfo, onnx_info
from hgkd_edge.bench.records import ModelInfo
from hgkd_edge.errors import RunError
from hgkd_edge.run_files import RunFiles, require_recorded
from hgkd_edge.rundir import RunDir

__all__ = ["ModelFile", "resolve_models", "run_folder_of"]


@dataclass(frozen=True)
class ModelFile:
    """One ONNX file to measure; `label` is unique within a session."""

    label: str
    path: Path
    info: OnnxInfo

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`, read from the graph."""
        return self.info.precision

    def record(self) -> ModelInfo:
        """The entry of bench.json."""
        return ModelInfo(
            label=self.label,
            path=str(self.path),
            sha256=self.info.sha256,
            size_mb=self.info.size_bytes / 2**20,
            precision=self.info.precision,
            opset=self.info.opset,
            metadata=self.info.metadata,
        )

    def fixed_batch(self) -> int | None:
        """The batch size the graph insists on; None when it is free."""
        axes = {first_axis(tensor) for tensor in self.info.inputs}
        fixed = sorted(axis for axis in axes if isinstance(axis, int) and axis > 0)
        return fixed[0] if fixed else None


def first_axis(tensor: TensorInfo) -> int | str:
    """The batch axis of an input; a scalar has the free axis."""
    return tensor.shape[0] if tensor.shape else "scalar"


def resolve_models(sources: Sequence[Path], *, precisions: Sequence[str] = ()) -> list[ModelFile]:
    """The ONNX files behind run folders and paths.

    Args:
        sources: .onnx files, run folders, or folders of .onnx files; empty means the latest run.
        precisions: Keep only files of these precisions; empty keeps all.

    Raises:
        RunError: Nothing there, not an ONNX file, not the file that its run recorded, or no file of
            these precisions.
    """
    wanted: list[Path | None] = [*sources] or [None]
    paths = [path for source in wanted for path in _files_of(source)]
    described = [(path, _describe(path)) for path in dict.fromkeys(paths)]
    kept = [
        (path, info) for path, info in described if not precisions or info.precision in precisions
    ]
    there = {info.precision for _path, info in described}
    missing = [precision for precision in precisions if precision not in there]
    if missing:
        found = ", ".join(f"{path.name} ({info.precision})" for path, info in described)
        raise RunError(
            f"no model of precision {' or '.join(missing)}; found {found}",
            hint=f"export one: hgkd-edge export --onnx --precision {missing[0]}",
        )
    labels = _labels([path for path, _info in kept])
    return [ModelFile(label, path, info) for label, (path, info) in zip(labels, kept, strict=True)]


def run_folder_of(source: Path | None) -> Path | None:
    """The run folder a source lies in, or None for a loose file or folder."""
    if source is None:
        return RunDir.resolve(None).path
    folder = source if source.is_dir() else source.parent
    for candidate in (folder, folder.parent):
        if (candidate / "recipe.yaml").is_file():
            return candidate
    named = Path("runs") / source
    return named.resolve() if (named / "recipe.yaml").is_file() else None


def _files_of(source: Path | None) -> list[Path]:
    """ONNX files of one source, sorted by name."""
    if source is not None and source.is_file():
        return [source]
    if source is not None and source.suffix == ".onnx":
        raise RunError(f"no model at '{source}'", hint="check the path, or export one first")
    folder = source if source is not None and source.is_dir() else RunDir.resolve(source).path
    if (folder / "recipe.yaml").is_file():
        RunFiles(folder).require_own_files()
    files = sorted(folder.glob("export/*.onnx")) or sorted(folder.glob("*.onnx"))
    if not files:
        raise RunError(f"'{folder}' holds no ONNX model", hint="hgkd-edge export --onnx")
    return files


def _describe(path: Path) -> OnnxInfo:
    require_recorded(path)
    try:
        return onnx_info(path)
    except ExportError as error:
        raise RunError(error.message, hint=error.hint) from error


def _labels(paths: Sequence[Path]) -> list[str]:
    """File stems; with the folder in front, then a number behind, where two would be alike."""
    stems = [path.stem for path in paths]
    names = [
        stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}/{stem}"
        for stem, path in zip(stems, paths, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name}#{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]
