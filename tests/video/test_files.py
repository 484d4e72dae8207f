from __future__ import annotations

import gc
import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from exporters.bake import Preprocessing, bake
from hgkd_edge.data.input_spec import PREFIX
from hgkd_edge.errors import DataError
from hgkd_edge.predict import predict
from hgkd_edge.video.decoding import Frame, open_source
from hgkd_edge.video.predict import Options, Summary, predict_videos
from hgkd_edge.video.sources import Source, find_source
from tests.damage import BINARY, damaged
from tests.fuzzing import refused_or_read
from tests.video.clips import (
    SIZE,
    av,
    crops,
    make_clip,
    make_sound,
    times_of,
    turn_clip,
)


def source_of(path: Path) -> Source:
    source = find_source(str(path))
    assert source is not None
    return source


def frames_of(path: Path) -> list[Frame]:
    return list(open_source(source_of(path)).frames())


def lines_of(summary: Summary) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(summary.answers).read_text().splitlines()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of threads")
def test_frames_that_were_read_hold_no_threads_and_no_memory(clip: Path) -> None:
    frames = open_source(source_of(clip)).frames()
    next(frames)
    gc.collect()
    gc.disable()
    try:
        before = len(list(Path("/proc/self/task").iterdir()))
        read = sum(1 for _ in frames)
        after = len(list(Path("/proc/self/task").iterdir()))
        kept = sum(isinstance(one, av.VideoFrame) for one in gc.get_objects())
    finally:
        gc.enable()

    assert read > 10
    assert after <= before
    assert kept <= 2


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "ts"])
def test_a_damaged_video_is_read_as_far_as_it_goes_or_refused(kind: str, tmp_path: Path) -> None:
    content = make_clip(tmp_path / f"whole.{kind}").read_bytes()
    bad, read = tmp_path / f"bad.{kind}", list[int]()

    for seed in range(15):
        bad.write_bytes(damaged(content, BINARY, seed))
        refused_or_read(lambda: read.append(len(frames_of(bad))))

    assert max(read) >= 20  # repeated bytes may be frames, too


