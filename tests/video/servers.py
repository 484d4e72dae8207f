"""Servers of live streams on this machine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextlib.contextmanager
def http_stream(*pieces: bytes, pause: float = 0.0, blocks: int = 1) -> Iterator[str]:
    """URL of a stream without a length: each connection gets the next piece, then is cut.

    Args:
        pieces: What connections get; later ones are refused.
        pause: Seconds after each block of a piece.
        blocks: Into how many blocks a piece is cut.
    """
    left = list(pieces)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not left:
                self.send_error(503)
                return
            piece = left.pop(0)
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            size = -(-len(piece) // blocks)
            with contextlib.suppress(ConnectionError):
                for at in range(0, len(piece), size):
                    self.wfile.write(piece[at : at + size])
                    time.sleep(pause)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://user:secret@127.0.0.1:{server.server_port}/live?key=secret"
    finally:
        server.shutdown()
        server.server_close()
