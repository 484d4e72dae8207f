"""Real builds: TensorRT-RTX parses and builds without a GPU."""

import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from exporters import _trt_build_worker, _trt_compat, runtimes, verify
from exporters._trt_compat import Flavor, available, choose, typing_for
from exporters._trt_protocol import BuildRequest, Shapes
from exporters.errors import (
    ConversionFailed,
    ExportError,
    MissingPackageError,
    VerificationFailed,
)
from exporters.runtimes.tensorrt import load_engine
from exporters.sidecar import (
    Sidecar,
    read_sidecar,
    remember_engine,
    require_built_here,
    require_own_engine,
    sidecar_path,
    write_sidecar,
)
from exporters.trt_build import build_engine

RTX = next((flavor for flavor in available() if flavor.name == "tensorrt_rtx"), None)
needs_rtx = pytest.mark.skipif(RTX is None, reason="tensorrt-rtx is not installed")


@pytest.fixture(scope="module")
def engine(exported, tmp_path_factory):
    path = tmp_path_factory.mktemp("engine") / "net.plan"
    build_engine(exported("mobilenetv3_small_100").path, path, backend="tensorrt_rtx")
    return path


@pytest.fixture
def own_engine(engine, tmp_path):
    """A copy that a test may damage."""
    path = tmp_path / engine.name
    path.write_bytes(engine.read_bytes())
    sidecar_path(path).write_bytes(sidecar_path(engine).read_bytes())
    return path


@needs_rtx
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_100", "convnext_atto", "regnety_002"]
)
def test_an_engine_is_built_without_a_gpu(exported, tmp_path, name):
    phases = []

    built = build_engine(
        exported(name).path,
        tmp_path / "net.plan",
        backend="tensorrt_rtx",
        opt_batch=4,
        max_batch=8,
        progress=lambda phase, step, steps: phases.append((phase, step, steps)),
    )

    assert built.size_bytes > 1_000_000
    assert built.precision == "fp32"
    assert built.profile["opt"][0] == 4
    assert "8.9" in built.device
    assert phases[-1][1] == phases[-1][2] > 0
    assert json.dumps(built.to_dict())


@needs_rtx
def test_an_fp32_engine_does_not_compute_in_tf32(tmp_path):
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy"
    )
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 17)]
    source = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), source)
    request = BuildRequest(
        flavor=RTX,
        precision="fp32",
        onnx=str(source),
        output=str(tmp_path / "net.plan"),
        shapes=Shapes("x", *[[1, 4]] * 3),
    )
    code = """
import sys, tensorrt_rtx
from exporters import _trt_build_worker, _trt_compat, _trt_protocol

def look(network, create_config, save_timing_cache):
    builder, network, _parser = network
    print(create_config(builder, network).get_flag(tensorrt_rtx.BuilderFlag.TF32))
    return b"engine"

request = _trt_protocol.BuildRequest.from_json(sys.argv[1])
_trt_compat.select_for_polygraphy(request.flavor)
from polygraphy.backend import trt
trt.engine_bytes_from_network = look
_trt_build_worker._build(request, lambda event: None)
"""

    seen = subprocess.run(
        [sys.executable, "-c", code, request.to_json()],
        check=True, timeout=120, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    assert seen.stdout.splitlines()[-1] == "False"


@needs_rtx
def test_the_engine_is_made_for_the_targets_asked_for(exported, tmp_path):
    source = exported("mobilenetv3_small_100").path

    built = build_engine(
        source, tmp_path / "net.plan", backend="tensorrt_rtx", compute_capabilities=["8.6", "12.0"],
        workspace_mib=64,
    )  # fmt: skip

    assert read_sidecar(built.path).targets == ["8.6", "12.0"]
    with pytest.raises(ExportError, match=r"compute capability 8\.7") as caught:
        build_engine(
            source, tmp_path / "orin.plan", backend="tensorrt_rtx", compute_capabilities=["8.7"]
        )
    assert "Jetson" in caught.value.hint
    assert not (tmp_path / "orin.plan").exists()


@needs_rtx
def test_the_other_tensorrt_chosen_in_this_process_does_not_matter(exported, tmp_path):
    # Polygraphy decides once per process which TensorRT it drives; in this test it chose the wrong
    # one.
    code = (
        "import polygraphy.config as c; assert not c.USE_TENSORRT_RTX;"
        "from exporters.trt_build import build_engine;"
        f"build_engine({str(exported('mobilenetv3_small_100').path)!r},"
        f"{str(tmp_path / 'net.plan')!r}, backend='tensorrt_rtx')"
    )
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "0"}

    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)

    assert (tmp_path / "net.plan").stat().st_size > 1_000_000


