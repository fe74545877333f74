"""A small HTTP server over folders, with ranges and ETags like an object store: a mirror on one's own machine."""

import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

HOST = "127.0.0.1"
CHUNK = 1 << 20


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of files below the mapped folders; nothing else is served.

    Args:
        folders: first parts of a path → folder.
    """

    protocol_version = "HTTP/1.1"
    timeout = 60

    def __init__(self, *args: object, folders: Mapping[str, Path]) -> None:
        self.folders = folders
        super().__init__(*args)  # type: ignore[arg-type]

    def find(self) -> Path | None:
        """The file that is asked for, if there is one and it lies in its folder."""
        asked = unquote(self.path.split("?")[0]).strip("/")
        for prefix, folder in self.folders.items():
            if asked.startswith(f"{prefix}/"):
                path = (folder / asked[len(prefix) + 1 :]).resolve()
                return path if path.is_file() and path.is_relative_to(folder.resolve()) else None
        return None

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Answer with the file or the range of it."""
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.find()
        if path is None:
            self.send_error(404)
            return
        facts = path.stat()
        size, tag = facts.st_size, f'"{facts.st_size:x}-{facts.st_mtime_ns:x}"'
        first, last, status = 0, size - 1, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.headers.get("If-Range", tag) == tag:
            first, last, status = int(asked[1]), min(int(asked[2] or size - 1), size - 1), 206
            if first >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(status)
        self.send_header("ETag", tag)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if body:
            with path.open("rb") as file:
                file.seek(first)
                left = last - first + 1
                while left and (piece := file.read(min(CHUNK, left))):
                    self.wfile.write(piece)
                    left -= len(piece)

    def log_message(self, format: str, *args: object) -> None:
        """Only errors are told."""
        if args and str(args[1] if len(args) > 1 else "").startswith("5"):
            print(format % args, file=sys.stderr)


class Server(ThreadingHTTPServer):
    """A thread for each request; a client that goes away is no error."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def served(folders: Mapping[str, Path], handler: type[Handler] = Handler) -> Iterator[str]:
    """Serve folders on a free port of this machine; yields the address, without a slash at its end."""
    server = Server((HOST, 0), partial(handler, folders=folders))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
