"""A page on this machine's loopback address that follows a sweep while it trains, and the finished report below it."""

import functools
import http.server
import json
import os
import urllib.parse
from http import HTTPStatus
from typing import Any

from etils import epath

from olmo_jax.config import require
from olmo_jax.console import say
from olmo_jax.errors import UserError
from sweeps.planning.plan import Plan
from sweeps.report.page import live_page
from sweeps.running.live import Live

HOST = "127.0.0.1"
REPORT = "/report/"


def serve(workdir: epath.Path, plan: Plan, port: int) -> None:
    """Answer requests until a signal arrives.

    Raises ConfigError for a number that can't be a port, UserError for a port that is in use.
    """
    with server(workdir, plan, port) as listening:
        say(f"http://{HOST}:{listening.server_address[1]} follows {workdir}; press Ctrl-C to stop")
        try:
            listening.serve_forever()
        except KeyboardInterrupt:
            say("stopped; the sweep continues")


def server(workdir: epath.Path, plan: Plan, port: int) -> http.server.ThreadingHTTPServer:
    """Return a server that listens and doesn't yet answer; port 0 takes a free one."""
    require(0 <= port < 65536, "--port", port, "needs a number from 0 to 65535")
    handler = functools.partial(_Handler, Live(workdir, plan), live_page(workdir.name), directory=str(workdir))
    try:
        return http.server.ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"--port={port}: {reason}; choose another port, or 0 for a free one") from error


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Answer GET for the page, its numbers, and files in report/; nothing else in the working directory."""

    def __init__(self, live: Live, page: bytes, *arguments: Any, **keywords: Any):
        self._live, self._page = live, page
        super().__init__(*arguments, **keywords)

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        # Another site's page could reach this address under a name of its own (DNS rebinding).
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in (HOST, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN, f"use the address {HOST}")
        elif url.path == "/":
            self._answer("text/html; charset=utf-8", self._page)
        elif url.path == "/live.json":
            metric = urllib.parse.parse_qs(url.query).get("metric", [""])[0]
            self._answer("application/json", json.dumps(self._live.snapshot(metric)).encode())
        elif url.path.startswith(REPORT):
            super().do_GET()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def translate_path(self, path: str) -> str:
        """Return the file that a path names, or one that doesn't exist if `..` or a link leads out of report/."""
        found = os.path.realpath(super().translate_path(path))
        root = os.path.realpath(os.path.join(self.directory, "report"))
        return found if os.path.commonpath([found, root]) == root else os.path.join(root, "not-there")

    def _answer(self, kind: str, content: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing for a request."""
