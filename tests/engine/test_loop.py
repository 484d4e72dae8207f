from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine import resolve_precision, setup
from hgkd_edge.engine.batches import global_batch
from hgkd_edge.errors import RecipeError, RunError, TrainingError
from tests.engine.helpers import Classify, config, losses, place, run, tiny_source
from tests.started import Started


@pytest.fixture
def source() -> ImageSource:
    return tiny_source()


def test_training_learns_and_logs_every_step(source: ImageSource, tmp_path: Path) -> None:
    run(Classify(), source, tmp_path, epochs=60)

    curve = losses(tmp_path)
    assert len(curve) == 60 * 5
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])


def test_training_works_in_a_thread(source: ImageSource, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:  # as Streamlit and Gradio call it
        pool.submit(run, Classify(), source, tmp_path).result()

    assert losses(tmp_path)


def test_other_images_than_those_at_the_start_are_refused(
    source: ImageSource, tmp_path: Path
) -> None:
    run(Classify(), source, tmp_path)

    with pytest.raises(RunError, match=r"last\.pt: the training images, their labels, or how"):
        run(Classify(), replace(source, fingerprint="other"), tmp_path, resume=True)


def test_a_new_training_leaves_no_checkpoint_of_an_old_one_to_resume_from(
    source: ImageSource, tmp_path: Path
) -> None:
    run(Classify(), source, tmp_path)

    with pytest.raises(TrainingError, match="nan"):
        run(Classify(spoil_at=1), source, tmp_path)

    assert not place(tmp_path).checkpoint_file.exists()


def test_the_rate_warms_up_then_falls_to_zero(source: ImageSource, tmp_path: Path) -> None:
    run(Classify(), source, tmp_path, epochs=10, warmup_epochs=2)

    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [record["lr"] for record in records]
    peak = rates.index(max(rates))
    assert 9 <= peak <= 11
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.01 * max(rates)


def test_the_returned_model_is_the_average_and_follows_the_trained_one(
    source: ImageSource, tmp_path: Path
) -> None:
    task = Classify()

    averaged = run(task, source, tmp_path, ema=0.9)

    trained = task.model.state_dict()
    assert any(not torch.equal(v, trained[k]) for k, v in averaged.state_dict().items())
    assert run(Classify(), source, tmp_path / "plain", ema=0.0) is not averaged


def test_accumulated_gradients_equal_the_large_batch(source: ImageSource, tmp_path: Path) -> None:
    run(Classify(), source, tmp_path / "whole")
    run(Classify(), source, tmp_path / "parts", accumulate=4)

    torch.testing.assert_close(
        torch.tensor(losses(tmp_path / "parts")), torch.tensor(losses(tmp_path / "whole"))
    )


def test_a_batch_that_does_not_divide_is_refused(source: ImageSource, tmp_path: Path) -> None:
    few = source.subset(torch.arange(5))

    with pytest.raises(
        RecipeError, match="a batch of all 5 images does not divide among 1 process x.*use 4"
    ):
        run(Classify(), few, tmp_path, accumulate=4)


@pytest.mark.parametrize(
    ("photos", "world", "expected"),
    [
        (1000, 3, "mine.batch_size = 256: 256 does not divide among 3 processes.*use 255"),
        (5, 2, "mine.batch_size = 256: a batch of all 5 images does not.*use 4"),
        (1, 2, "a batch of all 1 image does not.*use at most 1 in processes x"),
    ],
)
def test_the_batch_error_names_the_setting_and_what_fits(
    photos: int, world: int, expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        global_batch(config(batch_size=256), photos, world, key="mine.batch_size")


def test_lamb_itself_clips_no_gradient(source: ImageSource, tmp_path: Path) -> None:
    limits: list[float | None] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: limits.append(optimizer.defaults["max_grad_norm"])
    )

    try:
        run(Classify(), source, tmp_path, optimizer="lamb", clip_grad=0, epochs=1)
    finally:
        hook.remove()

    assert limits == [None] * 5


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    source: ImageSource, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"nan at step 12 \(learning rate .*lower the rate"):
        run(Classify(spoil_at=13), source, tmp_path, checkpoint_every=1)

    state = torch.load(place(tmp_path).checkpoint_file, weights_only=True)
    assert state["step"] == 10
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_stopped_run_resumes_as_if_nothing_had_happened(
    source: ImageSource, tmp_path: Path
) -> None:
    run(Classify(), source, tmp_path / "whole")
    with pytest.raises(TrainingError):
        run(Classify(spoil_at=13), source, tmp_path / "broken", checkpoint_every=1)

    run(Classify(), source, tmp_path / "broken", resume=True)

    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(
    source: ImageSource, tmp_path: Path
) -> None:
    task = Classify()
    weight = task.model.layers[1].weight
    calls: list[torch.Tensor] = []
    weight.register_hook(lambda grad: grad * torch.inf if len(calls) == 7 else grad)
    weight.register_hook(lambda grad: calls.append(weight.detach().clone()))

    with pytest.raises(
        TrainingError, match=r"gradient norm is (inf|nan) at step 7 \(learning rate"
    ):
        run(task, source, tmp_path, checkpoint_every=1)

    assert torch.equal(weight, calls[7])


def test_fp16_without_a_gpu_is_refused_with_the_way_out() -> None:
    if torch.cuda.is_available():
        assert resolve_precision("fp16") == "fp16"
    else:
        with pytest.raises(RecipeError, match="use bf16, fp32 or auto"):
            resolve_precision("fp16")


@pytest.mark.skipif(
    torch.cuda.is_available() or not Path("/proc/cpuinfo").is_file(),
    reason="asks Linux what the CPU has",
)
def test_auto_precision_is_bf16_only_where_the_cpu_computes_faster_in_it() -> None:
    cpu = Path("/proc/cpuinfo").read_text()
    slow = "GenuineIntel" in cpu and "amx_bf16" not in cpu
    has_bf16 = "bf16" in cpu  # avx512_bf16, amx_bf16, Arm's bf16

    assert resolve_precision("auto") == ("bf16" if has_bf16 and not slow else "fp32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is asked first")
@pytest.mark.parametrize(
    ("vendor", "avx512", "amx", "allowed", "precision"),
    [
        ("AuthenticAMD", True, False, False, "bf16"),  # Zen 4
        ("AuthenticAMD", False, False, False, "fp32"),  # Zen 3
        ("GenuineIntel", True, True, True, "bf16"),
        ("GenuineIntel", True, True, False, "fp32"),  # an old kernel does not allow AMX
        ("GenuineIntel", True, False, False, "fp32"),  # AMX hidden by a virtual machine
        ("Intel64 Family 6 Model 207, GenuineIntel", True, False, False, "fp32"),  # Windows
    ],
)
def test_auto_precision_on_x86(
    vendor: str,
    avx512: bool,
    amx: bool,
    allowed: bool,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(setup, "_cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: allowed)

    assert resolve_precision("auto") == precision


COUNT_FAULTS = """
import resource, sys
from pathlib import Path
import torch
from tests.engine.helpers import Classify, run, tiny_source

def faults():  # pages from the kernel for 64 MiB, used and freed four times
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh = faults()
run(Classify(), tiny_source(), Path(sys.argv[1]))
faults()
print(fresh, faults())
"""


def test_freed_memory_is_kept_once_a_training_has_begun(tmp_path: Path) -> None:
    ended = Started(str(tmp_path), code=COUNT_FAULTS).end()

    assert ended.returncode == 0, ended.stderr
    fresh, kept = map(int, ended.stdout.split()[-2:])
    assert kept < fresh / 10
