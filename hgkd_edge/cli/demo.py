"""The command `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgkd_edge.cli.options import AsJson, Overrides
from hgkd_edge.cli.output import next_lines, show

if TYPE_CHECKING:
    from rich.table import Table

    from hgkd_edge.demo import DemoRecord


def demo(
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default: runs/demo.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole pipeline on bundled photos, without a network.

    It takes 2 to 5 minutes on two idle CPU cores.

    Example: hgkd-edge demo
    """
    from hgkd_edge import demo as verb
    from hgkd_edge.api.work import require_training_packages
    from hgkd_edge.tables import warning_lines

    require_training_packages("demo")
    result = verb.demo(run, overrides or ())
    following = ("finetune {} --task classify", "report")
    show(
        result.to_dict(),
        as_json,
        lambda: [
            _table(result),
            f"run folder: {result.run}",
            *warning_lines(result.warnings),
            *warning_lines(result.evaluation.warnings),
            *next_lines(result.run, *following),
        ],
    )


def _table(result: DemoRecord) -> Table:
    """The whole demo in one table: each figure next to what it is compared with."""
    from rich.table import Table

    from hgkd_edge.cells import counted
    from hgkd_edge.tables import percent

    scores, cosine, export = result.evaluation, result.held_out, result.export
    ours, fresh, latency = scores.distilled, scores.untrained, result.latency
    proofs = export.verification.outputs if export.verification is not None else []
    error = max(output.max_abs_error or 0.0 for output in proofs)
    engine, seen = export.engine, export.verified_on
    images = counted(seen.photos, "held-out photo") if seen else ""
    table = Table("figure", title="hgkd-edge demo")
    table.add_column("result", justify="right")
    table.add_column("compared with", justify="right")
    table.add_row("k-NN top-1", percent(ours.knn), f"untrained {percent(fresh.knn)}")
    probe = f"untrained {percent(fresh.linear_probe)}"
    table.add_row("linear probe top-1", percent(ours.linear_probe), probe)
    table.add_row("majority class, top-1", percent(scores.majority), "")
    if cosine is not None:
        table.add_row(
            f"teacher features, cosine at {cosine.sites} sites",
            f"{cosine.student:.3f}",
            f"mean feature {cosine.mean_token:.3f}",
        )
    table.add_section()
    table.add_row("sparse -> dense, max error", f"{result.sparse_to_dense:.1e}", "all visible")
    table.add_row("PyTorch -> ONNX, max error", f"{error:.1e}", images)
    table.add_row(
        "TensorRT engine",
        f"{engine.size_bytes / 1e6:.1f} MB" if engine else "not built",
        f"{engine.backend} {engine.version}" if engine else result.engine_missing,
    )
    table.add_row(
        "latency on this CPU, p50", f"{latency.p50_ms:.2f} ms", f"p99 {latency.p99_ms:.2f} ms"
    )
    table.add_section()
    for name, seconds in result.seconds_by_step.items():
        table.add_row(f"time of {name}", f"{seconds:.0f} s", "")
    table.add_row("time of the whole demo", f"{result.seconds:.0f} s", "")
    return table
