"""Triton kernels without a GPU: in the interpreter, cross-compiled, and where Triton is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hgkd_edge.sparse import choice, launch
from hgkd_edge.sparse.shape import ConvShape

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run(*arguments: str, **environment: str) -> None:
    """A Python process that must succeed."""
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


@needs_triton
def test_every_kernel_equals_the_engine_in_the_interpreter() -> None:
    run(
        "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/sparse/interpreted.py",
        TRITON_INTERPRET="1",
    )  # fmt: skip


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch, timm
from hgkd_edge.sparse import sparsify
encoder = sparsify(timm.create_model("mobilenetv3_small_050", features_only=True))
visible = torch.tensor([[[True, False], [False, True]]])
encoder(torch.rand(1, 3, 64, 64), visible)[-1].sum().backward()
"""


def test_the_engine_runs_where_triton_is_not_installed() -> None:
    run("-c", WITHOUT_TRITON)


def test_kernels_are_left_to_torch_on_a_cpu_without_triton_and_in_tracing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeTensorMode():
        traced = torch.empty(2, 4, device="cuda")
    monkeypatch.setattr(launch, "_works", lambda: True)

    assert not launch.ready(torch.empty(2, 4))
    assert not launch.ready(traced)
    assert choice.gathers_by(traced) == "index"
    assert choice.pools_by(traced, LAYER) == "native"


def test_kernels_are_chosen_on_a_gpu_except_for_windows_that_are_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeTensorMode():
        tiles = torch.empty(2, 4, 8, 8, device="cuda")
    monkeypatch.setattr(launch, "ready", lambda _: True)
    side = 1 + int(launch.TAPS**0.5)

    assert choice.gathers_by(tiles) == "triton"
    assert choice.pools_by(tiles, LAYER) == "direct"
    assert choice.pools_by(tiles, LAYER._replace(kernel=(side, side))) == "native"
    assert choice.pools_by(tiles, LAYER._replace(kernel=(launch.TAPS, 1))) == "direct"


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on this GPU")
def test_kernels_that_do_not_run_are_replaced_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    launch._works.cache_clear()

    try:
        with pytest.warns(UserWarning, match="install a C compiler"):
            assert not launch._works()
        assert not launch._works()
    finally:
        launch._works.cache_clear()


@pytest.mark.parametrize(
    ("channels", "block"),
    [(1, 1), (3, 4), (24, 32), (40, 64), (64, 64), (72, 32), (96, 32), (256, 128), (960, 64)],
)
def test_a_program_takes_channels_with_little_waste(channels: int, block: int) -> None:
    assert launch.block_of(channels) == block


# --- cross-compilation ----------------------------------------------------------------------------

LAYER = ConvShape(8, (3, 3), (1, 1), (1, 1), (1, 1), 1)
LAYER_OF = {
    "depthwise": LAYER._replace(kernel=(7, 7), before=(3, 3)),
    "depthwise_input": LAYER._replace(kernel=(5, 5), before=(2, 2), stride=(2, 2)),
    "depthwise_weight": LAYER._replace(kernel=(7, 7), before=(3, 3)),
    "max_pool": LAYER._replace(stride=(2, 2)),
    "max_pool_backward": LAYER._replace(stride=(2, 2)),
    "fold_taps": LAYER._replace(stride=(2, 2)),
}
GRID = {"GH": 7, "GW": 7, "LEFT": 1, "TOP": 1, "HP": 58, "WP": 58, "T": 8}
TYPES = {
    "near": "*i32", "tile_at": "*i64", "tiles": "*i64", "part": "*fp32", "chosen": "*i8",
    "total": "i32", "blocks": "i32", "outside": "fp32",
}  # fmt: skip
KERNELS = [
    "window", "fold_window", "fold_taps", "to_grid", "from_grid", "max_pool", "max_pool_backward",
    "depthwise", "depthwise_input", "depthwise_weight",
]  # fmt: skip


def compiled(name: str, channels: int, capability: int) -> Any:
    """The kernel in bf16, as `launch` would start it for such a layer."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hgkd_edge.sparse import triton_kernels

    kernel = getattr(triton_kernels, name)
    block = launch.block_of(channels)
    moves = name in ("window", "to_grid", "from_grid")
    each = launch.ELEMENTS // block if moves else launch.ELEMENTS // 2 // block
    known = {
        **launch.geometry(LAYER_OF.get(name, LAYER)), **GRID, "OH": 10, "OW": 10, "FLIP": False,
        "C": channels, "BC": block, "ROWS": each, "ACC": triton_kernels.tl.float32, "KP": 8,
    }  # fmt: skip
    if name == "depthwise_weight":
        known["ROWS"] = launch.ELEMENTS // (8 * block)
    names = kernel.arg_names
    constants = {(names.index(n),): known[n] for n in names if n in known}
    signature = {n: "constexpr" if n in known else TYPES.get(n, "*bf16") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if "*" in signature[n]}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def stack_of(cubin: bytes, folder: Path) -> tuple[int, int]:
    """Bytes of stack and of local memory: what spills."""
    import triton

    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run(
        [tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"STACK:(\d+).*LOCAL:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


@needs_triton
@pytest.mark.parametrize(
    ("name", "channels", "capability"),
    [
        *((name, 64, c) for name in KERNELS for c in (80, 87, 90)),
        *(("window", c, 90) for c in (3, 72)),
        *(("depthwise", c, 90) for c in (20, 96)),
    ],
)
def test_a_kernel_compiles_for_a_gpu_without_spills_and_with_wide_loads(
    name: str, channels: int, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))

    kernel = compiled(name, channels, capability)

    assert stack_of(kernel.asm["cubin"], tmp_path) == (0, 0)
    if channels % 8 == 0:  # rows start at multiples of 16 bytes
        assert re.search(r"ld\.global\S*\.v4\.b32", kernel.asm["ptx"]), "no 128-bit load"
    if channels % 8 == 0 and name != "depthwise_weight":
        assert re.search(r"st\.global\S*\.v4\.b32", kernel.asm["ptx"]), "no 128-bit store"