@needs_rtx
def test_building_prints_nothing_and_keeps_timings_where_asked(exported, tmp_path, capfd):
    cache, out = tmp_path / "cache", tmp_path / "out"

    for _ in range(2):
        build_engine(
            exported("mobilenetv3_small_100").path, out / "net.plan",
            backend="tensorrt_rtx", cache_dir=cache,
        )  # fmt: skip

    (timings,) = cache.glob("*.timing")
    assert timings.stat().st_size > 0
    assert capfd.readouterr() == ("", "")
    assert sorted(file.name for file in out.iterdir()) == ["net.plan", "net.plan.json"]


@needs_rtx
def test_an_unsupported_operator_is_named_and_nothing_is_written(tmp_path):
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Unique", ["images"], ["y"], name="odd/Unique", sorted=1)],
        "g",
        [value("images", 1, ["batch", 3, 8, 8])],
        [value("y", 1, ["n"])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    source = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), source)

    with pytest.raises(ConversionFailed, match="Unique") as caught:
        build_engine(source, tmp_path / "out" / "net.plan", backend="tensorrt_rtx")

    assert "\n" not in caught.value.message
    assert not list((tmp_path / "out").glob("*.plan*"))


@needs_rtx
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backend": "tensorflow"}, "unknown TensorRT backend"),
        ({"opt_batch": 4, "max_batch": 2}, "batch sizes must rise"),
        ({"backend": "tensorrt_rtx", "dla": 0}, "no DLA"),
    ],
)
def test_options_that_cannot_work_are_refused(exported, tmp_path, options, says):
    with pytest.raises(ExportError, match=says) as caught:
        build_engine(exported("resnet18").path, tmp_path / "net.plan", **options)

    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_an_unwritable_path_is_one_clear_error(exported, tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ExportError, match="cannot write"):
        build_engine(
            exported("resnet18").path, tmp_path / "file" / "n.plan", backend="tensorrt_rtx"
        )


@needs_rtx
def test_a_builder_that_dies_is_an_error_not_a_hang(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("exporters.trt_build.sys", SimpleNamespace(executable="/bin/false"))

    with pytest.raises(ConversionFailed, match="exit code 1"):
        build_engine(exported("resnet18").path, tmp_path / "net.plan", backend="tensorrt_rtx")

    assert not list(tmp_path.glob("*.plan*"))


@needs_rtx
def test_an_engine_without_a_sidecar_is_not_loaded(own_engine):
    sidecar_path(own_engine).unlink()

    with pytest.raises(ExportError, match="no sidecar"):
        load_engine(own_engine)


@needs_rtx
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"\0" + b[1:], lambda b: b""])
def test_a_truncated_or_replaced_engine_is_not_loaded(own_engine, damage):
    own_engine.write_bytes(damage(own_engine.read_bytes()))

    with pytest.raises(ExportError, match="sha256 differs"):
        load_engine(own_engine)


@needs_rtx
def test_an_engine_of_another_version_or_network_is_not_loaded(own_engine, exported):
    with pytest.raises(
        ExportError, match=r"built by tensorrt_rtx .*; this is tensorrt_rtx 1\.0\.0"
    ):
        require_own_engine(own_engine, own_engine.read_bytes(), Flavor("tensorrt_rtx", "1.0.0"))
    with pytest.raises(ExportError, match="was not built from"):
        load_engine(own_engine, onnx_path=exported("resnet18").path)


@needs_rtx
def test_an_engine_for_another_gpu_is_not_loaded(own_engine):
    content = json.loads(sidecar_path(own_engine).read_text()) | {"gpu": "Orin (SM 8.7)"}
    sidecar_path(own_engine).write_text(json.dumps(content))

    with pytest.raises(ExportError, match=r"built for Orin \(SM 8.7\)"):
        load_engine(own_engine)


SOUND = {
    "engine_sha256": "0" * 64,
    "onnx_sha256": "0" * 64,
    "backend": "tensorrt",
    "version": "10.3.0",
    "gpu": None,
    "targets": ["8.6"],
    "precision": "fp16",
    "profile": {name: [1, 3, 8, 8] for name in ("min", "opt", "max")},
}


def write_engine(folder, sidecar: str):
    engine = folder / "net.plan"
    engine.write_bytes(b"machine code")
    sidecar_path(engine).write_text(sidecar)
    return engine


