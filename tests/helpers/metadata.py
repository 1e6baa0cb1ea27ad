"""A server that speaks the metadata protocols of AWS (IMDSv2) and Google, as a machine of both would see it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Metadata(ThreadingHTTPServer):
    """Attributes:
    clouds: those that answer.
    token: of AWS, which refuses any other.
    notice: whether the machine will be taken back.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.clouds, self.token, self.notice = {"aws", "google"}, "first", False

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which this server is asked."""
        host = f"127.0.0.1:{self.server_address[1]}"
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{host}/", "GCE_METADATA_HOST": host}


@contextmanager
def metadata_server() -> Iterator[Metadata]:
    server = Metadata()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Answers(BaseHTTPRequestHandler):
    server: Metadata

    def log_message(self, *args: Any) -> None:
        pass

    def _send(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        asked = (
            self.path == "/latest/api/token" and 0 < int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
        )
        self._send(*((200, self.server.token) if asked and "aws" in self.server.clouds else (404, "")))

    def do_GET(self) -> None:
        if "aws" in self.server.clouds and self.path.startswith("/latest/meta-data/"):
            if self.headers["X-aws-ec2-metadata-token"] != self.server.token:
                self._send(401)
            elif self.server.notice and self.path == "/latest/meta-data/spot/instance-action":
                self._send(200, '{"action": "terminate", "time": "2026-11-26T08:22:00Z"}')
            else:
                self._send(404)
        elif "google" in self.server.clouds and self.path == "/computeMetadata/v1/instance/preempted":
            if self.headers["Metadata-Flavor"] == "Google":
                self._send(200, "TRUE" if self.server.notice else "FALSE")
            else:
                self._send(403)
        else:
            self._send(404)