def test_a_frame_of_too_many_pixels_is_refused(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = shutil.copy(clip, tmp_path / "my clip.mp4")
    monkeypatch.setattr("hgkd_edge.video.decoding.MAX_PIXELS", SIZE[0] * SIZE[1])
    assert len(frames_of(clip)) == 20
    monkeypatch.setattr("hgkd_edge.video.decoding.MAX_PIXELS", SIZE[0] * SIZE[1] - 1)

    with pytest.raises(
        DataError, match=r"clip.mp4: a frame has 96 x 64 pixels; frames have 6,143"
    ) as raised:
        frames_of(clip)
    assert f"ffmpeg -i '{clip}' -vf" in raised.value.hint


@pytest.mark.parametrize(
    ("task", "answered"), [("classify", "labels"), ("segment", "shares"), ("detect", "boxes")]
)
def test_every_frame_of_a_file_is_answered_at_its_time(
    networks: dict[str, Path], clip: Path, tmp_path: Path, task: str, answered: str
) -> None:
    (made,) = predict_videos(networks[task], [source_of(clip)], tmp_path / "out", Options())

    lines = lines_of(made)
    assert [line["frame"] for line in lines] == list(range(20))
    assert [line["time"] for line in lines] == pytest.approx(times_of(clip), abs=1e-5)
    assert all(answered in line for line in lines)
    assert made.video is not None
    assert times_of(Path(made.video)) == pytest.approx(times_of(clip), abs=1e-4)
    assert (made.frames, made.dropped, made.damaged, made.live) == (20, 0, 0, False)
    assert set(made.stages) == {"wait", "decode", "preprocess", "infer", "postprocess", "write"}
    assert json.loads((tmp_path / "out" / "0000-clip-summary.json").read_text())["frames"] == 20


def test_a_frame_is_answered_as_an_image_file_of_the_same_pixels(
    networks: dict[str, Path], clip: Path, tmp_path: Path
) -> None:
    for frame in frames_of(clip)[:3]:
        frame.image.save(tmp_path / f"{frame.index}.png")
    files = [tmp_path / f"{i}.png" for i in range(3)]

    wanted = predict(networks["classify"], files, tmp_path / "images")
    options = Options(limit=3, annotate=False)
    (made,) = predict_videos(networks["classify"], [source_of(clip)], tmp_path / "out", options)

    answered = [line["labels"] for line in lines_of(made)]
    assert answered == [one.found.to_dict()["labels"] for one in wanted]
    assert made.video is None
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_frames_have_the_colors_that_were_encoded(clip: Path) -> None:
    for frame, crop in zip(frames_of(clip), crops(20), strict=True):
        assert np.abs(np.asarray(frame.image, int) - np.asarray(crop, int)).mean() < 6


T = Image.Transpose
TURNS = {
    "none": ((1, 0, 0, 1), None),
    "90 clockwise": ((0, 1, -1, 0), T.ROTATE_270),
    "180": ((-1, 0, 0, -1), T.ROTATE_180),
    "90 counterclockwise": ((0, -1, 1, 0), T.ROTATE_90),
    "mirrored": ((-1, 0, 0, 1), T.FLIP_LEFT_RIGHT),
    "upside down": ((1, 0, 0, -1), T.FLIP_TOP_BOTTOM),
    "transposed": ((0, 1, 1, 0), T.TRANSPOSE),
    "transversed": ((0, -1, -1, 0), T.TRANSVERSE),
}


@pytest.mark.parametrize(("matrix", "turn"), TURNS.values(), ids=TURNS)
def test_frames_are_turned_as_the_track_header_says(
    clip: Path, tmp_path: Path, matrix: tuple[int, int, int, int], turn: Image.Transpose | None
) -> None:
    turned = turn_clip(clip, tmp_path / "turned.mp4", matrix)

    stored, shown = frames_of(clip)[0].image, frames_of(turned)[0].image

    assert shown == (stored if turn is None else stored.transpose(turn))


@pytest.mark.parametrize("shape", ["4/3", "1/2"])
def test_pixels_that_are_not_square_are_stretched_as_players_do(tmp_path: Path, shape: str) -> None:
    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(shape)
        for crop in crops(3):
            container.mux(stream.encode(av.VideoFrame.from_image(crop)))
        container.mux(stream.encode(None))
    above, below = map(int, shape.split("/"))

    assert frames_of(tmp_path / "wide.mp4")[0].image.size == (SIZE[0] * above // below, SIZE[1])


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".avi", ".mov", ".h264"])
def test_other_containers_give_the_same_frames(tmp_path: Path, clip: Path, suffix: str) -> None:
    other = make_clip(tmp_path / f"clip{suffix}")

    times = [frame.time for frame in frames_of(other)]

    assert times == pytest.approx([i / 25 for i in range(20)], abs=2e-3)


def test_a_file_that_was_cut_off_is_answered_as_far_as_it_goes_and_says_so(
    networks: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_clip(tmp_path / "whole.mp4", 50, options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    (made,) = predict_videos(networks["classify"], [source_of(cut)], tmp_path / "out", Options())

    assert 5 < made.frames < 45
    assert len(lines_of(made)) == made.frames
    assert "of 2.0 s: damaged or cut off" in made.cut_off
    assert made.cut_off in " ".join(capsys.readouterr().err.split())


def test_a_last_frame_that_is_shown_long_is_not_missing(tmp_path: Path) -> None:
    file = tmp_path / "slides.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
        stream.options = {"bf": "0"}
        frames = [av.VideoFrame.from_image(crop) for crop in crops(10)]
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, Fraction(1, 25)
        packets = [p for f in (*frames, None) for p in stream.encode(f)]
        packets[-1].duration = round(3 / packets[-1].time_base)
        container.mux(packets)
    opened = open_source(source_of(file))

    assert len(list(opened.frames())) == 10
    assert opened.seconds == pytest.approx(opened.reached, abs=0.05)
    assert opened.reached > 3
    assert not opened.is_cut_off


def test_a_damaged_stretch_costs_only_its_frames(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", 50)
    content = bytearray(clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    clip.write_bytes(content)

    frames = frames_of(clip)

    assert 30 < len(frames) <= 50
    assert frames[-1].time == pytest.approx(49 / 25, abs=0.05)


def without_index(folder: Path) -> Path:
    clip = make_clip(folder / "whole.mp4")
    cut = folder / "no-index.mp4"
    cut.write_bytes(clip.read_bytes()[:2000])
    return cut


def text(folder: Path) -> Path:
    (folder / "notes.mp4").write_text("no video at all\n" * 100)
    return folder / "notes.mp4"


def empty(folder: Path) -> Path:
    (folder / "empty.mov").touch()
    return folder / "empty.mov"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: make_sound(folder / "sound.mov"), "holds no video, only audio"),
        (without_index, "cannot be opened as a video"),
        (text, "cannot be opened as a video"),
        (empty, "cannot be opened as a video"),
        (lambda folder: folder / "gone.mp4", "cannot be opened as a video: No such file"),
    ],
    ids=["sound", "no index", "text", "empty", "missing"],
)
def test_what_is_no_video_is_refused_in_one_line_with_a_hint(
    networks: dict[str, Path], tmp_path: Path, make: Any, expected: str
) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        predict_videos(networks["classify"], [source_of(make(tmp_path))], tmp_path / "o", Options())

    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "o").exists()