def test_a_sound_sidecar_is_read_whatever_else_it_says(tmp_path):
    found = read_sidecar(write_engine(tmp_path, json.dumps(SOUND | {"of a later release": [1]})))

    assert found.profile["max"] == [1, 3, 8, 8]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("engine_sha256", None),
        ("engine_sha256", "0" * 63),
        ("onnx_sha256", 7),
        ("backend", ["tensorrt"]),
        ("version", 10.3),
        ("gpu", {}),
        ("gpu", 7),
        ("targets", "8.6"),
        ("targets", [8.6]),
        ("precision", None),
        ("profile", None),
        ("profile", []),
        ("profile", {"max": [1]}),
        ("profile", SOUND["profile"] | {"max": []}),
        ("profile", SOUND["profile"] | {"max": [True, 3]}),
        ("profile", SOUND["profile"] | {"max": [0, 3]}),
        ("profile", SOUND["profile"] | {"max": [float("inf")]}),
    ],
)
def test_a_sidecar_with_a_field_of_another_type_is_refused_in_one_line(tmp_path, field, wrong):
    engine = write_engine(tmp_path, json.dumps(SOUND | {field: wrong}))

    with pytest.raises(ExportError, match="is not an engine's sidecar: .*'") as caught:
        read_sidecar(engine)

    assert field in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "{}",
        "[" * 100_000,
        json.dumps(SOUND)[:-1] + ', "x": ' + "9" * 5000 + "}",
        " " * (1 << 20) + json.dumps(SOUND),
    ],
    ids=["empty", "list", "number", "nothing", "deep", "digits", "huge"],
)
def test_a_sidecar_that_is_none_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(ExportError, match="is not an engine's sidecar") as caught:
        read_sidecar(write_engine(tmp_path, text))

    assert "\n" not in caught.value.message


def test_a_sidecar_that_never_ends_is_not_waited_for(tmp_path):
    engine = write_engine(tmp_path, "")
    sidecar_path(engine).unlink()
    os.mkfifo(sidecar_path(engine))

    with pytest.raises(ExportError, match="is not an engine's sidecar: it is not a file"):
        read_sidecar(engine)


@needs_rtx
def test_an_engine_with_a_forged_sidecar_is_not_loaded_unless_it_was_built_here(
    own_engine, tmp_path
):
    mine = tmp_path / "engines"
    remember_engine(own_engine, mine)
    with pytest.raises(ExportError, match="there is none here"):  # no GPU: everything else is valid
        load_engine(own_engine, built_here=mine)
    foreign = own_engine.read_bytes() + b"another program"
    own_engine.write_bytes(foreign)
    forged = json.loads(sidecar_path(own_engine).read_text()) | {
        "engine_sha256": hashlib.sha256(foreign).hexdigest(),
        "gpu": None,
    }
    sidecar_path(own_engine).write_text(json.dumps(forged))

    with pytest.raises(ExportError, match="was not built on this machine"):
        load_engine(own_engine, built_here=mine)


@needs_rtx
@pytest.mark.skipif(_trt_compat.gpu_name() is not None, reason="there is a GPU")
def test_without_a_gpu_a_sound_engine_is_refused_in_words(own_engine, exported):
    with pytest.raises(ExportError, match="there is none here"):
        load_engine(own_engine, onnx_path=exported("mobilenetv3_small_100").path)


@pytest.mark.parametrize(
    ("mode", "owner", "reported"),
    [
        (0o777, None, "other users"),
        (0o770, None, "other users"),
        (0o702, None, "other users"),
        (0o700, 12_345, "its owner, another user"),
    ],
)
def test_a_list_of_own_engines_that_others_can_write_proves_nothing(
    tmp_path, monkeypatch, mode, owner, reported
):
    engine, mine = write_engine(tmp_path, ""), tmp_path / "engines"
    remember_engine(engine, mine)
    require_built_here(engine, engine.read_bytes(), mine)
    mine.chmod(mode)
    if owner is not None:
        monkeypatch.setattr(os, "geteuid", lambda: owner)

    if owner is not None and mine.stat().st_uid == 0:
        mine = tmp_path / "theirs"
        remember_engine(engine, mine)
        os.chown(mine, 999, 999)

    with pytest.raises(ExportError, match=f"can be written by {reported}") as caught:
        require_built_here(engine, engine.read_bytes(), mine)
    assert "chmod go-w" in caught.value.hint


def test_no_tensorrt_names_every_way_to_get_one(monkeypatch):
    monkeypatch.setattr(_trt_compat, "available", lambda: ())

    with pytest.raises(MissingPackageError) as caught:
        choose(None)

    assert caught.value.exit_code == 2
    for way in ('"hgkd-edge[trt]"', '"hgkd-edge[trt-rtx]"', "JetPack", "--system-site-packages"):
        assert way in caught.value.hint


