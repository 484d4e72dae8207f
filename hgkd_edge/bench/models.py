"""Find the model files to measure, and describe them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporters.errors import ExportError
from exporters.files import was_set_aside
from exporters.network_files import network_digest, network_size
from exporters.onnx_info import OnnxInfo, TensorInfo, onnx_info
from hgkd_edge.bench.records import ModelInfo
from hgkd_edge.errors import RunError, reason_of
from hgkd_edge.export_record import read_exports
from hgkd_edge.run_files import RunFiles, require_recorded
from hgkd_edge.rundir import RunDir

__all__ = ["ModelFile", "resolve_models", "run_folder_of"]


@dataclass(frozen=True)
class ModelFile:
    """One file to measure: ONNX, or what `export` made from it (OpenVINO's .xml, an engine).

    Args:
        label: Unique within a session.
        path: The file.
        info: The ONNX file's description; for an artifact, that of the ONNX file it was made from.
        source: The ONNX file that an artifact was made from; None for an ONNX file.
        exported_as: An artifact's precision, as `export.json` states it.
    """

    label: str
    path: Path
    info: OnnxInfo
    source: Path | None = None
    exported_as: str = ""

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`, read from the graph or, of an artifact, from `export.json`."""
        return self.exported_as or self.info.precision

    @property
    def reference(self) -> Path:
        """The ONNX file with the reference outputs."""
        return self.source or self.path

    def record(self) -> ModelInfo:
        """The entry of bench.json."""
        return ModelInfo(
            label=self.label,
            path=str(self.path),
            sha256=self.info.sha256 if self.source is None else network_digest(self.path),
            size_mb=network_size(self.path) / 2**20,
            precision=self.precision,
            opset=self.info.opset,
            metadata=self.info.metadata,
        )

    def fixed_batch(self) -> int | None:
        """The fixed batch size of the graph; None when it is free."""
        axes = {first_axis(tensor) for tensor in self.info.inputs}
        fixed = sorted(axis for axis in axes if isinstance(axis, int) and axis > 0)
        return fixed[0] if fixed else None


def first_axis(tensor: TensorInfo) -> int | str:
    """The batch axis of an input; a scalar has the free axis."""
    return tensor.shape[0] if tensor.shape else "scalar"


def resolve_models(
    sources: Sequence[Path], *, precisions: Sequence[str] = (), kinds: Collection[str] = (".onnx",)
) -> list[ModelFile]:
    """The files behind run folders and paths.

    Args:
        sources: Model files, run folders, or folders of .onnx files; empty means the latest run.
            Of a folder, fp32 comes first, and files that failed verification are skipped.
        precisions: Keep only files of these precisions; empty keeps all.
        kinds: Suffixes of the files that the runners open: `.onnx`, `.xml`, `.plan`. An ONNX file
            is kept in place of each artifact that was never exported from it.

    Raises:
        RunError: No file, not an ONNX file, not the file recorded by its run, or no file of these
            precisions.
    """
    wanted: list[Path | None] = [*sources] or [None]
    described = [model for source in wanted for model in _described(source, kinds)]
    described = list({model.path: model for model in described}.values())
    kept = [model for model in described if not precisions or model.precision in precisions]
    there = {model.precision for model in described}
    missing = [precision for precision in precisions if precision not in there]
    if missing:
        found = ", ".join(f"{model.path.name} ({model.precision})" for model in described)
        raise RunError(
            f"no model of precision {' or '.join(missing)}; found {found}",
            hint=f"export one: hgkd-edge export --onnx --precision {missing[0]}",
        )
    labels = _labels([model.path for model in kept])
    return [replace(model, label=label) for label, model in zip(labels, kept, strict=True)]


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


_ORDER = ("fp32", "fp16", "bf16", "int8")
_ARTIFACTS = (".xml", ".plan")


def _described(source: Path | None, kinds: Collection[str]) -> list[ModelFile]:
    """The files of one source; the first, the baseline of ratios, is the plain fp32 file."""

    def place(model: ModelFile) -> tuple[bool, int, str]:
        known = model.precision in _ORDER
        order = _ORDER.index(model.precision) if known else len(_ORDER)
        return "hgkd_edge.baked" in model.info.metadata, order, model.path.name

    if source is not None and source.suffix in _ARTIFACTS and source.is_file():
        return [_named_artifact(source)]
    found = []
    for path in _files_of(source):
        onnx = ModelFile(path.stem, path, _describe(path))
        made = [one for one in _artifacts(onnx) if one.path.suffix in kinds]
        if ".onnx" in kinds or not set(kinds) <= {one.path.suffix for one in made}:
            found.append(onnx)
        found += made
    return sorted(found, key=place)


def _artifacts(onnx: ModelFile) -> list[ModelFile]:
    """The artifacts that `export` made from an ONNX file of a run, recorded and still on disk.

    Raises:
        RunError: A file or its record was changed.
    """
    run = run_folder_of(onnx.path)
    if run is None:
        return []
    try:
        entries = [
            (onnx.path.parent / Path(entry["path"]).name, str(entry["precision"]))
            for entry in read_exports(RunDir(run)).get("files", [])
            if entry["made_from"] == onnx.path.name
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{run / 'export.json'}: is damaged: {reason_of(error)}",
            hint="export again: hgkd-edge export",
        ) from error
    found = [pair for pair in entries if pair[0].suffix in _ARTIFACTS and pair[0].is_file()]
    for path, _precision in found:
        require_recorded(RunFiles(run).own(path))
    return [
        ModelFile(path.name, path, onnx.info, onnx.path, precision) for path, precision in found
    ]


def _named_artifact(path: Path) -> ModelFile:
    """An .xml or .plan given by its path.

    Raises:
        RunError: No export of a run made it, or its ONNX file is gone.
    """
    for onnx in sorted(path.parent.glob("*.onnx")):
        for made in _artifacts(ModelFile(onnx.stem, onnx, _describe(onnx))):
            if made.path.name == path.name:
                return made
    raise RunError(
        f"'{path}': no export.json of a run records it and the ONNX file it was made from",
        hint="name the run, or the ONNX file",
    )


def _files_of(source: Path | None) -> list[Path]:
    """ONNX files of one source; files that failed verification only if named explicitly."""
    if source is not None and source.is_file():
        return [source]
    if source is not None and source.suffix == ".onnx":
        raise RunError(f"no model at '{source}'", hint="check the path, or export one first")
    folder = source if source is not None and source.is_dir() else RunDir.resolve(source).path
    if (folder / "recipe.yaml").is_file():
        RunFiles(folder).require_own_files()
    found = sorted(folder.glob("export/*.onnx")) or sorted(folder.glob("*.onnx"))
    files = [path for path in found if not was_set_aside(path)]
    if found and not files:
        raise RunError(
            f"every ONNX model in '{folder}' failed its verification",
            hint=f"export again, or name the file to measure it anyway: {found[0]}",
        )
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
    """File stems (for artifacts, names); duplicates get the folder as a prefix, then a number."""
    stems = [path.name if path.suffix in _ARTIFACTS else path.stem for path in paths]
    names = [
        stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}/{stem}"
        for stem, path in zip(stems, paths, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name}#{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]
