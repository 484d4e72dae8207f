"""Timed files are those that `export` verified, compared with their ONNX file before timing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from exporters import runtimes, trt_build
from exporters.network_files import network_digest, network_files
from exporters.openvino_export import export_openvino
from exporters.runtimes import RUNTIMES, tensorrt
from exporters.sidecar import (
    Sidecar,
    read_sidecar,
    remember_engine,
    require_built_here,
    write_sidecar,
)
from hgkd_edge.bench import local
from hgkd_edge.bench.models import resolve_models
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Measurement, load_bench
from hgkd_edge.bench.run import run_bench
from hgkd_edge.bench.tables import session_view
from hgkd_edge.errors import DeviceError, RunError, WrongOutputs
from hgkd_edge.files import engines_dir, file_sha256

from .conftest import build_convnet
from .test_local import quick, rendered

pytestmark = pytest.mark.usefixtures("already_warm")

IMAGES = np.random.default_rng(3).random((6, 3, 32, 32), dtype=np.float32)
KINDS = {"openvino": ("openvino", "xml"), "tensorrt-rtx": ("engine", "plan")}

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """A run with an ONNX file, an artifact exported from it for a runner, and the record of both.

    An engine holds the ONNX file that it "was built from": it is loaded and run by stand-ins.
    """
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"

    def make(runner: str = "openvino", *, made_from: Path | None = None, precision: str = "fp32"):
        export = run / "export"
        export.mkdir(parents=True)
        (run / "recipe.yaml").write_text("name: x\n")
        source = export / "run.fp32.onnx"
        onnx.save(build_convnet(), source)
        kind, suffix = KINDS[runner]
        made = export / f"run.{precision}.{suffix}"
        if runner == "openvino":
            pytest.importorskip("openvino")
            export_openvino(made_from or source, made, half_weights=precision == "fp16")
        else:
            write_engine(made, source, made_from or source)
            stand_in_for_tensorrt(monkeypatch)
        np.save(export / "images.npy", IMAGES)
        entries = [
            ("onnx", source, "model.safetensors", "fp32"),
            (kind, made, source.name, precision),
        ]
        record = {
            "files": [
                {"kind": kind, "path": str(path), "made_from": made_from, "precision": precision}
                for kind, path, made_from, precision in entries
            ]
        }
        (run / "export.json").write_text(json.dumps(record))
        files = [*network_files(source), *network_files(made), export / "images.npy"]
        artifacts = {f"export/{file.name}": {"sha256": file_sha256(file)} for file in files}
        (run / "manifest.json").write_text(json.dumps({"artifacts": artifacts}))
        return run

    return make


def write_engine(path: Path, source: Path, computes: Path) -> None:
    path.write_bytes(computes.read_bytes())
    profile = {key: [size, 3, 32, 32] for key, size in (("min", 1), ("opt", 1), ("max", 4))}
    sidecar = Sidecar(
        engine_sha256=file_sha256(path),
        onnx_sha256=network_digest(source),
        backend="tensorrt_rtx",
        version="1.0",
        gpu=None,
        targets=["8.9"],
        precision="fp32",
        profile=profile,
    )
    write_sidecar(path, sidecar)
    remember_engine(path, engines_dir())


class StandIn:
    """Polygraphy's runner of an engine that is an ONNX file."""

    def __init__(self, engine: bytes) -> None:
        self.session = runtimes.open(engine)

    def activate(self) -> None:
        pass

    def infer(self, feeds: dict[str, np.ndarray], **_: object) -> dict[str, np.ndarray]:
        return self.session.infer(feeds)

    def deactivate(self) -> None:
        pass