@pytest.mark.parametrize(
    ("name", "version", "precision", "dla", "expected"),
    [
        ("tensorrt", "8.6.2", "fp32", False, (False, False, False)),
        ("tensorrt", "8.6.2", "fp16", False, (False, True, False)),
        ("tensorrt", "8.5.2.2", "int8", False, (False, False, True)),
        ("tensorrt", "10.3.0", "fp16", False, (True, False, False)),
        ("tensorrt", "10.3.0", "int8", True, (False, True, True)),
        ("tensorrt", "11.4.1", "int8", True, (True, False, False)),
        ("tensorrt_rtx", "1.7.1.116", "fp16", False, (True, False, False)),
    ],
)
def test_each_release_gets_the_precision_its_own_way(name, version, precision, dla, expected):
    typing = typing_for(Flavor(name, version), precision, dla=dla)

    assert (typing.strongly_typed, typing.fp16, typing.int8) == expected


def test_a_dla_is_never_asked_for_fp32():
    with pytest.raises(ExportError, match="fp16 or int8"):
        typing_for(Flavor("tensorrt", "10.3.0"), "fp32", dla=True)


def drive_polygraphy(monkeypatch, network, config):
    """Put a Polygraphy in place whose network and builder accept only the flags of a release."""
    trt = SimpleNamespace(
        network_from_onnx_path=network,
        CreateConfig=config,
        Profile=lambda: SimpleNamespace(add=lambda *shapes: shapes),
        engine_bytes_from_network=lambda network, config, save_timing_cache: b"engine",
    )
    polygraphy = SimpleNamespace(mod=SimpleNamespace(lazy_import=lambda name: SimpleNamespace()))
    monkeypatch.setattr(_trt_build_worker, "select_for_polygraphy", lambda flavor: None)
    monkeypatch.setitem(sys.modules, "polygraphy", polygraphy)
    monkeypatch.setitem(sys.modules, "polygraphy.backend", SimpleNamespace(trt=trt))
    monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", trt)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("version", ["8.5.2.2", "8.6.2", "10.3.0", "11.4.1"])
def test_a_release_is_asked_only_for_what_it_knows(monkeypatch, tmp_path, version, precision):
    asked = {}

    def network_of_8(path):
        asked["strongly_typed"] = False

    def network_since_9(path, *, strongly_typed):
        asked["strongly_typed"] = strongly_typed

    def config_until_10(*, tf32, use_dla, allow_gpu_fallback, profiles, fp16=False, int8=False):
        asked.update(tf32=tf32, fp16=fp16, int8=int8)

    def config_of_11(*, tf32, use_dla, allow_gpu_fallback, profiles):
        asked.update(tf32=tf32, fp16=False, int8=False)

    eight, eleven = version.startswith("8"), version.startswith("11")
    drive_polygraphy(
        monkeypatch,
        network_of_8 if eight else network_since_9,
        config_of_11 if eleven else config_until_10,
    )
    request = BuildRequest(
        flavor=Flavor("tensorrt", version),
        precision=precision,
        onnx="net.onnx",
        output=str(tmp_path / "net.plan"),
        shapes=Shapes("images", [1], [1], [1]),
    )

    _trt_build_worker._build(BuildRequest.from_json(request.to_json()), lambda event: None)

    assert asked == {
        "strongly_typed": not eight,
        "tf32": False,
        "fp16": eight and precision == "fp16",
        "int8": eight and precision == "int8",
    }


@pytest.mark.parametrize(
    ("precision", "error", "passes"),
    [
        ("fp32", 1e-6, True),
        ("fp32", 1e-3, False),  # TF32, or half precision
        ("fp16", 1e-3, True),
        ("fp16", 1e-1, False),
    ],
)
def test_an_engine_is_judged_by_its_own_precisions_bounds(
    monkeypatch, tmp_path, exported, images, precision, error, passes
):
    source, path = exported("resnet18").path, tmp_path / "net.plan"
    path.write_bytes(b"engine")
    shapes = {name: [1, 3, 64, 64] for name in ("min", "opt", "max")}
    sidecar = Sidecar(
        "0" * 64, "0" * 64, "tensorrt", "10.3.0", "Orin (SM 8.7)", [], precision, shapes
    )
    write_sidecar(path, sidecar)
    right = runtimes.open(source).run

    def engine(pixels):
        outputs = right(pixels)
        return {name: value + error * np.abs(value).max() for name, value in outputs.items()}

    monkeypatch.setattr(verify, "gpu_name", lambda: "Orin (SM 8.7)")
    opened = SimpleNamespace(run=engine)
    monkeypatch.setitem(runtimes._OPENERS, ".plan", lambda source, options: opened)

    if passes:
        assert verify.verify_engine(source, path, images).passed
    else:
        with pytest.raises(VerificationFailed):
            verify.verify_engine(source, path, images)
