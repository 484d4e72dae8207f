from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hgkd_edge
from hgkd_edge.cli import app
from hgkd_edge.errors import DataError, ExportError, MissingPackageError
from hgkd_edge.pipeline import measure_pipeline
from hgkd_edge.stages import Stages
from hgkd_edge.video.decoding import import_av


def test_the_command_answers_a_video_and_prints_its_summary_as_json(
    networks: dict[str, Path], clip: Path, tmp_path: Path
) -> None:
    arguments = ["predict", str(networks["detect"]), str(clip), "--out", str(tmp_path), "--json"]

    done = CliRunner().invoke(app, [*arguments, "--frames", "5", "--no-video"])

    assert done.exit_code == 0, done.output
    (summary,) = json.loads(done.stdout)
    assert summary["frames"] == 5
    assert summary["video"] is None
    assert len(Path(summary["answers"]).read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["clip.mp4", "photo.jpg"], "videos and images need separate calls"),
        (["clip.mp4", "--save-labels", "yolo"], "--save-labels: writes data sets of image files"),
        (["clip.mp4", "--watch"], "--watch: watches one folder"),
        (["a", "b", "--watch"], "--watch: watches one folder"),
        (["ftp://host/clip.mp4"], "streams of this kind cannot be read"),
        (["a.mp4", "--threshold", "0.5"], "a.mp4: cannot be opened as a video: No such file"),
        (["8123"], "/dev/video8123: cannot be opened as a video: No such file"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    networks: dict[str, Path], tmp_path: Path, more: list[str], expected: str
) -> None:
    out = tmp_path / "out"

    done = CliRunner().invoke(app, ["predict", str(networks["classify"]), *more, "--out", str(out)])

    assert isinstance(done.exception, DataError)
    assert expected in done.exception.message
    assert done.exception.hint
    assert not out.exists()


@pytest.mark.parametrize("watch", [False, True])
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_frame(
    networks: dict[str, Path], clip: Path, tmp_path: Path, watch: bool
) -> None:
    inputs = [str(tmp_path), "--watch"] if watch else [str(clip)]
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"

    done = CliRunner().invoke(app, ["predict", str(networks["classify"]), *inputs, "-o", str(out)])

    assert isinstance(done.exception, ExportError), done.output
    name = "predictions.jsonl" if watch else "0000-clip.jsonl"
    assert done.exception.message.startswith(f"cannot write '{out / name}'")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--frames", "3", "--no-video"], "--frames, --video/--no-video: no effect on images"),
        (["--watch", "--reconnect", "5"], "--reconnect: no effect with --watch"),
    ],
)
def test_an_option_of_videos_is_refused_where_it_has_no_effect(
    arguments: list[str], expected: str
) -> None:
    done = CliRunner().invoke(app, ["predict", "net.onnx", "photos", *arguments])

    assert isinstance(done.exception, DataError), done.output
    assert done.exception.message == expected


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)

    with pytest.raises(MissingPackageError, match="needs the package 'av'") as caught:
        import_av()

    assert "hgkd-edge[video]" in caught.value.hint


def test_videos_are_answered_without_torch(
    networks: dict[str, Path], clip: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm'): sys.modules[name] = None\n"
        "from hgkd_edge.cli import main\nmain()"
    )
    arguments = ["predict", networks["classify"], clip, "--out", tmp_path / "out"]

    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr


def test_the_pipeline_is_timed_stage_by_stage(
    networks: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    arguments = ["bench", str(networks["segment"]), "--pipeline", str(photos / "test")]

    done = CliRunner().invoke(
        app, [*arguments, "--count", "4", "--json", "--out", str(tmp_path / "pipeline.json")]
    )

    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "pipeline.json").read_text())
    assert found["images"] == 4
    assert list(found["stages"]) == ["decode", "preprocess", "infer", "postprocess"]
    spent = sum(stage["mean"] for stage in found["stages"].values())
    assert 0 < spent * 4 / 1e3 < found["seconds"]
    assert found["frames_per_s"] < found["infer_frames_per_s"]


def test_a_pipeline_without_images_is_refused(networks: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image files"):
        measure_pipeline(networks["classify"], [tmp_path], duration_s=1)


def test_stages_give_mean_and_percentiles_in_milliseconds() -> None:
    stages = Stages()
    for milliseconds in range(1, 102):
        stages.add("infer", milliseconds / 1e3)

    (found,) = stages.summary().values()

    assert found == pytest.approx({"mean": 51, "p50": 51, "p99": 100})


def test_a_video_is_predicted_from_python(
    networks: dict[str, Path], clip: Path, tmp_path: Path
) -> None:
    (found,) = hgkd_edge.predict_video(
        networks["classify"], clip, tmp_path, limit=2, annotate=False
    )

    assert found["frames"] == 2
    assert found["video"] is None
    assert len(Path(found["answers"]).read_text().splitlines()) == 2
    assert "2 frames in" in str(found)


def test_trust_engine_counts_for_videos_too(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def refuse(path: Path, *, trust_engine: bool) -> None:
        asked.append(trust_engine)
        raise DataError("enough")

    monkeypatch.setattr("hgkd_edge.video.predict.open_task_model", refuse)

    CliRunner().invoke(
        app, ["predict", "x.plan", str(clip), "--trust-engine", "--out", str(tmp_path)]
    )

    assert asked == [True]