def stand_in_for_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed; an engine that would have to be built is a failure."""

    def load(
        path: Path, *, onnx_path: Path, built_here: Path | None = None
    ) -> tuple[bytes, SimpleNamespace, Sidecar]:
        sidecar = read_sidecar(path)
        assert network_digest(onnx_path)
        if built_here is not None:
            require_built_here(path, path.read_bytes(), built_here)
        return path.read_bytes(), SimpleNamespace(name=sidecar.backend), sidecar

    def build(*_: object, **__: object) -> None:
        raise AssertionError("an engine was built")

    backend = ModuleType("polygraphy.backend.trt")
    backend.TrtRunner = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "polygraphy", ModuleType("polygraphy"))
    monkeypatch.setitem(sys.modules, "polygraphy.backend", ModuleType("polygraphy.backend"))
    monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", backend)
    monkeypatch.setattr(tensorrt, "load_engine", load)
    monkeypatch.setattr(tensorrt, "select_for_polygraphy", lambda _flavor: None)
    monkeypatch.setattr(trt_build, "build_engine", build)
    for name in ("tensorrt", "tensorrt-rtx"):
        here = replace(RUNTIMES[name], packages=("onnxruntime",), lacks=lambda: None)
        monkeypatch.setitem(RUNTIMES, name, here)


def other_weights(folder: Path) -> Path:
    """A network of the same shapes that computes something else."""
    path = folder / "other.onnx"
    model = build_convnet()
    for tensor in model.graph.initializer:
        tensor.raw_data = onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor)).raw_data
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("runner", KINDS)
def test_the_file_that_export_proved_is_loaded_compared_and_timed(
    make_run: MakeRun, runner: str
) -> None:
    run = make_run(runner)
    made = run / "export" / f"run.fp32.{KINDS[runner][1]}"

    result = run_bench(quick(run, runners=(runner,)))

    [session] = result.sessions
    [one] = session.measurements
    assert one.model == made.name
    assert [model.path for model in session.models] == [str(made)]
    assert session.models[0].sha256 == network_digest(made)
    assert one.verification is not None
    assert (one.verification.passed, one.verification.images) == (True, 6)
    assert one.verification.source == "images"
    assert one.verification.reference.endswith("on run.fp32.onnx")
    text = " ".join(rendered(session_view(session)).split())
    assert "outputs verified before measuring: at least 6 real images" in text


@pytest.mark.parametrize("runner", KINDS)
def test_a_file_that_computes_something_else_is_not_timed(
    make_run: MakeRun, tmp_path: Path, runner: str
) -> None:
    run = make_run(runner, made_from=other_weights(tmp_path))

    with pytest.raises(
        WrongOutputs, match=r"outputs differ from those of 'run\.fp32\.onnx'"
    ) as failure:
        run_bench(quick(run, runners=(runner,)))
    assert failure.value.exit_code == 1
    assert not (run / "bench.json").exists()

    result = run_bench(quick(run, runners=(runner,), unverified=True))
    [one] = load_bench(result.file).sessions[0].measurements
    assert one.verification is not None
    assert not one.verification.passed
    assert "WRONG OUTPUTS" in one.warnings[0]


@pytest.mark.parametrize("runner", KINDS)
def test_a_file_that_was_changed_since_its_proof_is_refused(make_run: MakeRun, runner: str) -> None:
    run = make_run(runner)
    made = network_files(run / "export" / f"run.fp32.{KINDS[runner][1]}")[-1]
    made.write_bytes(made.read_bytes() + b" ")

    with pytest.raises(RunError, match=rf"{made.name}: is not the file that .*manifest"):
        run_bench(quick(run, runners=(runner,)))


def test_the_precision_of_an_exported_file_is_the_one_that_is_asked_for(make_run: MakeRun) -> None:
    run = make_run(precision="fp16")

    [one] = measured(run, runners=("openvino",), precisions=("fp16",))
    again = measured(run, runners=("ort-cpu", "openvino"))

    assert (one.model, one.precision) == ("run.fp16.xml", "fp16")
    assert one.verification is not None
    assert one.verification.bound == "fp16"
    assert [(one.runner, one.model) for one in again] == [
        ("ort-cpu", "run.fp32"), ("openvino", "run.fp16.xml")
    ]  # fmt: skip


def test_an_onnx_file_that_was_never_exported_is_compared_before_it_is_timed(
    tmp_path: Path,
) -> None:
    pytest.importorskip("openvino")
    onnx.save(build_convnet(), tmp_path / "net.onnx")

    [one] = measured(tmp_path / "net.onnx", runners=("openvino",))

    assert one.model == "net"
    assert one.verification is not None
    assert (one.verification.passed, one.verification.source) == (True, "synthetic")


def test_tensorrt_times_only_an_engine_that_export_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(build_convnet(), tmp_path / "net.onnx")
    stand_in_for_tensorrt(monkeypatch)  # building an engine is a failure
    monkeypatch.setitem(local._OF_DEVICE, "cuda", ("ort-cpu", "tensorrt-rtx"))

    with pytest.raises(DeviceError, match="no engine for tensorrt-rtx was exported") as refusal:
        run_bench(quick(tmp_path / "net.onnx", runners=("tensorrt-rtx",)))
    [session] = run_bench(quick(tmp_path / "net.onnx", device="cuda")).sessions

    assert "hgkd-edge export --trt" in refusal.value.hint
    assert [one.runner for one in session.measurements] == ["ort-cpu"]
    assert [one.name for one in session.refusals] == ["net tensorrt-rtx b1"]


def test_a_file_without_a_record_is_refused_by_name(make_run: MakeRun) -> None:
    run = make_run()
    made = run / "export" / "run.fp32.xml"

    [model] = resolve_models([made], kinds={".xml"})
    (run / "export.json").unlink()

    assert model.path == made
    with pytest.raises(RunError, match="no export.json of a run records it"):
        resolve_models([made], kinds={".xml"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batches": (8,)}, "takes batches of 1 to 4, not 8"),
        ({"runners": ("tensorrt",)}, "was built by tensorrt_rtx"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_with_the_way_to_one_that_does(
    make_run: MakeRun, changes: dict[str, Any], expected: str
) -> None:
    run = make_run("tensorrt-rtx")

    with pytest.raises(DeviceError, match=expected) as refusal:
        run_bench(quick(run, **{"runners": ("tensorrt-rtx",), **changes}))

    assert refusal.value.hint


def test_an_engine_that_was_built_elsewhere_needs_the_users_word(make_run: MakeRun) -> None:
    run = make_run("tensorrt-rtx")
    for known in engines_dir().iterdir():
        known.unlink()

    with pytest.raises(DeviceError, match="was not built on this machine") as refusal:
        measured(run, runners=("tensorrt-rtx",))
    [one] = measured(run, runners=("tensorrt-rtx",), trust_engine=True)

    assert "--trust-engine" in refusal.value.hint
    assert one.runner == "tensorrt-rtx"


@pytest.mark.parametrize("entry", [7, {}, {"made_from": "run.fp32.onnx"}])
def test_a_damaged_record_is_one_clear_error(make_run: MakeRun, entry: object) -> None:
    run = make_run()
    (run / "export.json").write_text(json.dumps({"files": [entry]}))

    with pytest.raises(RunError, match=r"export\.json.*damaged"):
        run_bench(BenchOptions(models=(run,), device="openvino"))


def measured(source: Path, **changes: object) -> list[Measurement]:
    return run_bench(quick(source, **changes)).sessions[0].measurements
