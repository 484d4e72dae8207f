"""The Python reference, from docstrings."""

from __future__ import annotations

import hgkd_edge

# Name -> what mkdocstrings shows of it.
SECTIONS = {
    "Distillations, runs and models": (
        "hgkd_edge.api.distilling.distill",
        "hgkd_edge.api.distilling.check",
        "hgkd_edge.api.distilling.dry_run",
        "hgkd_edge.api.distilling.pretrain",
        "hgkd_edge.api.run.load",
        "hgkd_edge.api.run.Run",
        "hgkd_edge.api.model.load_model",
        "hgkd_edge.api.model.Model",
        "hgkd_edge.api.model.Predictions",
        "hgkd_edge.api.model.Prediction",
        "hgkd_edge.api.streaming.predict_video",
        "hgkd_edge.api.streaming.watch",
        "hgkd_edge.api.embedding.embed",
        "hgkd_edge.api.embedding.Embeddings",
        "hgkd_edge.api.comparing.compare",
        "hgkd_edge.api.checking.check_data",
        "hgkd_edge.api.measuring.measure",
        "hgkd_edge.api.measuring.estimate",
        "hgkd_edge.api.measuring.compare_measurements",
        "hgkd_edge.api.measuring.measure_pipeline",
        "hgkd_edge.export_options.ExportOptions",
        "hgkd_edge.bench.options.RunBenchOptions",
        "hgkd_edge.bench.options.BenchOptions",
        "hgkd_edge.api.result.Result",
    ),
    "Sparse convolution": ("hgkd_edge.sparse.sparsify", "hgkd_edge.sparse.densify"),
    "Export and verification": (
        "exporters.onnx_export.export_onnx",
        "exporters.verify.export_and_verify",
        "exporters.fp16",
        "exporters.quantize",
        "exporters.openvino_export",
        "exporters.trt_build.build_engine",
    ),
    "Errors": ("exporters.errors", "hgkd_edge.errors", "hgkd_edge.export_record.ExportIncomplete"),
}
INTRODUCTION = """# Python reference

The first section's names are those of `import hgkd_edge`: see [Use it from Python](../python.md).

`hgkd_edge.sparse` and `exporters` do not depend on recipes or runs and can be used alone. See also
[The sparse engine](../sparse.md) and [Export](../export.md).
"""


def page() -> str:
    """The page as Markdown, for mkdocstrings."""
    parts = [INTRODUCTION]
    for title, names in SECTIONS.items():
        parts += [f"## {title}\n", *map(_entry, names)]
    return "\n".join(parts)


def _entry(name: str) -> str:
    """What mkdocstrings takes; names of `import hgkd_edge` are shown as users write them."""
    short = name.rpartition(".")[2]
    if short not in hgkd_edge.__all__:
        return f"::: {name}\n"
    return f"::: {name}\n    options:\n      heading: hgkd_edge.{short}\n"
