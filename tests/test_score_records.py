"""finetune.json and evaluation.json: read as they were written, now and by earlier versions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hgkd_edge.errors import RunError
from hgkd_edge.files import write_json
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import (
    EvaluationRecord,
    FeatureRecord,
    TaskIntervals,
    TaskRecord,
    TaskScores,
)

STORED = Path(__file__).parent / "records"


@pytest.fixture
def run(tiny_recipe: dict[str, Any], tmp_path: Path) -> RunDir:
    return RunDir.create(Recipe.model_validate(tiny_recipe), tmp_path / "run")


def test_features_of_before_schema_versions_load(run: RunDir) -> None:
    text = (STORED / "evaluation_before_schema_versions.json").read_text()
    run.evaluation_file.write_text(text)

    found = run.evaluation()

    assert isinstance(found, FeatureRecord)
    assert found.count == json.loads(text)["photos"]["test"]
    assert found.to_dict() == json.loads(text)


def test_a_fine_tuning_of_before_schema_versions_loads(run: RunDir) -> None:
    text = (STORED / "finetune_before_schema_versions.json").read_text()
    run.finetune_result_file.write_text(text)

    found = run.finetune_result()

    assert found is not None
    assert found.single.keys() == {"top1", "top5", "mean_class"}
    assert found.to_dict() == json.loads(text)


def test_an_unbounded_interval_is_written_and_read(run: RunDir) -> None:
    intervals = TaskIntervals(map=(-math.inf, math.inf))
    record = EvaluationRecord(scores=TaskScores(map=0.5), intervals=intervals)
    write_json(run.evaluation_file, record.to_dict())

    found = run.evaluation()

    assert isinstance(found, TaskRecord)
    assert found.intervals.map == (-math.inf, math.inf)


@pytest.mark.parametrize("name", ["evaluation.json", "finetune.json"])
def test_a_record_of_a_later_version_is_refused(run: RunDir, name: str) -> None:
    (run.path / name).write_text('{"schema_version": 2}')

    with pytest.raises(RunError, match=rf"{name}: has schema version 2") as caught:
        run.evaluation() or run.finetune_result()

    assert "\n" not in caught.value.message


def test_a_run_without_scores_has_no_record(run: RunDir) -> None:
    assert run.evaluation() is None
    assert run.finetune_result() is None