def test_every_file_is_checked_before_the_first_is_processed(
    networks: dict[str, Path], clip: Path, tmp_path: Path
) -> None:
    sources = [source_of(clip), source_of(tmp_path / "gone.mp4")]

    with pytest.raises(DataError, match="gone.mp4: cannot be opened as a video: No such file"):
        predict_videos(networks["classify"], sources, tmp_path / "o", Options())

    assert not (tmp_path / "o").exists()


def test_a_model_for_frames_of_another_size_says_so_at_the_first_frame(
    networks: dict[str, Path], clip: Path, tmp_path: Path
) -> None:
    fixed = Preprocessing((0.5,) * 3, (0.25,) * 3, frame=(90, 120))
    bake(networks["classify"], tmp_path / "baked.onnx", preprocessing=fixed, prefix=PREFIX)

    with pytest.raises(DataError, match="the model takes frames of 120 x 90"):
        predict_videos(tmp_path / "baked.onnx", [source_of(clip)], tmp_path / "o", Options())


def test_several_files_are_answered_one_after_the_other(
    networks: dict[str, Path], clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    same_name = make_clip(tmp_path / "b" / "clip.mp4", 5)

    made = predict_videos(
        networks["classify"], [source_of(clip), source_of(same_name)], tmp_path / "o", Options()
    )

    assert [len(lines_of(one)) for one in made] == [20, 5]
    assert len({one.video for one in made}) == 2


@pytest.mark.parametrize(
    ("text", "kind", "shown", "name"),
    [
        ("clips/a b.MP4", "file", "clips/a b.MP4", "a b"),
        ("7", "camera", "/dev/video7", "dev-video7"),
        ("/dev/video0", "camera", "/dev/video0", "dev-video0"),
        (
            "rtsp://me:pa%40ss@cam:8554/x?token=1",
            "stream",
            "rtsp://***@cam:8554/x?...",
            "rtsp-cam-8554-x",
        ),
        ("HTTP://cam/live", "stream", "http://cam/live", "http-cam-live"),
        ("photos", None, "", ""),
        ("photo.jpg", None, "", ""),
        ("no-suffix", None, "", ""),
    ],
)
def test_a_source_is_known_by_its_name(text: str, kind: str | None, shown: str, name: str) -> None:
    source = find_source(text)

    if kind is None:
        assert source is None
        return
    assert source is not None
    assert (source.kind, source.shown) == (kind, shown)
    assert source.name.stem.replace("---", "-") == name


def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(DataError, match="ftp://: streams of this kind cannot be read"):
        find_source("ftp://host/video.mp4")


def test_a_folder_named_as_a_camera_or_a_video_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("0", "photos.ts"):
        Path(name).mkdir()
        assert find_source(name) is None


def test_a_playlist_opens_no_other_protocol(tmp_path: Path) -> None:
    (tmp_path / "list.ts").write_text(
        "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )

    with pytest.raises(DataError, match="cannot be opened"):
        open_source(source_of(tmp_path / "list.ts"))
