"""Figures that are read one update late, as on a GPU: the training is the same to the last bit."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine import Inputs, loop
from hgkd_edge.errors import Interrupted, TrainingError
from tests.engine.helpers import Masks, log_lines, losses, place, run, same, saved, tiny_source


@pytest.fixture
def source() -> ImageSource:
    return tiny_source()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "reads_late", lambda *_: True)


@pytest.mark.parametrize("more", [{}, {"accumulate": 2}, {"ema": 0.0}, {"clip_grad": 0}])
def test_figures_read_late_change_nothing(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    more = {"epochs": 2, **more}
    now = run(Masks(), source, tmp_path / "now", **more)
    monkeypatch.setattr(loop, "reads_late", lambda *_: True)

    later = run(Masks(), source, tmp_path / "late", **more)

    logs = [log_lines(tmp_path / name) for name in ("now", "late")]
    assert logs[0] == logs[1]
    assert same(saved(tmp_path / "now"), saved(tmp_path / "late"))
    assert same(dict(now.state_dict()), dict(later.state_dict()))


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize(
    ("spoil", "expected"), [("loss", "loss is nan"), ("gradient", "norm is inf")]
)
@pytest.mark.parametrize("step", [3, 4, 19])  # second of a batch, first of one, first of the last
def test_an_update_that_is_not_finite_is_skipped_and_named(
    source: ImageSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: str,
    expected: str,
    step: int,
) -> None:
    states: list[tuple[dict[str, Any], dict[str, Any]]] = []
    task = Masks(spoil=spoil, at=step + 1)
    averages = _spied_averages(monkeypatch)
    hook = register_optimizer_step_post_hook(
        lambda optimizer, *_: states.append(
            (_copied(dict(task.model.named_parameters())), _copied(optimizer.state_dict()["state"]))
        )
    )

    try:
        with pytest.raises(TrainingError, match=rf"{expected} at step {step} \(learning rate"):
            run(task, source, tmp_path, epochs=2)
    finally:
        hook.remove()

    assert len(states) == step + 1  # the next update has not finished
    assert same(states[step], states[step - 1])
    assert averages == list(range(1, step + 1))
    assert len(losses(tmp_path)) == step // 2


def _copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return tree.detach().clone() if isinstance(tree, Tensor) else tree


def _spied_averages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Updates that were averaged in, filled in as the training goes."""
    steps: list[int] = []
    update = loop.ModelEmaV3.update

    def spy(self: Any, model: Any, step: int) -> None:
        steps.append(step)
        update(self, model, step)

    monkeypatch.setattr(loop.ModelEmaV3, "update", spy)
    return steps


@pytest.mark.usefixtures("late")
def test_what_is_not_finite_in_the_last_update_is_still_found(
    source: ImageSource, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="loss is nan at step 19"):
        run(Masks(spoil="loss", at=20), source, tmp_path, epochs=2)

    assert not place(tmp_path).checkpoint_file.exists()


@pytest.mark.usefixtures("late")
def test_a_run_that_read_late_and_was_stopped_resumes_exactly(
    source: ImageSource, tmp_path: Path
) -> None:
    run(Masks(), source, tmp_path / "whole")
    task, presses = Masks(), iter(range(100))
    inputs = task.inputs

    def press_ctrl_c(*of: Any) -> Iterator[Inputs]:
        if next(presses) == 6:
            signal.raise_signal(signal.SIGINT)
        return inputs(*of)

    task.inputs = press_ctrl_c  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="stopped at step 14"):
        run(task, source, tmp_path / "stopped")
    assert [line["step"] for line in log_lines(tmp_path / "stopped")] == list(range(2, 15, 2))
    run(Masks(), source, tmp_path / "stopped", resume=True)

    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert same(saved(tmp_path / "stopped"), saved(tmp_path / "whole"))
