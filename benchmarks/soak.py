"""Run commands for a long time: do memory, open files and threads stay flat?

    python -m benchmarks.soak [--minutes 30] [--jobs kept,streamed,video,bench] [--json FILE]

    kept       distill, with decoded images in memory; a checkpoint after every epoch
    streamed   distill, with images decoded by threads in each epoch
    video      predict on a clip that a local HTTP server repeats, with an annotated copy
    bench      every exported file of a run, in turns

All run at the same time, and are stopped with Ctrl-C. A command and its worker processes count as
one. Compared are the medians of the second and the last quarter of the time. Exit status 1 if
memory grew by more than 5 % and 8 MiB, if there are more open files or threads, or if a command
ended early, or with an exit code other than 0 and 130. Needs FFmpeg.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import psutil

from benchmarks.faults import jobs

JOBS = ("kept", "streamed", "video", "bench")
INTERVAL = 2.0  # seconds between samples
PATIENCE = 120.0  # seconds until a stopped command counts as hanging
RUN_LONG = ("--set", "train.epochs=1000000", "--set", "train.warmup_epochs=1")


class Sample(NamedTuple):
    """A command and its worker processes. `memory`: MiB that no other process shares."""

    memory: float
    files: int
    threads: int


@dataclass
class Soaked:
    """A command under way."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    samples: list[Sample] = field(default_factory=list)
    ended_early: bool = False

    def sample(self) -> None:
        with contextlib.suppress(psutil.Error):  # a worker that has just ended
            top = psutil.Process(self.process.pid)
            tree = [top, *top.children(recursive=True)]
            self.samples.append(
                Sample(
                    sum(one.memory_full_info().uss for one in tree) / 2**20,
                    sum(one.num_fds() for one in tree),
                    sum(one.num_threads() for one in tree),
                )
            )

    def stop(self) -> int:
        """Press Ctrl-C; the exit code."""
        self.ended_early = self.process.poll() is not None
        if not self.ended_early:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def outcome(self, code: int) -> dict[str, object]:
        quarter = len(self.samples) // 4
        early, late = (
            Sample(*(statistics.median(column) for column in zip(*part, strict=True)))
            for part in (self.samples[quarter : 2 * quarter], self.samples[-quarter:])
        )
        grown = late.memory - early.memory > max(8, 0.05 * early.memory)
        more = late.files > early.files or late.threads > early.threads
        return {
            "job": self.name,
            "exit_code": code,
            "ended_early": self.ended_early,
            "samples": len(self.samples),
            "before": early._asdict(),
            "after": late._asdict(),
            "flat": not (grown or more),
        }


def main() -> int:
    options = _options()
    # A shell's background job inherits a Ctrl-C that is ignored, and so would the commands.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="soak-") as place:
        root, now = Path(place), Path(place) / "now"
        now.mkdir()
        jobs.prepare(root, now)
        with _endless_stream(_clip(now)) as url:
            under_way = [_start(name, now, url) for name in options.jobs]
            end = time.monotonic() + 60 * options.minutes
            while time.monotonic() < end:
                time.sleep(INTERVAL)
                for one in under_way:
                    one.sample()
            for one in under_way:
                row = one.outcome(one.stop())
                rows.append(row)
                print(json.dumps(row), flush=True)
                if not _passed(row):
                    print(one.log.read_text(errors="replace")[-2000:], file=sys.stderr)
    if options.json:
        record = {"minutes": options.minutes, "rows": rows}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(any(not _passed(row) for row in rows))


def _passed(row: dict[str, object]) -> bool:
    return bool(row["flat"]) and not row["ended_early"] and row["exit_code"] in (0, 130)


def _start(name: str, folder: Path, url: str) -> Soaked:
    distill = ("distill", "tiny.yaml", *RUN_LONG)
    arguments = {
        "kept": (*distill, "--run", "runs/kept", "--set", "data.decode=once"),
        "streamed": (*distill, "--run", "runs/streamed", "--set", "data.decode=streaming"),
        "video": ("predict", jobs.RUN, url, "--out", "video"),
        "bench": ("bench", jobs.RUN, "--duration", "86400", "--rounds", "100000"),
    }[name]
    log = folder / f"{name}.txt"
    environment = {**os.environ, "HGKD_EDGE_CACHE": str(folder / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hgkd_edge", *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Soaked(name, process, log)


def _clip(folder: Path) -> Path:
    """Four seconds of H.264, as cameras send it."""
    clip = folder / "clip.ts"
    pattern = "testsrc2=size=320x240:rate=25:duration=4"
    encode = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "25", "-f", "mpegts", str(clip))
    subprocess.run(
        ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", pattern, *encode], check=True
    )
    return clip


@contextlib.contextmanager
def _endless_stream(clip: Path) -> Iterator[str]:
    """URL of a clip that is repeated in real time, with increasing timestamps."""
    command = ["ffmpeg", "-loglevel", "error", "-re", "-stream_loop", "-1", "-i", str(clip)]
    command += ["-c", "copy", "-f", "mpegts", "-"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as source:
                assert source.stdout is not None
                with contextlib.suppress(ConnectionError):
                    while block := source.stdout.read(65536):
                        self.wfile.write(block)
                source.kill()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/live"
    finally:
        server.shutdown()
        server.server_close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--jobs", type=lambda text: text.split(","), default=list(JOBS))
    parser.add_argument("--folder", type=Path, help="where to work [default: TMPDIR]")
    parser.add_argument("--json", type=Path, help="write the outcome here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
