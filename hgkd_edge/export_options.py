"""Options of one `hgkd-edge export` call. Plain data, no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exporters import ExportError
from exporters.choices import FLAVORS, METHODS, PRECISIONS

__all__ = ["BUNDLES", "ExportOptions", "parse_frame"]

BUNDLES = ("triton", "deepstream", "timm", "predict", "jetson")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """All export options. None means the default in parentheses.

    Args:
        precision: fp32, fp16 or int8. The fp32 ONNX is always made: all other files need it.
        trt: Also build an engine with TensorRT or TensorRT-RTX, whichever is installed.
        openvino: Also write an OpenVINO IR.
        backbone: Export the bare backbone although the run has a fine-tuned model.
        dynamic_batch: Keep the batch axis free.
        dynamic_size: Keep height and width free.
        calibration: INT8: number of calibration images (512).
        calibration_data: INT8: folder of images to calibrate on, instead of the run's own.
        calibration_method: INT8: percentile (the default), mean, minmax or entropy.
        flavors: INT8: tensorrt, cpu or (the default) both.
        sensitivity: INT8: rank the layers by the error each adds.
        max_drop: INT8: keep the worst layers in float until held-out images lose at most this many
            points.
        opt_batch: TensorRT: batch that the engine is tuned for (1).
        max_batch: TensorRT: largest batch (16).
        workspace_mib: TensorRT: scratch memory in MiB.
        targets: TensorRT-RTX: compute capabilities, such as 8.6.
        dla: TensorRT on a Jetson: DLA core, with the GPU for what it cannot run.
        bake_preprocessing: Take uint8 frames [B, H, W, 3] and resize and normalize inside.
        frame: Height and width of those frames; None keeps them free.
        bake_postprocessing: Return probabilities, class maps or boxes after suppression.
        bundles: Folders to write for a server, a device or a library, by name.

    Raises:
        ExportError: A value or a combination that cannot work; names the options.
    """

    precision: str = "fp32"
    trt: bool = False
    openvino: bool = False
    backbone: bool = False
    dynamic_batch: bool = True
    dynamic_size: bool = False
    calibration: int | None = None
    calibration_data: str | os.PathLike[str] | None = None
    calibration_method: str | None = None
    flavors: Sequence[str] = ()
    sensitivity: bool = False
    max_drop: float | None = None
    opt_batch: int | None = None
    max_batch: int | None = None
    workspace_mib: int | None = None
    targets: Sequence[str] = ()
    dla: int | None = None
    bake_preprocessing: bool = False
    frame: tuple[int, int] | None = None
    bake_postprocessing: bool = False
    bundles: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._check_values()
        self._check_int8()
        self._check_trt()
        self._check_bundles()
        takes_frames = self.bake_preprocessing or "deepstream" in self.bundles
        if self.frame is not None and not takes_frames:
            raise ExportError(
                "--frame is the size of the frames that --bake-preprocessing takes",
                hint="add --bake-preprocessing, or remove --frame",
            )
        if self.bake_preprocessing and self.dynamic_size:
            raise ExportError(
                "--bake-preprocessing resizes to one size, --dynamic-size leaves it free",
                hint="remove one of them",
            )

    def made_flavors(self) -> tuple[str, ...]:
        """The INT8 flavors to make."""
        return tuple(dict.fromkeys(self.flavors)) or FLAVORS

    def to_dict(self) -> dict[str, Any]:
        """The options that differ from the defaults, for the record."""
        default = asdict(ExportOptions())
        return {key: value for key, value in asdict(self).items() if value != default[key]}

    def _check_values(self) -> None:
        _one_of("--precision", self.precision, PRECISIONS)
        for flavor in self.flavors:
            _one_of("--flavor", flavor, FLAVORS)
        if self.calibration_method is not None:
            _one_of("--calib-method", self.calibration_method, METHODS)
        for option, value, least in (
            ("--calib", self.calibration, 1),
            ("--opt-batch", self.opt_batch, 1),
            ("--max-batch", self.max_batch, 1),
            ("--workspace", self.workspace_mib, 1),
            ("--dla", self.dla, 0),
        ):
            if value is not None and value < least:
                raise ExportError(f"{option} {value} is too small", hint=f"{least} or more")
        if self.max_drop is not None and not self.max_drop >= 0:  # NaN neither
            raise ExportError(
                f"--max-drop must be 0 or more, not {self.max_drop:g}", hint="points, such as 1"
            )

    def _check_int8(self) -> None:
        asked = {
            "--calib": self.calibration,
            "--calib-data": self.calibration_data,
            "--calib-method": self.calibration_method,
            "--flavor": self.flavors,
            "--sensitivity": self.sensitivity,
            "--max-drop": self.max_drop,
        }
        _needs(asked, self.precision == "int8", "--precision int8")
        for target, wanted, flavor in (
            ("--trt", self.trt, "tensorrt"),
            ("--openvino", self.openvino, "cpu"),
        ):
            if self.precision == "int8" and wanted and flavor not in self.made_flavors():
                raise ExportError(
                    f"{target} with --precision int8 is made from the flavor '{flavor}'",
                    hint=f"add --flavor {flavor}, or remove --flavor to make both",
                )

    def _check_bundles(self) -> None:
        for name in self.bundles:
            _one_of("--bundle", name, BUNDLES)
        if self.bundles and self.dynamic_size:
            raise ExportError(
                f"--bundle {self.bundles[0]} needs one image size, --dynamic-size leaves it free",
                hint="remove one of them",
            )
        if "deepstream" in self.bundles and self.frame is None:
            raise ExportError(
                "--bundle deepstream needs the size of the camera's frames",
                hint="add --frame HEIGHTxWIDTH, such as --frame 1080x1920",
            )

    def _check_trt(self) -> None:
        asked = {
            "--opt-batch": self.opt_batch,
            "--max-batch": self.max_batch,
            "--workspace": self.workspace_mib,
            "--target-cc": self.targets,
            "--dla": self.dla,
        }
        _needs(asked, self.trt, "--trt")
        if not self.trt:
            return
        if self.dynamic_size:
            raise ExportError(
                "--trt needs a fixed image size, --dynamic-size leaves it free",
                hint="remove one of them",
            )
        if self.bake_preprocessing and self.frame is None:
            raise ExportError(
                "--trt with --bake-preprocessing needs the size of the frames",
                hint="add --frame HEIGHTxWIDTH, such as --frame 480x640",
            )
        if self.opt_batch and self.max_batch and self.opt_batch > self.max_batch:
            raise ExportError(
                f"--opt-batch {self.opt_batch} is more than --max-batch {self.max_batch}",
                hint="choose an --opt-batch up to --max-batch",
            )
        if self.dla is not None and self.precision == "fp32":
            raise ExportError("--dla runs fp16 or int8 only", hint="add --precision fp16")


def parse_frame(text: str) -> tuple[int, int]:
    """`480x640` -> (480, 640), height before width."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(re.fullmatch("[0-9]{1,5}", s) and int(s) > 0 for s in sides):
        raise ExportError(f"--frame {text}: not HEIGHTxWIDTH", hint="such as --frame 480x640")
    return int(sides[0]), int(sides[1])


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ExportError(f"{option} '{value}' is not known", hint=f"one of {', '.join(known)}")


def _needs(asked: dict[str, Any], there: bool, wanted: str) -> None:
    """Reject options that need another option."""
    # Compare with None: DLA core 0 is a valid value.
    given = [
        option
        for option, value in asked.items()
        if not (value is None or value is False or value == ())
    ]
    if given and not there:
        raise ExportError(f"{', '.join(given)}: only with {wanted}", hint=f"add {wanted}")
