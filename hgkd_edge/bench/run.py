"""One call of bench: choose where to measure, measure, write bench.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hgkd_edge.bench.inputs import images_for, load_images
from hgkd_edge.bench.local import file_of, measure_here, runners_for
from hgkd_edge.bench.models import ModelFile, resolve_models, run_folder_of
from hgkd_edge.bench.options import BenchOptions, Progress
from hgkd_edge.bench.records import Refusal, Session, load_bench, save_session
from hgkd_edge.errors import DeviceError
from hgkd_edge.files import require_writable_folder
from hgkd_edge.run_files import RunFiles, require_recorded

__all__ = ["BenchResult", "result_file", "run_bench"]

# Written by export next to the ONNX files: held-out images as the network sees them.
KEPT_IMAGES = Path("export") / "images.npy"


@dataclass(frozen=True)
class BenchResult:
    """The sessions measured (one per target), the file that holds them, and the hosts of a fleet
    that could not be measured."""

    sessions: list[Session]
    file: Path
    refusals: list[Refusal] = field(default_factory=list)


def run_bench(
    options: BenchOptions, *, progress: Progress = lambda _what, _part: None
) -> BenchResult:
    """Measure, and put the result into bench.json.

    `--host` and `--hosts` measure on those hosts, whatever the device; `--device jetson` without
    them measures this machine, which then must be a Jetson.

    Raises:
        RunError: No model to measure, or a bench.json that cannot be read.
        DeviceError: The device cannot be reached or used.
    """
    if options.host is not None or options.hosts is not None or options.device == "jetson":
        return _run_on_edge(options, progress)
    runners, refusals = runners_for(options.device, options.runners)
    kinds = {file_of(runner) for runner in runners}
    models = resolve_models(options.models, precisions=options.precisions, kinds=kinds)
    options = _with_kept_images(options, models)
    file = _bench_file(options)
    session = measure_here(models, runners, refusals, options, progress=progress)
    save_session(file, session)
    return BenchResult([session], file)


def result_file(options: BenchOptions, name: str) -> Path:
    """`--out`, else the run folder of the first model, else its own folder.

    Raises:
        ExportError: It could not be written.
    """
    file = _place_for(options, name)
    require_writable_folder(file)
    return file


def _place_for(options: BenchOptions, name: str) -> Path:
    if options.out is not None:
        return Path(options.out)
    source = options.models[0] if options.models else None
    run = run_folder_of(source)
    if run is not None:
        return run / name
    assert source is not None  # run_folder_of(None) finds the latest run or raises
    return (source if source.is_dir() else source.parent) / name


def _bench_file(options: BenchOptions) -> Path:
    """The file that sessions are added to; what is wrong with it shows before minutes are spent."""
    file = result_file(options, "bench.json")
    if file.exists():
        load_bench(file)
    return file


def _with_kept_images(options: BenchOptions, models: Sequence[ModelFile]) -> BenchOptions:
    """The options with the real images that `export` kept in the run folder, if any model takes
    their size."""
    run = run_folder_of(options.models[0] if options.models else None)
    if options.images is not None or run is None or not (run / KEPT_IMAGES).exists():
        return options
    require_recorded(RunFiles(run).own(run / KEPT_IMAGES))
    kept = replace(options, images=load_images(run / KEPT_IMAGES), images_kept=True)
    return kept if any(images_for(model, kept) is not None for model in models) else options


def _run_on_edge(options: BenchOptions, progress: Progress) -> BenchResult:
    from hgkd_edge.bench.edge.facts import is_jetson_here
    from hgkd_edge.bench.edge.hosts import load_fleet, measure_hosts
    from hgkd_edge.bench.edge.ssh import Host

    if options.runners:
        raise DeviceError(
            "--runner chooses among the runners of this machine, not of a device",
            hint="remove --runner, or remove --host and --device jetson",
        )
    if options.hosts is not None:
        hosts = load_fleet(Path(options.hosts))
    elif options.host is not None:
        hosts = {options.host: Host.parse(options.host)}
    elif is_jetson_here():
        hosts = {"jetson": None}
    else:
        raise DeviceError(
            "this machine is not a Jetson, and no --host was given",
            hint="over SSH: hgkd-edge bench --device jetson --host user@jetson; "
            "without one: --estimate (a roofline estimate, not a measurement)",
        )
    models = resolve_models(options.models)
    options = _with_kept_images(options, models)
    file = _bench_file(options)
    sessions, refusals = measure_hosts(
        hosts, models, options, keep=lambda one: save_session(file, one), progress=progress
    )
    return BenchResult(sessions, file, refusals)
