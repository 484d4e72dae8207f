"""From raw times to the records of bench.json, without running a network."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from exporters.onnx_info import onnx_info
from hgkd_edge.bench.measurement import (
    Case,
    Execution,
    measurement_of,
    session_of,
    with_ratios,
)
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Machine, Measurement, Refusal, Verification, Warmup
from hgkd_edge.bench.timing import Trace

from .conftest import MakeModel

RAN = Execution("1.2", "CPU", 2, [], 9.0, 8.0, None, 7.0, None, details={"graph": "one"})
WARM = Warmup(runs=30, seconds=1.25, stable=True)
SETTLED = [np.full(50, 2.0), np.full(50, 2.0)]  # ms
AGREES = Verification(
    images=2, source="images", reference="net.onnx", bound="fp32", most_relative_error=1e-4,
    least_cosine=0.999, relative_error=1e-6, cosine=1.0, top1=None, passed=True,
)  # fmt: skip


@pytest.fixture
def case(make_model: MakeModel) -> Case:
    path = make_model()
    return Case(ModelFile("net", path, onnx_info(path)), "ort-cpu", "fp32", 4, None)


def record(case: Case, rounds: list[np.ndarray] = SETTLED, **known: Any) -> Measurement:
    trace = Trace(known.pop("warmup", WARM), rounds)
    return measurement_of(case, trace, RAN, BenchOptions(), **{"found": AGREES, **known})


def test_a_case_is_named_by_what_sets_it_apart(case: Case) -> None:
    assert case.name == "net ort-cpu b4"
    assert replace(case, precision="fp16", threads=2).name == "net ort-cpu fp16 b4 t2"


def test_a_record_holds_the_case_its_times_and_what_ran_it(case: Case) -> None:
    seen = record(case, [np.array([1.0, 2, 3]), np.array([4.0, 6])], warnings=["slow disk"])

    assert (seen.case, seen.model, seen.runner) == ("net ort-cpu b4", "net", "ort-cpu")
    assert (seen.precision, seen.batch, seen.copies) == ("fp32", 4, "in")
    assert (seen.runner_version, seen.backend, seen.threads) == ("1.2", "CPU", 2)
    assert (seen.first_inference_ms, seen.load_ms, seen.host_memory_mb) == (9, 8, 7)
    assert (seen.details, seen.commands, seen.warmup) == ({"graph": "one"}, [], WARM)
    assert seen.rounds_p50_ms == [2, 5]
    assert (seen.latency_ms.count, seen.latency_ms.max) == (5, 6)
    assert seen.measured_s == pytest.approx(0.016)
    assert seen.throughput_ips == pytest.approx(4 * 5 / 0.016)
    assert seen.verification == AGREES
    assert seen.warnings[0] == "slow disk"


def test_the_time_of_overlapping_runs_is_given(case: Case) -> None:
    seen = record(case, seconds=0.1)

    assert seen.measured_s == 0.1
    assert seen.throughput_ips == pytest.approx(4 * 100 / 0.1)


@pytest.mark.parametrize(
    ("known", "warning"),
    [
        ({}, None),
        ({"found": None}, None),
        ({"rounds": [np.full(50, 2.0), np.full(49, 2.0)]}, "p99 of 99 runs"),
        ({"rounds": [np.full(50, 2.0), np.full(50, 3.0)]}, "noisy"),
        ({"warmup": Warmup(runs=30, seconds=1.25, stable=False)}, "after 1.2 s of warm-up"),
        ({"found": "no images"}, "not verified: no images"),
        ({"found": "no images", "where": " there"}, "not verified there: no images"),
        (
            {"found": AGREES.model_copy(update={"passed": False}), "where": " there"},
            "WRONG OUTPUTS there",
        ),
    ],
)
def test_what_makes_a_figure_doubtful_is_a_warning(
    case: Case, known: dict[str, Any], warning: str | None
) -> None:
    seen = record(case, **known)

    assert len(seen.warnings) == (warning is not None)
    assert all(warning in text for text in seen.warnings)


@pytest.mark.parametrize("found", ["no images", AGREES.model_copy(update={"passed": False}), None])
def test_that_outputs_are_wrong_or_unknown_comes_first(case: Case, found: Any) -> None:
    seen = record(case, found=found, warnings=["slow disk"])

    assert seen.warnings[-1] == "slow disk"
    assert len(seen.warnings) == (1 if found is None else 2)
    assert seen.verification == (found if isinstance(found, Verification) else None)


def test_ratios_are_to_the_base_and_only_between_cases_of_equal_rounds(case: Case) -> None:
    base = record(case)
    twice = record(replace(case, batch=8), [np.full(50, 4.0), np.full(50, 6.0)])
    other = record(replace(case, batch=1), [np.full(50, 4.0)])

    found = with_ratios([base, twice, other], base)

    assert [one.ratio and one.ratio.median for one in found] == [1, 2.5, None]
    assert found[1].ratio.to == base.case
    assert with_ratios([base], base)[0].ratio is None


def test_a_session_holds_what_was_asked_measured_and_refused(case: Case) -> None:
    refusal = Refusal(name="trt", reason="no GPU")
    base, twice = record(case), record(case, [2 * part for part in SETTLED])

    session = session_of(
        "this", BenchOptions(rounds=2), [base, twice], models=[case.model],
        machine=Machine(cpu="one"), refusals=[refusal], warnings=["busy"],
    )  # fmt: skip

    assert (session.target, session.settings.rounds, session.environment.cpu) == ("this", 2, "one")
    assert [one.ratio.median for one in session.measurements] == [1, 2]
    assert session.models == [case.model.record()]
    assert (session.refusals, session.warnings) == ([refusal], ["busy"])
    assert session.created.endswith("+00:00")
    assert datetime.fromisoformat(session.created).microsecond == 0
    assert session.tool_version
