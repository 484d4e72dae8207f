"""Find the model files to measure, and describe them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporters.atomic_files import was_set_aside
from exporters.errors import ExportError
from exporters.network_files import network_digest, network_size
from exporters.onnx_info import OnnxInfo, onnx_info
from hgkd_edge.bench.options import PRECISIONS
from hgkd_edge.bench.records import ModelInfo, Refusal
from hgkd_edge.data.input_spec import BAKED
from hgkd_edge.errors import RunError
from hgkd_edge.export_record import read_exports
from hgkd_edge.run_files import RunFiles, require_recorded
from hgkd_edge.rundir import RunDir

__all__ = ["ModelFile", "for_tensorrt", "of_precisions", "resolve_models", "run_folder_of"]

_ARTIFACTS = (".xml", ".plan")


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
        axes = [tensor.shape[0] for tensor in self.info.inputs if tensor.shape]
        return min((axis for axis in axes if isinstance(axis, int) and axis > 0), default=None)


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
    found = [model for source in wanted for model in _described(source, kinds)]
    found = list({model.path: model for model in found}.values())
    kept = [model for model, _precision in of_precisions(found, precisions)]
    stems = [model.label for model in kept]
    return [
        model if stems.count(model.label) == 1 else replace(model, label=str(model.path))
        for model in kept
    ]


def of_precisions(
    models: Sequence[ModelFile], precisions: Sequence[str], *, may_build: bool = False
) -> list[tuple[ModelFile, str]]:
    """Models of these precisions (by default all models), each with the precision to measure.

    With `may_build`, an FP32 model is used for FP16 if there is no FP16 model.

    Raises:
        RunError: No model of one of the precisions.
    """
    there = {model.precision for model in models}
    source = {precision: precision for precision in precisions}
    if may_build and "fp16" in source and "fp16" not in there:
        source["fp16"] = "fp32"
    if missing := [wanted for wanted, held in source.items() if held not in there]:
        found = ", ".join(f"{model.path.name} ({model.precision})" for model in models)
        raise RunError(
            f"no model of precision {' or '.join(missing)}; found {found}",
            hint=f"export one: hgkd-edge export --onnx --precision {missing[0]}",
        )
    if not precisions:
        return [(model, model.precision) for model in models]
    return [
        (model, wanted)
        for model in models
        for wanted, held in source.items()
        if model.precision == held
    ]


def for_tensorrt(models: Sequence[ModelFile]) -> tuple[list[ModelFile], list[Refusal]]:
    """The models that TensorRT can build, and why it cannot build the others."""
    refusals = [
        Refusal(
            name=model.label,
            reason="TensorRT cannot build INT8 of flavor 'cpu', which quantizes to uint8",
            hint="hgkd-edge export --onnx --precision int8 --flavor tensorrt",
        )
        for model in models
        if model.info.asymmetric
    ]
    return [model for model in models if not model.info.asymmetric], refusals


def run_folder_of(source: Path | None) -> Path | None:
    """The run folder a source lies in, or None for a loose file or folder."""
    if source is None:
        return RunDir.resolve(None).path
    folder = source if source.is_dir() else source.parent
    named = Path("runs") / source
    for candidate in (folder, folder.parent, named):
        if (candidate / "recipe.yaml").is_file():
            return named.resolve() if candidate == named else candidate
    return None


def _described(source: Path | None, kinds: Collection[str]) -> list[ModelFile]:
    """The files of one source; the first, the baseline of ratios, is the plain fp32 file."""
    if source is not None and source.suffix in _ARTIFACTS and source.is_file():
        return [_named_artifact(source)]
    found = []
    for onnx in map(_onnx, _files_of(source)):
        made = [one for one in _artifacts(onnx) if one.path.suffix in kinds]
        if ".onnx" in kinds or not set(kinds) <= {one.path.suffix for one in made}:
            found.append(onnx)
        found += made
    return sorted(found, key=_place)


def _place(model: ModelFile) -> tuple[bool, int, str]:
    known = [*PRECISIONS, model.precision]
    return BAKED in model.info.metadata, known.index(model.precision), model.path.name


def _artifacts(onnx: ModelFile) -> list[ModelFile]:
    """The artifacts that `export` made from an ONNX file of a run, recorded and still on disk.

    Raises:
        RunError: A file or its record was changed.
    """
    run = run_folder_of(onnx.path)
    if run is None:
        return []
    files = read_exports(RunDir(run)).files
    made = {
        onnx.path.parent / one.name: one.precision
        for one in files
        if one.made_from == onnx.path.name
    }
    found = [path for path in made if path.suffix in _ARTIFACTS and path.is_file()]
    for path in found:
        require_recorded(RunFiles(run).own(path))
    return [ModelFile(path.name, path, onnx.info, onnx.path, made[path]) for path in found]


def _named_artifact(path: Path) -> ModelFile:
    """An .xml or .plan given by its path.

    Raises:
        RunError: No export of a run made it, or its ONNX file is gone.
    """
    for onnx in sorted(path.parent.glob("*.onnx")):
        for made in _artifacts(_onnx(onnx)):
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


def _onnx(path: Path) -> ModelFile:
    require_recorded(path)
    try:
        return ModelFile(path.stem, path, onnx_info(path))
    except ExportError as error:
        raise RunError(error.message, hint=error.hint) from error
