"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgkd_edge.cli.options import AsJson, Run
from hgkd_edge.cli.output import say, say_error, show, show_result
from hgkd_edge.export_options import ExportOptions, parse_frame

Onnx = Annotated[
    bool, typer.Option("--onnx", help="Write an ONNX model (always made).", show_default=False)
]
Trt = Annotated[bool, typer.Option("--trt", help="Also build a TensorRT engine.")]
OpenVino = Annotated[bool, typer.Option("--openvino", help="Also write an OpenVINO model.")]
Precision = Annotated[
    str, typer.Option("--precision", "-p", metavar="NAME", help="fp32, fp16 or int8.")
]
Backbone = Annotated[
    bool, typer.Option("--backbone", help="The bare backbone, not the fine-tuned model.")
]
FixedBatch = Annotated[
    bool,
    typer.Option("--fixed-batch/--dynamic-batch", help="Fix the batch to 1.", show_default=False),
]
DynamicSize = Annotated[
    bool,
    typer.Option(
        "--dynamic-size/--fixed-size", help="Leave height and width free.", show_default=False
    ),
]
Calibration = Annotated[
    int | None, typer.Option(metavar="N", help="INT8: calibration images [default: 512].")
]
CalibrationData = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="INT8: calibrate on this folder of images instead."),
]
CalibrationMethod = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="INT8: percentile [default], mean, minmax, entropy."),
]
Flavors = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="INT8: tensorrt or cpu [default: both].")
]
Flavours = Annotated[list[str] | None, typer.Option("--flavour", hidden=True)]
Sensitivity = Annotated[
    bool, typer.Option("--sensitivity", help="INT8: rank layers by their effect on the outputs.")
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS", help="INT8: points the score may lose; sensitive layers stay float."
    ),
]
OptBatch = Annotated[
    int | None, typer.Option(metavar="N", help="TensorRT: batch to tune for [default: 1].")
]
MaxBatch = Annotated[
    int | None, typer.Option(metavar="N", help="TensorRT: largest batch [default: 16].")
]
Workspace = Annotated[int | None, typer.Option(metavar="MIB", help="TensorRT: scratch memory.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(metavar="X.Y", help="TensorRT-RTX: compute capability. Repeatable."),
]
Dla = Annotated[
    int | None, typer.Option(metavar="CORE", help="TensorRT on a Jetson: use this DLA core.")
]
BakePreprocessing = Annotated[
    bool, typer.Option("--bake-preprocessing", help="Take uint8 frames [B, H, W, 3].")
]
Frame = Annotated[
    str | None, typer.Option(metavar="HxW", help="Size of the frames [default: free].")
]
Bundles = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Folder to deploy: triton, deepstream, timm, predict, jetson. Repeatable.",
    ),
]
BakePostprocessing = Annotated[
    bool, typer.Option("--bake-postprocessing", help="Output probabilities, class maps or boxes.")
]


def export(
    run: Run = None,
    onnx: Onnx = True,
    trt: Trt = False,
    openvino: OpenVino = False,
    precision: Precision = "fp32",
    backbone: Backbone = False,
    fixed_batch: FixedBatch = False,
    dynamic_size: DynamicSize = False,
    calib: Calibration = None,
    calib_data: CalibrationData = None,
    calib_method: CalibrationMethod = None,
    flavor: Flavors = None,
    flavour: Flavours = None,
    sensitivity: Sensitivity = False,
    max_drop: MaxDrop = None,
    opt_batch: OptBatch = None,
    max_batch: MaxBatch = None,
    workspace: Workspace = None,
    target_cc: Targets = None,
    dla: Dla = None,
    bake_preprocessing: BakePreprocessing = False,
    frame: Frame = None,
    bake_postprocessing: BakePostprocessing = False,
    bundle: Bundles = None,
    as_json: AsJson = False,
) -> None:
    """Export to ONNX, OpenVINO and TensorRT, and verify every file.

    Files are compared with the network on real images that training did not see.

    Example: hgkd-edge export runs/demo --onnx --trt

    Example: hgkd-edge export --precision int8 --max-drop 0.5 --openvino
    """
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
        flavors=_flavors(flavor, flavour),
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
        bundles=tuple(bundle or ()),
    )
    _export(run, options, as_json=as_json)


def _flavors(named: list[str] | None, misspelled: list[str] | None) -> tuple[str, ...]:
    if misspelled:
        say("warning: --flavour is now spelled --flavor")
    return (*(named or ()), *(misspelled or ()))


def _export(run: Path | None, options: ExportOptions, *, as_json: bool) -> None:
    from hgkd_edge.api.run import load

    chosen = load(run)
    from hgkd_edge.api.exporting import export as verb
    from hgkd_edge.export_record import ExportIncomplete
    from hgkd_edge.tables import export_lines

    try:
        result = verb(chosen.folder, options)
    except ExportIncomplete as incomplete:
        made = incomplete.result
        show(made.to_dict(), as_json, lambda: export_lines(made))
        for failed in made.failed:
            say_error(f"{failed.file}: {failed.reason}", failed.hint)
        raise typer.Exit(incomplete.exit_code) from incomplete
    show_result(result, as_json)
