"""The loop with recorded passes, on a CPU: a trace stands in for the CUDA graph."""

from __future__ import annotations

import json
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor

from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine import Inputs, graph
from hgkd_edge.errors import Interrupted, TrainingError
from hgkd_edge.recipe_sections import TrainConfig
from tests.engine.helpers import Masks, log_lines, losses, place, run, same, saved, tiny_source
from tests.started import started_twice
from tests.tracing import Tracing, record

# 4 epochs of 5 batches with 2 updates each.
UPDATES = 40


@pytest.fixture
def source() -> ImageSource:
    return tiny_source()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Tracing]:
    """Record passes by a trace, and read figures late; returns each training's recorder."""
    return record(monkeypatch)


@pytest.mark.parametrize(
    ("task", "more", "recorded", "replayed"),
    [
        ({}, {}, 1, UPDATES - 2),
        ({}, {"ema": 0.0, "clip_grad": 0}, 1, UPDATES - 2),
        ({}, {"optimizer": "lamb"}, 1, UPDATES - 2),
        ({}, {"accumulate": 4, "epochs": 2}, 2, 4 * (UPDATES // 2 - 2)),
        ({"changes": 0.5}, {}, 2, UPDATES - 4),
        ({"changes": 0.5}, {"accumulate": 2, "epochs": 2}, 4, 2 * (UPDATES // 2 - 4)),
    ],
)
def test_a_recorded_training_is_the_same_to_the_last_bit(
    source: ImageSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: dict[str, Any],
    more: dict[str, Any],
    recorded: int,
    replayed: int,
) -> None:
    eager = run(Masks(**task), source, tmp_path / "eager", **more)
    made = record(monkeypatch)
    cleared: list[bool] = []
    zero_grad = AcceleratedOptimizer.zero_grad
    monkeypatch.setattr(
        AcceleratedOptimizer,
        "zero_grad",
        lambda self, *of, **how: (cleared.append(True), zero_grad(self, *of, **how)),
    )

    graphed = run(Masks(**task), source, tmp_path / "graph", **more)

    assert (len(made[0].traces), made[0].replays) == (recorded, replayed)
    assert len(cleared) == 2 * (2 if task else 1)  # a graph writes to gradients that must stay
    assert log_lines(tmp_path / "eager") == log_lines(tmp_path / "graph")
    assert same(saved(tmp_path / "eager"), saved(tmp_path / "graph"))
    assert same(dict(eager.state_dict()), dict(graphed.state_dict()))


def test_off_records_nothing(source: ImageSource, tmp_path: Path, made: list[Tracing]) -> None:
    run(Masks(), source, tmp_path, graph="off")

    assert made == []


@pytest.mark.parametrize("batch", [1, 6, 13])
def test_a_recorded_run_stopped_at_any_batch_resumes_exactly(
    source: ImageSource, tmp_path: Path, made: list[Tracing], batch: int
) -> None:
    run(Masks(changes=0.5), source, tmp_path / "whole")
    task, batches = Masks(changes=0.5), iter(range(100))
    inputs = task.inputs

    def press_ctrl_c(*of: Any) -> Iterator[Inputs]:
        if next(batches) == batch:
            signal.raise_signal(signal.SIGINT)
        return inputs(*of)

    task.inputs = press_ctrl_c  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        run(task, source, tmp_path / "stopped")
    run(Masks(changes=0.5), source, tmp_path / "stopped", resume=True)

    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert same(saved(tmp_path / "stopped"), saved(tmp_path / "whole"))


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("step", [1, 7, 12])
def test_a_recorded_update_that_is_not_finite_is_named_and_nothing_is_saved_of_it(
    source: ImageSource, tmp_path: Path, step: int
) -> None:
    task = Masks(spoil="images", at=step + 1)

    with pytest.raises(TrainingError, match=rf"loss is nan at step {step} \(learning rate"):
        run(task, source, tmp_path, checkpoint_every=1)

    assert all(weight.isfinite().all() for weight in task.model.parameters())
    assert place(tmp_path).checkpoint_file.exists() == (step > 10)
    assert step < 10 or same_but_nothing_bad(saved(tmp_path))


def same_but_nothing_bad(state: dict[str, Any]) -> bool:
    return state["step"] == 10 and all(
        value.isfinite().all() for value in (*state["model"].values(), *state["ema"].values())
    )


class Asks(Masks):
    """Its model reads the value of a tensor, which breaks any recording."""

    def __init__(self, accumulated_only: bool) -> None:
        super().__init__()
        forward = self.model.forward
        weight = self.model.layers[0].weight

        def asks(*inputs: Any) -> dict[str, Tensor]:
            if not accumulated_only or weight.grad is not None:
                float(inputs[0].mean())
            return forward(*inputs)

        self.model.forward = asks  # type: ignore[method-assign]


@pytest.mark.parametrize("accumulated_only", [False, True])
def test_a_pass_that_cannot_be_recorded_runs_as_before_and_one_line_says_why(
    source: ImageSource,
    tmp_path: Path,
    made: list[Tracing],
    capsys: pytest.CaptureFixture[str],
    accumulated_only: bool,
) -> None:
    run(Masks(), source, tmp_path / "eager", accumulate=2, epochs=2, graph="off")
    capsys.readouterr()

    run(Asks(accumulated_only), source, tmp_path / "asks", accumulate=2, epochs=2)

    printed = [line for line in capsys.readouterr().err.splitlines() if "CUDA graph" in line]
    assert len(printed) == 1
    assert "warning: training without a CUDA graph: it cannot be captured" in printed[0]
    assert len(made[-1].traces) == accumulated_only
    assert losses(tmp_path / "asks") == losses(tmp_path / "eager")
    assert same(saved(tmp_path / "asks"), saved(tmp_path / "eager"))


def test_every_form_of_inputs_is_recorded_in_separate_memory() -> None:
    class Recorder:
        def __init__(self) -> None:
            made.append(0)

        def warm_up(self, work: graph.Work, inputs: Inputs) -> graph.Outputs:
            return work(inputs)

        def capture(self, work: graph.Work, inputs: Inputs) -> Callable[[], graph.Outputs]:
            made[-1] += 1
            return lambda: work(inputs)

    made: list[int] = []
    recorded = graph.GraphedPass(
        lambda inputs: {"sum": torch.as_tensor(sum(map(torch.as_tensor, inputs)))},
        torch.nn.Identity(),
        Recorder,
    )
    forms: list[Inputs] = [(torch.ones(2), 1), (torch.ones(2), 2), (torch.ones(3), 2)]

    for form in forms:
        for value in range(5):
            given = (form[0] * value, form[1])
            assert torch.equal(recorded(given, adds=False)["sum"], given[0] + given[1])

    assert [count for count in made if count] == [1, 1, 1]


def test_a_new_form_of_inputs_frees_what_was_captured_before_it_is_captured() -> None:
    class Captured:
        """Holds the memory of a graph, as a CUDA graph holds that of its pool."""

    held: list[weakref.ref[Captured]] = []
    alive: list[int] = []

    class Recorder:
        def warm_up(self, work: graph.Work, inputs: Inputs) -> graph.Outputs:
            alive.append(sum(each() is not None for each in held))
            return work(inputs)

        def capture(self, work: graph.Work, inputs: Inputs) -> Callable[[], graph.Outputs]:
            captured = Captured()
            held.append(weakref.ref(captured))
            return lambda: work(inputs) if captured else {}

    model = torch.nn.Linear(1, 1)
    recorded = graph.GraphedPass(lambda inputs: {"n": inputs[0].sum()}, model, Recorder)

    for visible in (4, 8, 16):  # the stages of a ratio
        for _ in range(5):
            recorded((torch.ones(2), visible), adds=False)

    assert len(held) == 3
    assert set(alive) == {0}  # when the next stage starts, the previous one is freed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "recorded", "replayed"),
    [
        ({"accumulate": 2}, 4, 2 * (UPDATES - 4)),
        ({"optimizer": "lamb", "ema": 0.0}, 2, UPDATES - 4),
    ],
)
def test_two_processes_with_a_recorded_pass_train_as_without_to_the_last_bit(
    tmp_path: Path, more: dict[str, Any], recorded: int, replayed: int
) -> None:
    code = "import runpy; runpy.run_module('tests.engine.two_processes', run_name='__main__')"

    for done in started_twice(str(tmp_path), json.dumps(more), code=code):
        assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(2):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == [recorded, replayed]
    assert log_lines(tmp_path / "eager") == log_lines(tmp_path / "recorded")
    assert same(saved(tmp_path / "eager"), saved(tmp_path / "recorded"))


@pytest.mark.parametrize(
    ("distributed", "scaler", "exchanges", "why"),
    [
        ("NO", object(), False, "train.precision fp16"),
        ("MULTI_GPU", object(), False, "train.precision fp16"),
        ("MULTI_GPU", None, True, "train.sync_batchnorm"),
        ("FSDP", None, False, "Accelerate runs FSDP"),
    ],
)
def test_what_cannot_be_recorded_is_reported_in_one_line(
    distributed: str,
    scaler: object,
    exchanges: bool,
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu = accelerator("cuda", distributed, scaler)

    made = graph.graphed_pass(
        lambda _: {}, torch.nn.Identity(), gpu, wanted=True, exchanges=exchanges
    )

    assert made is None
    (line,) = capsys.readouterr().err.splitlines()
    assert f"training without a CUDA graph: {why}" in line


@pytest.mark.parametrize("distributed", ["NO", "MULTI_GPU"])
def test_one_process_or_several_are_recorded(
    distributed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graph, "CudaGraphs", lambda: None)
    gpu = accelerator("cuda", distributed, None)

    made = graph.graphed_pass(lambda _: {}, torch.nn.Identity(), gpu, wanted=True, exchanges=False)

    assert isinstance(made, graph.GraphedPass)
    assert capsys.readouterr().err == ""


def accelerator(device: str, distributed: str, scaler: object) -> Any:
    kind = DistributedType(distributed)
    return SimpleNamespace(device=torch.device(device), distributed_type=kind, scaler=scaler)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_where_nobody_asked_for_a_graph_nothing_is_printed(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = accelerator(device, "MULTI_GPU", object())

    made = graph.graphed_pass(
        lambda _: {}, torch.nn.Identity(), place, wanted=device == "cpu", exchanges=True
    )

    assert made is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("given", "meant"), [(False, "off"), ("off", "off"), ("auto", "auto")])
def test_a_bare_off_in_yaml_means_off(given: Any, meant: str) -> None:
    assert TrainConfig.model_validate({"graph": given}).graph == meant
