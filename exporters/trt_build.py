"""ONNX -> TensorRT engine, with a sidecar that describes the engine.

Works with `tensorrt` (8.6 to 11, JetPack's included) and `tensorrt_rtx`, through Polygraphy.
The ONNX file decides the precision (`exporters.fp16`, `exporters.quantize`): the network is built
strongly typed where the release supports it. The builder runs in a separate process
(`_trt_build_worker`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ._trt_compat import Flavor, available, choose, gpu_name, typing_for
from ._trt_protocol import BuildRequest, Built, Failed, Shapes, Step, event_of
from .atomic_files import file_sha256, new_artifact, require_writable_folder
from .errors import ConversionFailed, ExportError, MissingPackageError
from .onnx_info import OnnxInfo, onnx_info
from .sidecar import Sidecar, sidecar_path, write_sidecar

__all__ = ["EngineBuild", "Progress", "available", "build_engine"]

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EngineBuild:
    """An engine that was built. `device` names where it runs."""

    path: Path
    sidecar: Path
    sha256: str
    size_bytes: int
    seconds: float
    backend: str
    version: str
    precision: str
    device: str
    profile: dict[str, list[int]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "path": str(self.path), "sidecar": str(self.sidecar)}


def build_engine(
    onnx_path: str | Path,
    path: str | Path,
    *,
    backend: str | None = None,
    opt_batch: int = 1,
    max_batch: int = 16,
    workspace_mib: int | None = None,
    cache_dir: str | Path | None = None,
    compute_capabilities: Sequence[str] | None = None,
    dla: int | None = None,
    progress: Progress | None = None,
) -> EngineBuild:
    """Build an engine and write it with its sidecar (`<engine>.json`).

    Args:
        onnx_path: The network; its types decide the precision.
        path: Where to write the engine.
        backend: `tensorrt` or `tensorrt_rtx`; None takes the first installed.
        opt_batch: The batch it is tuned for; both are ignored for a fixed-batch file.
        max_batch: The largest batch it takes; the smallest is 1.
        workspace_mib: Memory the builder may use for scratch; None leaves TensorRT's default.
        cache_dir: Folder for tactic timings, one file per flavor and version, read and added to,
            so that the next build is faster; None keeps none.
        compute_capabilities: TensorRT-RTX: targets such as `["8.6", "8.9"]`; None takes Ampere
            and everything newer.
        dla: TensorRT on a Jetson: DLA core to use; layers it cannot run fall back to the GPU.
        progress: Called with (phase, step, steps) while building, where the release reports it.

    Raises:
        ExportError: Bad options, a corrupt ONNX file, a path that cannot be written.
        MissingPackageError: No TensorRT, or no Polygraphy.
        ConversionFailed: TensorRT cannot parse or build the network.
    """
    flavor = choose(backend)
    _require_polygraphy(flavor)
    source = onnx_info(onnx_path)
    typing_for(flavor, source.precision, dla=dla is not None)  # rejects bad combinations
    _require_gpu(flavor)
    request = BuildRequest(
        flavor=flavor,
        precision=source.precision,
        onnx=str(Path(onnx_path).resolve()),
        output=str(path),
        shapes=_shapes(source, opt_batch, max_batch),
        workspace_mib=workspace_mib,
        timing_cache=_timing_cache(cache_dir, flavor),
        compute_capabilities=list(compute_capabilities) if compute_capabilities else None,
        dla=dla,
    )
    return _build(request, source, progress)


def _build(request: BuildRequest, source: OnnxInfo, progress: Progress | None) -> EngineBuild:
    """Build an engine as the worker is asked to, and write it with its sidecar."""
    start = time.perf_counter()
    path, flavor, shapes = Path(request.output), request.flavor, request.shapes
    with new_artifact(path) as temporary:
        built = _run_worker(replace(request, output=str(temporary.resolve())), progress)
        # The old engine's sidecar must not vouch for the new engine.
        sidecar_path(path).unlink(missing_ok=True)
    seconds = time.perf_counter() - start
    sidecar = Sidecar(
        engine_sha256=file_sha256(path),
        onnx_sha256=source.sha256,
        backend=flavor.name,
        version=flavor.version,
        gpu=None if built.targets else built.gpu,
        targets=built.targets,
        precision=source.precision,
        profile={"min": shapes.min, "opt": shapes.opt, "max": shapes.max},
    )
    return EngineBuild(
        path=path,
        sidecar=write_sidecar(path, sidecar),
        sha256=sidecar.engine_sha256,
        size_bytes=path.stat().st_size,
        seconds=seconds,
        backend=flavor.name,
        version=flavor.version,
        precision=source.precision,
        device=_device(built),
        profile=sidecar.profile,
    )


def _require_polygraphy(flavor: Flavor) -> None:
    import importlib.util

    if importlib.util.find_spec("polygraphy") is None:
        extra = "trt-rtx" if flavor.name == "tensorrt_rtx" else "trt"
        raise MissingPackageError("building an engine", package="polygraphy", extra=extra)


def _require_gpu(flavor: Flavor) -> None:
    if flavor.name == "tensorrt" and gpu_name() is None:
        raise ExportError(
            "TensorRT builds on the GPU that the engine will run on, and there is none here",
            hint="run this on the device itself; or pip install "
            '"hgkd-edge[trt-rtx]", which builds for RTX desktop GPUs without one',
        )


def _shapes(source: OnnxInfo, best: int, largest: int) -> Shapes:
    if not 1 <= best <= largest:
        raise ExportError(
            f"batch sizes must rise: opt {best}, max {largest}", hint="choose 1 <= opt <= max"
        )
    (image,) = source.inputs
    batch, *rest = image.shape
    if not all(isinstance(axis, int) for axis in rest):
        raise ExportError(
            f"input '{image.name}' has free axes besides the batch: {list(image.shape)}",
            hint="export with a fixed image size (baked preprocessing: a fixed frame) for TensorRT",
        )
    sizes = (batch,) * 3 if isinstance(batch, int) else (1, best, largest)
    return Shapes(image.name, *([int(size), *map(int, rest)] for size in sizes))


def _timing_cache(folder: str | Path | None, flavor: Flavor) -> str | None:
    if folder is None:
        return None
    path = Path(folder).resolve() / f"{flavor.name}-{flavor.version}.timing"
    require_writable_folder(path)
    return str(path)


def _device(built: Built) -> str:
    if not built.targets:
        return str(built.gpu)
    where = "" if built.gpu else "built without a GPU "
    return f"{where}for compute capability {', '.join(built.targets)}"


def _run_worker(request: BuildRequest, progress: Progress | None) -> Built:
    """Run `_trt_build_worker`, pass its progress on, and return its result."""
    folder = str(Path(__file__).resolve().parent.parent)
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    outcome: Built | Failed | None = None
    with tempfile.TemporaryFile("w+", errors="replace") as noise:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}._trt_build_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            # A worker that died at once is reported by its exit code below, not by its closed pipe.
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(request.to_json())
            for line in process.stdout:
                event = event_of(line)
                if not isinstance(event, Step):
                    outcome = event
                elif progress is not None:
                    progress(event.phase, event.step, event.steps)
            code = process.wait()
        finally:
            # Reached with the process alive only when the caller was interrupted.
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
        noise.seek(0)
        lines = noise.read().splitlines()
    for line in lines:
        log.debug("%s: %s", request.flavor.name, line)
    return _outcome(outcome, code, lines, request.flavor)


def _outcome(outcome: Built | Failed | None, code: int, lines: list[str], flavor: Flavor) -> Built:
    title = f"{flavor.name} {flavor.version}"
    if outcome is None:
        ending = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = lines[-1].strip() if lines else "it printed nothing"
        raise ConversionFailed(
            f"{title} ended by {ending} while building: {last[:300]}",
            hint="out of memory is the usual reason: lower workspace_mib or max_batch",
        )
    if isinstance(outcome, Built):
        return outcome
    if outcome.exit_code == ExportError.exit_code:
        raise ExportError(outcome.message, hint=outcome.hint)
    raise ConversionFailed(
        f"{title} cannot build this network: {_reason(outcome.message, lines)}",
        hint=outcome.hint or "replace the operation named above, or use another release",
    )


def _reason(message: str, lines: list[str]) -> str:
    """TensorRT's log explains more than the exception that follows."""
    errors = [line.partition("[E] ")[2].strip() for line in lines if "[E] " in line]
    about_a_node = [error for error in errors if error.startswith("In node")]
    return (about_a_node or errors or [message])[0][:300]
