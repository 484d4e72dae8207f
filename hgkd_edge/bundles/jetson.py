"""`jetson`: from an ONNX file to answers on a camera's picture, with what JetPack installs."""

from __future__ import annotations

from pathlib import Path

from hgkd_edge.bundles.source import Bundle, BundleSource, copy_network, copy_programs

__all__ = ["BUNDLE"]

PROGRAMS = (
    "build_engine.py",
    "camera.py",
    "capture_gstreamer.py",
    "capture_opencv.py",
    "engine.py",
    "predict.py",
)


def _write(source: BundleSource, folder: Path) -> Path:
    # The plain file: TensorRT returns suppressed boxes in an array of unknown length.
    copy_network(source.plain, folder / "model.onnx")
    copy_programs(PROGRAMS, folder)
    source.write_settings(source.plain, folder)
    source.write_readme("jetson.md", folder)
    return source.plain


BUNDLE = Bundle(
    tasks=("classify", "multilabel", "segment", "detect"),
    flavor="tensorrt",
    check=lambda subject: None,
    write=_write,
)
