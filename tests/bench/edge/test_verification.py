"""A device's outputs are compared with ONNX Runtime on this machine before timing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hgkd_edge.bench.edge import job
from hgkd_edge.bench.edge.trtexec import parse_outputs
from hgkd_edge.bench.records import load_bench
from hgkd_edge.bench.tables import session_view
from hgkd_edge.errors import UserError

from ..test_local import rendered
from .conftest import Board, measure, wait_until

MakeModel = Callable[..., Path]
StartBoard = Callable[..., Board]

pytestmark = pytest.mark.usefixtures("verified")

IMAGES = np.random.default_rng(3).random((6, 3, 32, 32), dtype=np.float32)


def kinds_of_calls(board: Board) -> str:
    """b = build, v = verify, m = measure, in the order of the calls."""
    marks = {"--onnx=": "b", "--exportOutput": "v", "--exportTimes": "m"}
    return "".join(
        letter for call in board.calls() for mark, letter in marks.items() if mark in call
    )


def test_an_engine_is_verified_on_the_same_images_before_it_is_measured(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board, model = start_board(), make_model()

    [session] = measure(board, model, images=IMAGES).sessions

    seen = session.measurements[0].verification
    assert seen is not None
    assert (seen.passed, seen.images, seen.source) == (True, 4, "images")
    assert seen.relative_error is not None
    assert seen.relative_error < 1e-5
    assert seen.bound == "tf32"  # TensorRT may compute FP32 in TF32
    assert kinds_of_calls(board) == "bvvvvm"
    assert "outputs verified on the device before measuring" in " ".join(
        rendered(session_view(session)).split()
    )


@pytest.mark.parametrize("factor", ["1.5", "-1", "nan"])
def test_an_engine_that_computes_something_else_is_not_measured(
    make_model: MakeModel, start_board: StartBoard, factor: str
) -> None:
    board, model = start_board(STANDIN_WRONG=factor), make_model()

    with pytest.raises(UserError, match="its outputs differ from those of 'net.onnx'") as failure:
        measure(board, model, images=IMAGES)

    assert failure.value.exit_code == 1
    assert "--unverified" in failure.value.hint
    assert "m" not in kinds_of_calls(board)
    assert not (model.parent / "bench.json").exists()
    wait_until(lambda: not board.leftovers(), 5)


@pytest.mark.parametrize(("precision", "refused"), [("fp32", True), ("fp16", False)])
def test_an_engine_is_judged_by_its_own_precisions_bound(
    make_model: MakeModel, start_board: StartBoard, precision: str, refused: bool
) -> None:
    board, model = start_board(STANDIN_WRONG="1.01"), make_model()

    if refused:  # 1 % is ten times what TF32 loses
        with pytest.raises(UserError, match=r"relative 1\.00e-02 \(at most 0\.005\)"):
            measure(board, model, images=IMAGES, precisions=(precision,))
        return
    [one] = measure(board, model, images=IMAGES, precisions=(precision,)).sessions[0].measurements

    assert one.verification is not None
    assert (one.verification.bound, one.verification.passed) == ("fp16", True)


def test_a_wrong_engine_is_measured_on_demand_and_never_without_saying_so(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board, model = start_board(STANDIN_WRONG="nan"), make_model()

    result = measure(board, model, images=IMAGES, unverified=True)

    [one] = load_bench(result.file).sessions[0].measurements
    assert one.verification is not None
    assert (one.verification.passed, one.verification.relative_error) == (False, None)
    text = rendered(session_view(result.sessions[0]))
    assert "WRONG OUTPUTS" in text
    assert "outputs verified" not in text


def test_the_runner_sent_to_a_box_is_verified_too(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board = start_board("box", tools=(), jetson=False)

    [session] = measure(board, make_model(), threads=(1,), duration_s=0.1, images=IMAGES).sessions

    seen = session.measurements[0].verification
    assert seen is not None
    assert (seen.passed, seen.bound, seen.images) == (True, "fp32", 4)


def test_outputs_too_large_to_fetch_are_reported_as_unverified(
    make_model: MakeModel, start_board: StartBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "MOST_VALUES", 10)
    board = start_board()

    [session] = measure(board, make_model()).sessions

    assert session.measurements[0].verification is None
    assert (
        "not verified on the device: the outputs are too large"
        in (session.measurements[0].warnings[0])
    )
    assert kinds_of_calls(board) == "bm"


def test_images_that_export_kept_are_used(make_model: MakeModel, start_board: StartBoard) -> None:
    model = make_model("run/export/net")
    (model.parent.parent / "recipe.yaml").write_text("name: x\n")
    np.save(model.parent / "images.npy", IMAGES)

    [session] = measure(start_board(), model.parent.parent).sessions

    [one] = session.measurements
    assert one.inputs[0].source == "images"
    assert one.verification is not None
    assert one.verification.source == "images"
    assert session.settings.images is not None
    assert session.settings.images.shape == [6, 3, 32, 32]


def test_trtexecs_outputs_are_read_with_the_values_that_json_has_no_words_for() -> None:
    text = """[
  { "name" : "nan inf"
  , "dimensions" : "1x3"
  , "values" : [ 0.5, -inf, nan ]
  }
, { "name" : "classes"
  , "dimensions" : "2"
  , "values" : [ 3, -nan ]
  }
]
"""

    found = parse_outputs(text)

    np.testing.assert_array_equal(found["nan inf"], [[0.5, -np.inf, np.nan]])
    np.testing.assert_array_equal(found["classes"], [3, np.nan])


@pytest.mark.parametrize(
    "text", ["", "[", "3", '[{"name": "a"}]', '[{"name": "a", "dimensions": 1, "values": []}]']
)
def test_outputs_that_are_none_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"exported outputs|Expecting"):
        parse_outputs(text)
