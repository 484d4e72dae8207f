"""Sources of frames: a video file, a camera or a network stream, recognized by its name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from hgkd_edge.errors import DataError

__all__ = ["VIDEO_SUFFIXES", "Source", "find_source"]

VIDEO_SUFFIXES = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".wmv", ".asf"),
        *(".flv", ".f4v", ".mpg", ".mpeg", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".ogv"),
        *(".mxf", ".y4m", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf", ".mjpg", ".mjpeg"),
        *(".dv", ".nut"),
    )
)
SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "srt", "tcp", "udp", "rtp")
CAMERA = re.compile(r"/dev/video\d+")


@dataclass(frozen=True)
class Source:
    """A source of frames.

    Attributes:
        kind: `file`, `camera` or `stream`.
        shown: Its name in output and records, without passwords and keys.
        url: What FFmpeg opens.
        format: FFmpeg's name of the format, if the content does not identify it.
        options: FFmpeg's options.
    """

    kind: Literal["file", "camera", "stream"]
    shown: str
    url: str
    format: str | None = None
    options: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> Path:
        """A path whose stem names the files that are written."""
        if self.kind == "file":
            return Path(self.shown)
        return Path(re.sub(r"\W+", "-", self.shown.replace("://", "-")).strip("-"))


def find_source(text: str) -> Source | None:
    """The source that a text names; None for image files, folders and anything else.

    Args:
        text: A video file, `/dev/video0` or `0`, or a URL such as `rtsp://camera/stream`.

    Raises:
        DataError: A URL of a kind that cannot be read.
    """
    path = Path(text)
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text):
        return _stream(text, scheme[1].lower())
    if text.isdecimal() and not path.exists():
        text = f"/dev/video{int(text)}"
    if CAMERA.fullmatch(text):
        return Source("camera", text, text, format="v4l2")
    if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
        # A file may name others (playlists do): only files are opened for it, nothing remote.
        whitelist = {"protocol_whitelist": "file"}
        return Source("file", text, f"file:{text}", options=whitelist)
    return None


def _stream(url: str, scheme: str) -> Source:
    if scheme not in SCHEMES:
        raise DataError(
            f"{scheme}://: streams of this kind cannot be read",
            hint=f"use one of {', '.join(SCHEMES)}",
        )
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise DataError(f"{scheme}://...: not a URL: {error}") from error
    user = "***@" if parts.username else ""
    query = "?..." if parts.query else ""
    shown = f"{scheme}://{user}{host}{port}{parts.path}{query}"
    options = {"rtsp_flags": "prefer_tcp"} if scheme in ("rtsp", "rtsps") else {}
    return Source("stream", shown, url, options=options)
