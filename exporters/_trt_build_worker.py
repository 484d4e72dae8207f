"""The process that builds an engine, with the builder's settings.

A separate process for two reasons. TensorRT is native code that prints freely, keeps its memory and
can crash. Polygraphy chooses between `tensorrt` and `tensorrt_rtx` once per process.

Protocol: one JSON request on stdin; JSON events on stdout, one per line (`Step`s, then `Built` or
`Failed`); everything else the libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._trt_compat import (
    Flavor,
    compute_capabilities,
    gpu_name,
    progress_monitor,
    select_for_polygraphy,
    typing_for,
)
from ._trt_protocol import BuildRequest, Built, Event, Failed, Step, line_of
from .errors import ConversionFailed, ExportError, UserError, reason_of

Report = Callable[[Event], None]


def main() -> int:
    """Build what the request on stdin asks for; events go to stdout, one JSON object a line."""
    request = BuildRequest.from_json(sys.stdin.read())
    # Native code writes to file descriptor 1 directly; keep the real stdout for events alone.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def report(event: Event) -> None:
        print(line_of(event), file=events)

    try:
        report(_build(request, report))
    except UserError as error:
        report(Failed(error.message, error.hint, error.exit_code))
    except Exception as error:  # Polygraphy's and TensorRT's own types
        report(Failed(reason_of(error), "", ConversionFailed.exit_code))
    return 0


def _build(request: BuildRequest, report: Report) -> Built:
    flavor = request.flavor
    select_for_polygraphy(flavor)
    from polygraphy import mod
    from polygraphy.backend.trt import engine_bytes_from_network, network_from_onnx_path

    trt = mod.lazy_import(flavor.name)
    typing = typing_for(flavor, request.precision, dla=request.dla is not None)
    targets = _targets(trt, flavor, request.compute_capabilities)
    monitor = progress_monitor(trt, lambda phase, step, steps: report(Step(phase, step, steps)))
    network = network_from_onnx_path(request.onnx, **typing.network_options())
    settings = _common_settings(trt, request, monitor)
    if flavor.name == "tensorrt_rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        capabilities = [tuple(map(int, target.split("."))) for target in targets]
        config = _without_tf32(trt, CreateConfigRTX(compute_capabilities=capabilities, **settings))
    else:
        from polygraphy.backend.trt import CreateConfig

        config = CreateConfig(
            tf32=False,
            **typing.builder_options(),
            use_dla=request.dla is not None,
            allow_gpu_fallback=request.dla is not None,
            **settings,
        )
    engine = engine_bytes_from_network(
        network, _with_dla_core(config, request.dla), save_timing_cache=request.timing_cache
    )
    Path(request.output).write_bytes(bytes(engine))
    return Built(gpu=gpu_name(), targets=targets)


def _targets(trt: Any, flavor: Flavor, wanted: list[str] | None) -> list[str]:
    if flavor.name == "tensorrt_rtx":
        return compute_capabilities(trt, wanted)
    if wanted:
        raise ExportError(
            "target compute capabilities are a feature of TensorRT-RTX",
            hint="remove them: TensorRT builds for the GPU it runs on",
        )
    return []


def _common_settings(trt: Any, request: BuildRequest, monitor: Any) -> dict[str, Any]:
    """Arguments of Polygraphy's `CreateConfig`."""
    from polygraphy.backend.trt import Profile

    settings: dict[str, Any] = {"profiles": [Profile().add(*request.shapes)]}
    if monitor is not None:
        settings["progress_monitor"] = monitor
    cache = request.timing_cache
    if cache and Path(cache).is_file():
        settings["load_timing_cache"] = cache
    if request.workspace_mib:
        pool = trt.MemoryPoolType.WORKSPACE
        settings["memory_pool_limits"] = {pool: request.workspace_mib * 2**20}
    return settings


def _without_tf32(trt: Any, create_config: Any) -> Any:
    """fp32 is fp32: TF32 rounds as fp16 does, and is slower. TensorRT-RTX has it on by default, and
    Polygraphy has no argument for it."""

    def create(builder: Any, network: Any) -> Any:
        config = create_config(builder, network)
        config.clear_flag(trt.BuilderFlag.TF32)
        return config

    return create


def _with_dla_core(create_config: Any, core: int | None) -> Any:
    """Polygraphy always takes DLA core 0; choose another afterwards."""
    if not core:
        return create_config

    def create(builder: Any, network: Any) -> Any:
        config = create_config(builder, network)
        config.DLA_core = core
        return config

    return create


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
