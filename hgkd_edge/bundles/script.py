"""`predict`: one Python file and the model, for devices without hgkd-edge."""

from __future__ import annotations

from pathlib import Path

from hgkd_edge.bundles.source import Bundle, BundleSource, copy_network, copy_programs

__all__ = ["BUNDLE"]


def _write(source: BundleSource, folder: Path) -> Path:
    copy_network(source.baked, folder / "model.onnx")
    copy_programs(("predict.py",), folder)
    source.write_settings(source.baked, folder)
    source.write_readme("predict.md", folder)
    return source.baked


BUNDLE = Bundle(
    tasks=("classify", "multilabel", "segment", "detect"),
    flavor="cpu",
    check=lambda subject: None,
    write=_write,
)
