"""The reference of the two packages that can be used alone, from their docstrings."""

from __future__ import annotations

# Name -> what mkdocstrings shows of it.
SECTIONS = {
    "Sparse convolution": ("hgkd_edge.sparse.sparsify", "hgkd_edge.sparse.densify"),
    "Export and verification": (
        "exporters.onnx_export.export_onnx",
        "exporters.verify.export_and_verify",
        "exporters.fp16",
        "exporters.quantize",
        "exporters.openvino_export",
        "exporters.trt_build.build_engine",
    ),
    "Errors": ("exporters.errors", "hgkd_edge.errors"),
}
INTRODUCTION = """# Sparse convolution and exporters

`hgkd_edge.sparse` and `exporters` do not depend on recipes or runs and can be used alone. See also
[The sparse engine](../sparse.md) and [Export](../export.md).
"""


def page() -> str:
    """The page as Markdown, for mkdocstrings."""
    parts = [INTRODUCTION]
    for title, names in SECTIONS.items():
        parts += [f"## {title}\n", *(f"::: {name}\n" for name in names)]
    return "\n".join(parts)
