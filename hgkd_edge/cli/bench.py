"""The command `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgkd_edge.cli.options import AsJson, TrustEngine, require_only
from hgkd_edge.cli.output import say, show_result

if TYPE_CHECKING:
    import numpy as np

    from hgkd_edge.bench.options import BenchOptions

Models = Annotated[
    list[Path] | None,
    typer.Argument(metavar="RUN|MODEL.onnx", help="Default: the latest run."),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, openvino or jetson.")]
Host = Annotated[
    str | None, typer.Option(metavar="USER@HOST[:PORT]", help="Measure on this device, over SSH.")
]
Hosts = Annotated[
    Path | None,
    typer.Option(metavar="FLEET.yaml", help="Measure on all devices of a file, over SSH."),
]
Batches = Annotated[str, typer.Option(metavar="N,...", help="Batch sizes to sweep, such as 1,8.")]
Threads = Annotated[str, typer.Option(metavar="N,...", help="CPU threads to sweep, such as 1,2.")]
Precisions = Annotated[
    str, typer.Option(metavar="NAME,...", help="Precisions to measure, such as fp16,int8.")
]
Runners = Annotated[
    str, typer.Option(metavar="NAME,...", help="Runners to use (hgkd-edge devices lists them).")
]
Copies = Annotated[
    str, typer.Option(metavar="in|out", help="Count the copies of inputs and outputs: in or out.")
]
Duration = Annotated[float, typer.Option(metavar="SECONDS", help="Measured time per case.")]
Rounds = Annotated[int, typer.Option(metavar="N", help="Rounds; each measures every case once.")]
Inputs = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npy", help="Real input, f32[N,3,H,W]; default: what export kept."),
]
Count = Annotated[
    int | None, typer.Option(metavar="N", help="Measured runs per case, instead of --duration.")
]
Unverified = Annotated[
    bool, typer.Option("--unverified", help="Measure even if the outputs are wrong.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Reuse builds that a broken connection left.")
]
Estimate = Annotated[
    bool, typer.Option("--estimate", help="Roofline estimate for devices that are not available.")
]
On = Annotated[
    str, typer.Option(metavar="NAME,...", help="With --estimate: devices, such as orin-nano.")
]
Compare = Annotated[
    tuple[Path, Path] | None, typer.Option(metavar="A B", help="Compare two bench.json files.")
]
Pipeline = Annotated[
    Path | None,
    typer.Option(metavar="IMAGES", help="Also time decoding and the other stages of predict."),
]
SshConfig = Annotated[
    Path | None, typer.Option(metavar="FILE", help="OpenSSH configuration file to use.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FILE", help="Result file; default: bench.json in the run folder."
    ),
]


# Parameters of the calls that measure no latency.
_OTHER_CALLS = {
    "compare": (),
    "pipeline": ("models", "duration", "count", "trust_engine", "out"),
    "estimate": ("models", "batch", "precision", "on", "out"),
}


def bench(
    context: typer.Context,
    models: Models = None,
    device: Device = "cpu",
    host: Host = None,
    hosts: Hosts = None,
    batch: Batches = "1",
    threads: Threads = "",
    precision: Precisions = "",
    runner: Runners = "",
    copies: Copies = "in",
    duration: Duration = 5.0,
    rounds: Rounds = 5,
    images: Inputs = None,
    count: Count = None,
    unverified: Unverified = False,
    trust_engine: TrustEngine = False,
    resume: Resume = False,
    estimate: Estimate = False,
    on: On = "",
    compare: Compare = None,
    pipeline: Pipeline = None,
    ssh_config: SshConfig = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Measure latency and throughput, locally or on a device over SSH.

    Example: hgkd-edge bench model.onnx --batch 1,8 --threads 1,2

    Example: hgkd-edge bench --device jetson --host nvidia@orin --precision fp16
    """
    from hgkd_edge.bench.options import BenchOptions, parse_counts

    _require_used(context)
    if compare is not None:
        return _compare(compare, as_json=as_json)
    options = BenchOptions(
        models=tuple(models or ()),
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
        images=_loaded(images),
        unverified=unverified,
        trust_engine=trust_engine,
        resume=resume,
        ssh_config=ssh_config,
    )
    if pipeline is not None:
        return _measure_pipeline(pipeline, options, as_json=as_json)
    return _measure(options, _names(on) if estimate else None, as_json=as_json)


def _loaded(images: Path | None) -> np.ndarray | None:
    from hgkd_edge.bench.inputs import load_images

    return None if images is None else load_images(images)


def _compare(files: tuple[Path, Path], *, as_json: bool) -> None:
    from hgkd_edge.api.measuring import compare_measurements

    show_result(compare_measurements(*files), as_json)


def _measure_pipeline(images: Path, options: BenchOptions, *, as_json: bool) -> None:
    from hgkd_edge.api.measuring import measure_pipeline
    from hgkd_edge.errors import DataError

    if len(options.models) > 1:
        raise DataError("--pipeline: measures one model", hint="name one run or model file")
    result = measure_pipeline(
        images,
        options.models[0] if options.models else None,
        duration_s=options.duration_s,
        count=options.count,
        out=options.out,
        trust_engine=options.trust_engine,
    )
    show_result(result, as_json)


def _measure(options: BenchOptions, estimated_on: tuple[str, ...] | None, *, as_json: bool) -> None:
    from hgkd_edge.api import measuring

    if estimated_on is None:
        result = measuring.measure(options)
    else:
        result = measuring.estimate(options, estimated_on)
    show_result(result, as_json)
    if not as_json:
        say(f"written to {result['file']}")
    if result.get("refusals"):  # a host of several
        raise typer.Exit(1)


def _require_used(context: typer.Context) -> None:
    """Refuse options that the call would ignore.

    Raises:
        DataError, DeviceError: Names the options.
    """
    from hgkd_edge.errors import DeviceError

    for call, taken in _OTHER_CALLS.items():
        if context.params[call]:
            require_only(context, f"with --{call}", call, *taken, "as_json")
    if context.params["on"] and not context.params["estimate"]:
        raise DeviceError("--on: only with --estimate", hint="add --estimate")


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
