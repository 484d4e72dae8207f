from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hgkd_edge.errors import DataError, StreamLost
from hgkd_edge.video import predict as verb
from hgkd_edge.video.live import LiveClock, stay_connected
from hgkd_edge.video.predict import Options, predict_videos
from hgkd_edge.video.queue import ReadAhead
from hgkd_edge.video.sources import Source, find_source
from hgkd_edge.video.writing import AnnotatedVideo, JsonLines
from tests.video.clips import make_clip, times_of
from tests.video.servers import http_stream


def source_of(url: str) -> Source:
    source = find_source(url)
    assert source is not None
    return source


@pytest.fixture(scope="module")
def broadcast(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """MPEG-TS as a camera sends it, 20 frames."""
    return make_clip(tmp_path_factory.mktemp("broadcast") / "clip.ts").read_bytes()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnects without waiting for a second."""
    monkeypatch.setattr("hgkd_edge.video.live.FIRST_PAUSE", 0.05)


def test_a_stream_that_was_cut_is_continued_and_then_given_up(
    hasty: None,
    networks: dict[str, Path],
    broadcast: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    half = broadcast[: len(broadcast) // 2]
    options = Options(patience=0.3)

    with http_stream(half, broadcast) as url, pytest.raises(StreamLost) as caught:
        predict_videos(networks["classify"], [source_of(url)], tmp_path, options)

    (summary_file,) = tmp_path.glob("*-summary.json")
    summary = json.loads(summary_file.read_text())
    lines = [json.loads(line) for line in Path(summary["answers"]).read_text().splitlines()]
    assert summary["live"]
    assert summary["reconnects"] == 1
    assert summary["frames"] == len(lines) > 0
    assert summary["frames"] + summary["dropped"] >= 25
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    assert all("at" in line for line in lines)
    assert len(times_of(Path(summary["video"]))) == len(lines)
    printed = caught.value.message + capsys.readouterr().err + summary_file.read_text()
    assert "no connection for 0.3 s" in caught.value.message
    assert "secret" not in printed
    assert caught.value.exit_code == 1


def test_a_restart_keeps_the_records_of_a_stream_but_not_of_a_file(
    networks: dict[str, Path], broadcast: bytes, clip: Path, tmp_path: Path
) -> None:
    # One frame: of a stream, others are dropped while it is processed.
    options = Options(limit=1, annotate=False)

    with http_stream(*[broadcast] * 20) as url:  # it may connect again before it has a frame
        for source in [source_of(url), source_of(str(clip))] * 2:
            predict_videos(networks["classify"], [source], tmp_path, options)

    found = {file.name: file.read_text().splitlines() for file in tmp_path.glob("*.jsonl")}
    replaced = found.pop("0000-clip.jsonl")
    (kept,) = found.values()
    assert len(replaced) == 1
    assert ["at" in json.loads(line) for line in kept] == [True] * 2


def test_a_stream_of_too_large_frames_is_not_connected_to_again(
    networks: dict[str, Path],
    broadcast: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hgkd_edge.video.decoding.MAX_PIXELS", 100)
    too_large = "a frame has 96 x 64 pixels; frames have 100 at most"

    with (
        http_stream(broadcast, broadcast) as url,
        pytest.raises(StreamLost, match=too_large) as raised,
    ):
        predict_videos(networks["classify"], [source_of(url)], tmp_path, Options(patience=9))
    assert not raised.value.hint  # a stream is no file that ffmpeg could convert


def test_a_server_that_cannot_be_reached_is_one_line_without_the_password(
    networks: dict[str, Path], tmp_path: Path
) -> None:
    with http_stream() as url, pytest.raises(DataError) as caught:
        predict_videos(networks["classify"], [source_of(url)], tmp_path, Options())

    assert "cannot be opened as a video: Server returned 5XX" in caught.value.message
    assert "secret" not in str(caught.value)


def test_of_a_stored_video_behind_http_nothing_is_dropped(
    networks: dict[str, Path], clip: Path, tmp_path: Path
) -> None:
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
        cwd=clip.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split(" port ")[1].split()[0]
        url = source_of(f"http://127.0.0.1:{port}/{clip.name}")
        (made,) = predict_videos(networks["classify"], [url], tmp_path, Options())
    finally:
        server.kill()
        server.wait()

    assert (made.live, made.frames, made.dropped) == (False, 20, 0)


def failing(items: list[int], error: Exception | None) -> Iterator[int]:
    yield from items
    if error is not None:
        raise error


def test_a_pause_doubles_until_an_item_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgkd_edge.video.live.FIRST_PAUSE", 0.01)
    parts = iter([([1, 2], None), ([], OSError("down")), ([], OSError("down")), ([3], None)])
    pauses: list[float] = []
    stop = threading.Event()

    def connect() -> Iterator[int]:
        return failing(*next(parts, ([], OSError("gone"))))

    found = []
    with pytest.raises(StreamLost, match="cam: no connection .* gone"):
        for item in stay_connected(
            connect, name="cam", patience=0.2, stop=stop, broken=lambda _, s: pauses.append(s)
        ):
            found.append(item)

    assert found == [1, 2, 3]
    assert pauses[:3] == pytest.approx([0.01, 0.02, 0.04])
    assert pauses[3] == pytest.approx(0.01)


NAN = float("nan")


@pytest.mark.parametrize(
    ("stated", "arrived", "wanted"),
    [
        ([7.0, 7.04, 7.08], [50, 50.01, 50.02], [0, 0.04, 0.08]),  # a burst
        ([7.0, 7.04, 1e5], [50, 50.04, 50.08], [0, 0.04, 0.08]),  # a jump
        ([7.0, 7.04, 0.0, 0.04], [50, 50.04, 50.08, 50.3], [0, 0.04, 0.08, 0.12]),  # a jump back
        ([7.0, 7.0, 7.0], [50, 50.04, 50.08], [0, 0.001, 0.002]),  # a clock that stands still
        ([NAN, NAN, NAN], [50, 50.04, 50.08], [0, 0.04, 0.08]),  # no times
        ([NAN, 3.0, 3.5], [50, 50.04, 50.08], [0, 0.04, 0.54]),
    ],
)
def test_frames_have_the_times_of_their_source_unless_its_clock_jumps(
    stated: list[float], arrived: list[float], wanted: list[float]
) -> None:
    clock = LiveClock()

    found = [clock.time(one, now) for one, now in zip(stated, arrived, strict=True)]

    assert found == pytest.approx(wanted)


def test_after_a_break_times_continue_from_the_arrival() -> None:
    clock = LiveClock()
    assert [clock.time(9.0, 50.0), clock.time(9.1, 50.1)] == pytest.approx([0, 0.1])

    clock.restart()

    assert [clock.time(8.0, 52.0), clock.time(8.1, 52.2)] == pytest.approx([2.0, 2.1])


@pytest.mark.parametrize("drop", [True, False])
def test_only_of_a_live_source_the_oldest_items_are_dropped(drop: bool) -> None:
    taken = []
    ahead = ReadAhead(iter(range(50)), drop=drop, stopped=lambda: False, size=3)

    for item in ahead:
        if not taken:
            time.sleep(0.3)  # long enough for all others
        taken.append(item)

    assert len(taken) + ahead.dropped == 50
    assert taken == sorted(taken)
    if drop:
        assert taken[-3:] == [47, 48, 49]
        assert ahead.dropped >= 45
    else:
        assert taken == list(range(50))


def test_an_error_of_the_reader_is_raised_where_items_are_taken() -> None:
    ahead = ReadAhead(failing([1, 2], OSError("broken")), drop=False, stopped=lambda: False)

    with pytest.raises(OSError, match="broken"):
        list(ahead)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_video_that_plays_and_whole_lines(
    networks: dict[str, Path],
    broadcast: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    answer = verb.answer_image
    asked = []

    def stops_at_the_tenth(*arguments: Any) -> Any:
        asked.append(1)
        if len(asked) == 10:
            os.kill(os.getpid(), number)
        return answer(*arguments)

    monkeypatch.setattr(verb, "answer_image", stops_at_the_tenth)

    with http_stream(broadcast * 10, pause=0.05, blocks=100) as url:
        (made,) = predict_videos(networks["detect"], [source_of(url)], tmp_path, Options())

    lines = Path(made.answers).read_text().splitlines()
    assert made.stopped
    assert made.frames == len([json.loads(line) for line in lines]) == 10
    assert len(times_of(Path(str(made.video)))) == 10


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    """The command line, running."""
    command = [sys.executable, "-m", "hgkd_edge", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.05)


def test_a_killed_process_leaves_a_video_that_plays_and_whole_lines(
    networks: dict[str, Path], tmp_path: Path
) -> None:
    long = make_clip(tmp_path / "long.ts", 400).read_bytes()
    out = tmp_path / "out"

    def line_count() -> int:
        return sum(file.read_bytes().count(b"\n") for file in out.glob("*.jsonl"))

    with http_stream(long, pause=0.04, blocks=400) as url:
        process = started("predict", networks["classify"], url, "--out", out)
        try:
            wait_for(lambda: line_count() > 60 or process.poll() is not None)
        finally:
            process.kill()
            process.communicate()

    (answers,), (video,) = out.glob("*.jsonl"), out.glob("*.mp4")
    assert answers.read_bytes().endswith(b"\n")
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(lines) > 60
    times = times_of(video)
    assert 0 < len(times) <= len(lines)
    assert lines[-1]["time"] - times[-1] < 3  # the last second or so is lost


def test_the_command_line_says_what_was_left_and_where(
    networks: dict[str, Path], broadcast: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with http_stream(broadcast * 20, pause=0.05, blocks=400) as url:
        process = started("predict", networks["classify"], url, "--out", out)
        wait_for(lambda: any(f.stat().st_size for f in out.glob("*.jsonl")))
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == 0, stderr  # a live source ends in no other way
    assert "predictions, one JSON record per line: " in stdout
    assert "annotated video (" in stdout
    assert "secret" not in stdout + stderr


def test_pictures_of_other_sizes_fit_into_the_first_ones(tmp_path: Path) -> None:
    with AnnotatedVideo(tmp_path / "a.mp4") as video:
        for i, size in enumerate([(65, 33), (33, 65), (640, 480), (65, 33)]):
            video.write(Image.new("RGB", size, "red"), i / 10)
        video.write(Image.new("RGB", (65, 33)), 0.2)  # a clock that went back

    times = times_of(tmp_path / "a.mp4")
    assert times[:4] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-4)
    assert len(times) == 5
    assert times[4] > times[3]


def test_without_an_h264_encoder_the_video_is_mpeg4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("av.codecs_available", {"mpeg4"})

    with AnnotatedVideo(tmp_path / "a.mp4") as video:
        for i in range(30):
            video.write(Image.new("RGB", (64, 48), (8 * i, 0, 0)), i / 30)

    assert video.codec == "MPEG-4 Part 2, mpeg4"
    assert times_of(tmp_path / "a.mp4") == pytest.approx([i / 30 for i in range(30)], abs=1e-4)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_that_names_the_file() -> None:
    with JsonLines(Path("/dev/full")) as lines, pytest.raises(OSError, match="No space") as caught:
        lines.write({"frame": 0})

    assert caught.value.filename == "/dev/full"


GSTREAMER = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer(service="0")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch("( videotestsrc is-live=true ! video/x-raw,width=128,height=96,framerate=25/1 "
                   "! x264enc tune=zerolatency key-int-max=10 ! rtph264pay name=pay0 )")
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@pytest.fixture
def rtsp() -> Iterator[str]:
    """URL of GStreamer's RTSP server, as Debian packages it."""
    python = "/usr/bin/python3"
    needed = "from gi import require_version as r; r('GstRtspServer', '1.0')"
    if (
        not shutil.which(python)
        or subprocess.run([python, "-c", needed], capture_output=True).returncode
    ):
        pytest.skip("needs Debian's gir1.2-gst-rtsp-server-1.0, python3-gi, plugins good and ugly")
    server = subprocess.Popen([python, "-c", GSTREAMER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"rtsp://127.0.0.1:{server.stdout.readline().strip()}/live"
    finally:
        server.kill()
        server.wait()


def test_a_camera_behind_rtsp_is_answered(
    rtsp: str, networks: dict[str, Path], tmp_path: Path
) -> None:
    options = Options(limit=30)

    (made,) = predict_videos(networks["classify"], [source_of(rtsp)], tmp_path, options)

    assert (made.live, made.frames, made.errors) == (True, 30, 0)
    times = times_of(Path(str(made.video)))
    assert len(times) == 30
    assert times[-1] > 0.8  # no faster than the camera
