"""The commands `bench` and `devices`: parse, call, print. Heavy imports wait until a call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hgkd_edge.bench.options import BenchOptions

__all__ = ["bench_command", "devices_command", "make_bench_command"]

TorchLoader = Callable[[Path], Any]


def make_bench_command(load_torch: TorchLoader | None = None) -> Callable[..., None]:
    """The command `bench`.

    Args:
        load_torch: Run folder -> PyTorch module, for the runners `torch` and `torch-compile`. It
            is handed in because this package stands below the models and never imports torch.
    """

    def bench_command(
        sources: Annotated[
            list[Path] | None,
            typer.Argument(metavar="[RUN|MODEL.onnx]...", help="Default: the latest run."),
        ] = None,
        device: Annotated[str, typer.Option(help="cpu, cuda, openvino or jetson.")] = "cpu",
        host: Annotated[
            str | None, typer.Option(metavar="USER@HOST[:PORT]", help="Measure there, over SSH.")
        ] = None,
        hosts: Annotated[
            Path | None, typer.Option(metavar="FLEET.yaml", help="Measure all of these over SSH.")
        ] = None,
        batch: Annotated[str, typer.Option(help="Batch sizes to sweep, such as 1,8.")] = "1",
        threads: Annotated[str, typer.Option(help="CPU threads to sweep, such as 1,2.")] = "",
        precision: Annotated[str, typer.Option(help="Only these, such as fp16,int8.")] = "",
        runner: Annotated[str, typer.Option(help="Runners of this machine (see: devices).")] = "",
        copies: Annotated[
            str, typer.Option(help="Input and output copies: in or out of the time.")
        ] = ("in"),
        duration: Annotated[float, typer.Option(help="Measured seconds per case.")] = 5.0,
        rounds: Annotated[int, typer.Option(help="Interleaved visits per case.")] = 5,
        images: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE.npy", help="Real input, f32[N,3,H,W]; default: what export kept."
            ),
        ] = None,
        count: Annotated[
            int | None, typer.Option(help="Measured runs per case, in place of --duration.")
        ] = None,
        unverified: Annotated[
            bool,
            typer.Option("--unverified", help="Measure even if the outputs are wrong."),
        ] = False,
        trust_engine: Annotated[
            bool,
            typer.Option(
                "--trust-engine", help="Load engines that were not built on this machine."
            ),
        ] = False,
        resume: Annotated[
            bool, typer.Option("--resume", help="Pick up a build that a broken connection left.")
        ] = False,
        estimate: Annotated[
            bool, typer.Option("--estimate", help="Roofline estimate for devices not at hand.")
        ] = False,
        on: Annotated[
            str, typer.Option(help="With --estimate: devices, such as orin-nano-8.")
        ] = "",
        compare: Annotated[
            tuple[Path, Path] | None, typer.Option(metavar="A B", help="Ratios of two bench.json.")
        ] = None,
        ssh_config: Annotated[
            Path | None, typer.Option(help="OpenSSH configuration in place of yours.")
        ] = None,
        out: Annotated[
            Path | None, typer.Option(help="Write here; default: bench.json in the run folder.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    ) -> None:
        """Measure latency and throughput: here, on a Jetson, or over SSH.

        Example: hgkd-edge bench model.onnx --batch 1,8 --threads 1,2

        Example: hgkd-edge bench --device jetson --host nvidia@orin --precision fp16
        """
        from hgkd_edge.bench.inputs import load_images
        from hgkd_edge.bench.options import BenchOptions, parse_counts

        if compare is not None:
            _compare(*compare, as_json=as_json)
            return
        options = BenchOptions(
            models=tuple(sources or ()),
            device=device,
            runners=_names(runner),
            host=host,
            hosts=hosts,
            batches=parse_counts(batch, option="--batch"),
            threads=parse_counts(threads, option="--threads") if threads else (None,),
            precisions=_names(precision),
            copies=copies,  # type: ignore[arg-type]  # BenchOptions refuses anything else
            duration_s=duration,
            rounds=rounds,
            out=out,
            count=count,
            images=load_images(images) if images is not None else None,
            unverified=unverified,
            trust_engine=trust_engine,
            resume=resume,
            ssh_config=ssh_config,
            load_torch=load_torch,
        )
        if estimate:
            _estimate(options, _names(on), as_json=as_json)
        else:
            _measure(options, as_json=as_json)

    return bench_command


bench_command = make_bench_command()


def devices_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures and sources.")] = False,
) -> None:
    """List the known edge devices, and what can be measured on this machine.

    Example: hgkd-edge devices
    """
    from hgkd_edge.bench.devices import devices_view, load_devices, load_jetpacks, load_sources
    from hgkd_edge.bench.runners import list_runners

    runners = [(name, refusal.reason if refusal else None) for name, refusal in list_runners()]
    if as_json:
        _print_json(
            {
                "devices": [one.model_dump(by_alias=True) for one in load_devices()],
                "jetpacks": [one.model_dump() for one in load_jetpacks()],
                "sources": load_sources(),
                "runners": [{"name": name, "refusal": reason} for name, reason in runners],
            }
        )
    else:
        _show(devices_view(runners))


def _measure(options: BenchOptions, *, as_json: bool) -> None:
    from hgkd_edge.bench.progress import live_progress
    from hgkd_edge.bench.run import run_bench
    from hgkd_edge.bench.tables import fleet_view, session_view

    with live_progress() as tell:
        result = run_bench(options, progress=tell)
    if as_json:
        _print_json(
            {
                "file": str(result.file),
                "sessions": [one.model_dump(mode="json") for one in result.sessions],
                "refusals": [one.model_dump() for one in result.refusals],
            }
        )
    elif options.hosts is not None:
        _show(fleet_view(result.sessions, result.refusals))
    else:
        _show(session_view(result.sessions[0]))
    if not as_json:
        _say_written(result.file)
    if result.refusals:
        raise typer.Exit(1)


def _estimate(options: BenchOptions, names: tuple[str, ...], *, as_json: bool) -> None:
    from hgkd_edge.bench.devices import find_device, load_devices
    from hgkd_edge.bench.estimate import estimate_models, estimate_view
    from hgkd_edge.bench.models import resolve_models
    from hgkd_edge.bench.run import result_file
    from hgkd_edge.rundir import write_json

    devices = [find_device(name) for name in names] or load_devices()
    found = estimate_models(
        resolve_models(options.models),
        devices,
        precisions=options.precisions,
        batches=options.batches,
    )
    record = {
        "schema": "hgkd-edge.bench-estimate",
        "version": 1,
        "estimates": [one.model_dump(mode="json") for one in found],
    }
    # A file of its own: an estimate must never be found where measurements are looked for.
    file = result_file(options, "bench-estimate.json")
    write_json(file, record)
    if as_json:
        _print_json({"file": str(file), **record})
    else:
        _show(estimate_view(found))
        _say_written(file)


def _compare(a: Path, b: Path, *, as_json: bool) -> None:
    from hgkd_edge.bench.compare import compare_files
    from hgkd_edge.bench.tables import comparison_view

    comparison = compare_files(a, b)
    if as_json:
        _print_json(comparison.to_dict())
    else:
        _show(comparison_view(comparison))


def _show(view: Any) -> None:
    from hgkd_edge.console import make_console

    make_console().print(view)


def _say_written(file: Path) -> None:
    from hgkd_edge.console import printable

    typer.echo(printable(f"written to {file}"), err=True)


def _print_json(content: Any) -> None:
    import json

    typer.echo(json.dumps(content, indent=2))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
