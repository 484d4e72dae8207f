"""The commands `bench` and `devices`: parse, call, print. Heavy imports wait until a call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["bench_command", "devices_command"]


def bench_command(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN|MODEL.onnx]...", help="Default: the latest run."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, openvino or jetson.", show_default=True)
    ] = "cpu",
    runner: Annotated[
        str, typer.Option(help="Runners by name, such as ort-cpu,openvino,torch.")
    ] = "",
    batch: Annotated[str, typer.Option(help="Batch sizes to sweep, such as 1,8.")] = "1",
    threads: Annotated[str, typer.Option(help="CPU threads to sweep, such as 1,2.")] = "",
    precision: Annotated[str, typer.Option(help="Only these: fp32,fp16,int8.")] = "",
    copies: Annotated[str, typer.Option(help="Input and output copies in or out of the time.")] = (
        "in"
    ),
    duration: Annotated[float, typer.Option(help="Measured seconds per case.")] = 5.0,
    out: Annotated[Path | None, typer.Option(help="Write bench.json here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Measure latency and throughput, here or on an edge device.

    Example: hgkd-edge bench model.onnx --batch 1,8 --threads 1,2
    """
    from hgkd_edge.bench.options import BenchOptions, parse_counts
    from hgkd_edge.bench.run import run_bench

    options = BenchOptions(
        models=tuple(sources or ()),
        device=device,
        runners=_names(runner),
        batches=parse_counts(batch, option="--batch"),
        threads=parse_counts(threads, option="--threads") if threads else (None,),
        precisions=_names(precision),
        copies=copies,  # type: ignore[arg-type]  # BenchOptions checks it
        duration_s=duration,
        out=out,
    )
    result = run_bench(options)
    for session in result.sessions:
        if as_json:
            typer.echo(session.model_dump_json(indent=2))
        else:
            from rich.console import Console

            from hgkd_edge.bench.tables import session_view

            Console().print(session_view(session))


def devices_command() -> None:
    """List devices."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
