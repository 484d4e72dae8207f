"""The command `export`: its options, and its result as lines. Heavy imports wait until a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["make_export_command"]

Show = Callable[[Any, bool, Callable[[], Any]], None]
_WORST_LAYERS = 10


def make_export_command(show: Show) -> Callable[..., None]:
    """The command.

    Args:
        show: Prints a result as JSON or as lines; the command line's own.
    """

    def export_command(
        run: Annotated[
            Path | None, typer.Argument(help="Run folder or name; default: the latest.")
        ] = None,
        onnx: Annotated[
            bool, typer.Option("--onnx", help="ONNX, verified on real photos (always made).")
        ] = True,
        trt: Annotated[bool, typer.Option("--trt", help="Also build a TensorRT engine.")] = False,
        openvino: Annotated[
            bool, typer.Option("--openvino", help="Also write an OpenVINO model.")
        ] = False,
        precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
        backbone: Annotated[
            bool, typer.Option("--backbone", help="The bare backbone, not the fine-tuned model.")
        ] = False,
        fixed_batch: Annotated[
            bool, typer.Option("--fixed-batch/--dynamic-batch", help="Fix the batch to 1.")
        ] = False,
        dynamic_size: Annotated[
            bool, typer.Option("--dynamic-size/--fixed-size", help="Leave height and width free.")
        ] = False,
        calib: Annotated[
            int | None, typer.Option(help="INT8: calibration photos [default: 512].")
        ] = None,
        calib_data: Annotated[
            Path | None, typer.Option(help="INT8: calibrate on this folder of photos instead.")
        ] = None,
        calib_method: Annotated[
            str | None, typer.Option(help="INT8: percentile [default], minmax or entropy.")
        ] = None,
        flavour: Annotated[
            list[str] | None, typer.Option(help="INT8: tensorrt or cpu [default: both].")
        ] = None,
        sensitivity: Annotated[
            bool, typer.Option("--sensitivity", help="INT8: rank layers by the damage they do.")
        ] = False,
        max_drop: Annotated[
            float | None,
            typer.Option(help="INT8: points to lose at most; the worst layers stay in float."),
        ] = None,
        opt_batch: Annotated[
            int | None, typer.Option(help="TensorRT: batch to tune for [default: 1].")
        ] = None,
        max_batch: Annotated[
            int | None, typer.Option(help="TensorRT: largest batch [default: 16].")
        ] = None,
        workspace: Annotated[
            int | None, typer.Option(metavar="MIB", help="TensorRT: scratch memory.")
        ] = None,
        target_cc: Annotated[
            list[str] | None,
            typer.Option(metavar="8.6", help="TensorRT-RTX: compute capability. Repeatable."),
        ] = None,
        dla: Annotated[
            int | None, typer.Option(metavar="CORE", help="TensorRT on a Jetson: use this DLA.")
        ] = None,
        bake_preprocessing: Annotated[
            bool,
            typer.Option("--bake-preprocessing", help="Take uint8 frames [B, H, W, 3]."),
        ] = False,
        frame: Annotated[
            str | None, typer.Option(metavar="HxW", help="Size of the frames [default: free].")
        ] = None,
        bake_postprocessing: Annotated[
            bool,
            typer.Option("--bake-postprocessing", help="Give probabilities, class maps or boxes."),
        ] = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print the result as JSON on stdout.")
        ] = False,
    ) -> None:
        """Export a run to ONNX, OpenVINO and TensorRT, each file proven on real photos.

        Example: hgkd-edge export runs/demo --onnx --trt

        Example: hgkd-edge export --precision int8 --max-drop 0.5 --openvino
        """
        from hgkd_edge.export_options import ExportOptions, parse_frame

        options = ExportOptions(
            precision=precision,
            trt=trt,
            openvino=openvino,
            backbone=backbone,
            dynamic_batch=not fixed_batch,
            dynamic_size=dynamic_size,
            calibration=calib,
            calibration_data=calib_data,
            calibration_method=calib_method,
            flavours=tuple(flavour or ()),
            sensitivity=sensitivity,
            max_drop=max_drop,
            opt_batch=opt_batch,
            max_batch=max_batch,
            workspace_mib=workspace,
            targets=tuple(target_cc or ()),
            dla=dla,
            bake_preprocessing=bake_preprocessing,
            frame=parse_frame(frame) if frame else None,
            bake_postprocessing=bake_postprocessing,
        )
        options.check()

        from hgkd_edge.rundir import RunDir

        folder = RunDir.resolve(run)
        from hgkd_edge.console import printable
        from hgkd_edge.export import ExportIncomplete, export_run

        try:
            result = export_run(folder, options)
        except ExportIncomplete as incomplete:
            made = incomplete.result
            show(made, as_json, lambda: list(export_lines(made)))
            for error, failed in zip(incomplete.failures, made["failed"], strict=True):
                typer.echo(printable(f"error: {failed['file']}: {error.message}"), err=True)
                if error.hint:
                    typer.echo(printable(f"hint: {error.hint}"), err=True)
            raise typer.Exit(incomplete.exit_code) from incomplete
        show(result, as_json, lambda: list(export_lines(result)))

    return export_command


def export_lines(result: dict[str, Any]) -> Iterator[str]:
    """Every file with its proof, and what INT8 had to leave in float."""
    proven_on = result["verified_on"]
    yield f"verified on {proven_on['photos']} photos of the {proven_on['split']} split"
    for file in result["files"]:
        flavour = f" {file['flavour']}" if "flavour" in file else ""
        size = file["size_bytes"] / 2**20
        yield f"{file['kind']} {file['precision']}{flavour}: {file['path']} ({size:.1f} MiB)"
        if file["verification"]:
            yield f"  {_proof(file['verification'])}"
        if accuracy := file.get("accuracy"):
            yield from _accuracy_lines(accuracy)
        if file["kind"] == "engine":
            yield f"  {file['backend']} {file['version']}, {file['device']}"
    for flavour, layers in result.get("sensitivity", {}).items():
        yield f"most damaging layers in INT8 ({flavour}):"
        for layer in layers[:_WORST_LAYERS]:
            yield f"  {layer['damage']:.3f} {layer['module']}"


def _proof(verification: dict[str, Any]) -> str:
    parts = []
    if verification["max_abs_error"] is not None:
        parts.append(f"max error {verification['max_abs_error']:.1e}")
        parts.append(f"cosine {verification['cosine']:.6f}")
    if verification.get("noise") is not None and verification["precision"] == "int8":
        parts.append(f"error {verification['noise']:.3f} of the spread")
    if verification["top1_agreement"] is not None:
        parts.append(f"same class {verification['top1_agreement']:.1%}")
    if verification["iou"] is not None:
        parts.append(f"IoU {verification['iou']:.3f}")
    return "agrees: " + ", ".join(parts)


def _accuracy_lines(accuracy: dict[str, Any]) -> Iterator[str]:
    yield (
        f"  {accuracy['metric']} {accuracy['score']:.2f}, in float {accuracy['float_score']:.2f}: "
        f"a drop of {accuracy['drop']:.2f} points (at most {accuracy['max_drop']:g})"
    )
    kept = ", ".join(accuracy["kept_float"])
    yield f"  kept in float: {kept or 'nothing'}"
