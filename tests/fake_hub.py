"""A small hub on loopback that serves folders as the Hugging Face hub does, with its faults on request.

It answers: refs, trees with the SHA-256 of large files, page by page, and files by redirect to a second address, with
ranges. Tests point huggingface_hub at it with HF_ENDPOINT.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Larger files are kept in LFS, as on the hub, where the limit is 10 MB for text.
_LFS = 2000
_PAGE = 3  # files per page of a listing


@dataclasses.dataclass
class FakeHub:
    """Serves `repositories`: by OWNER/NAME, the folder of each revision. Faults take effect while it serves.

    Attributes:
      gated, private: repositories. token: what opens them.
      busy: the number of next requests to answer with 429. retry_after: the seconds it then asks to wait.
      broken: the number of next answers with a body that end in its middle.
      ignores_ranges: it always sends whole files. html: it answers everything with a page of HTML.
      sent: bytes of each file that were sent, by path in the repository. tokens: of all requests, by address.
    """

    repositories: dict[str, dict[str, Path]]
    gated: set[str] = dataclasses.field(default_factory=set)
    private: set[str] = dataclasses.field(default_factory=set)
    token: str = ""
    busy: int = 0
    retry_after: int = 0
    broken: int = 0
    ignores_ranges: bool = False
    html: bool = False
    address: str = ""
    requests: int = 0
    at_once: int = 0
    most_at_once: int = 0
    sent: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    tokens: dict[str, set] = dataclasses.field(default_factory=lambda: collections.defaultdict(set))
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def serve(self):
        """Serve on two free ports, the second for files of LFS, and yield the hub; `address` is for HF_ENDPOINT."""
        servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server in servers:
            server.hub = self
        threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in servers]
        for thread in threads:
            thread.start()
        self.address, self.files_address = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
        try:
            yield self
        finally:
            for server in servers:
                server.shutdown()
                server.server_close()

    def folder(self, repository, revision):
        """Return the folder of a revision, given by name or commit; None if there is none."""
        revisions = self.repositories[repository]
        return next((path for name, path in revisions.items() if revision in (name, commit_of(name))), None)

    def take(self, fault):
        """Return whether to show a counted fault once more."""
        with self.lock:
            left = getattr(self, fault)
            setattr(self, fault, max(left - 1, 0))
            return left > 0


def commit_of(name):
    return hashlib.sha1(name.encode()).hexdigest()


def _etag(content):
    if len(content) > _LFS:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    """Answers requests as `self.server.hub` says."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        with self.hub.lock:
            self.hub.requests += 1
            self.hub.at_once += 1
            self.hub.most_at_once = max(self.hub.most_at_once, self.hub.at_once)
            self.hub.tokens[self.headers["Host"]].add(self.headers.get("Authorization"))
        try:
            self.answer_one()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.hub.lock:
                self.hub.at_once -= 1

    def answer_one(self):
        if self.hub.html:
            return self.send(200, b"<html>Please log in to the guest network</html>", {"Content-Type": "text/html"})
        if self.hub.take("busy"):
            return self.send(429, b"", {"Retry-After": str(self.hub.retry_after)} if self.hub.retry_after else {})
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if match := re.fullmatch(r"/lfs/([\w.-]+/[\w.-]+)/(\w+)/(.+)", path):
            return self.file(*match.groups())
        api = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(refs|tree|revision)(?:/([^/]+))?", path)
        resolve = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        match = api or resolve
        if not match:
            return self.send(404, b"{}")
        repository = match[1]
        is_open = self.hub.token and self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repository not in self.hub.repositories or (repository in self.hub.private and not is_open):
            return self.refuse(401 if not is_open else 404, "RepoNotFound")
        if repository in self.hub.gated and not is_open:
            return self.refuse(401, "GatedRepo")
        if api and api[2] == "refs":
            refs = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit_of(name)}
                for name in self.hub.repositories[repository]
            ]
            half = len(refs) // 2  # suites use branches or tags
            return self.json({"branches": refs[:half], "tags": refs[half:], "converts": []})
        revision = match[3] if api else match[2]
        folder = self.hub.folder(repository, revision)
        if folder is None:
            return self.refuse(404, "RevisionNotFound")
        if api and api[2] == "revision":
            listed = [{"rfilename": path.name} for path in sorted(folder.iterdir()) if path.is_file()]
            return self.json({"id": repository, "sha": commit_of(revision), "siblings": listed})
        if api:
            return self.tree(folder)
        return self.resolve(repository, revision, folder, match[3])

    def tree(self, folder):
        entries = []
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            content = path.read_bytes()
            entry = {"type": "file", "path": path.name, "size": len(content), "oid": _etag(content)}
            if len(content) > _LFS:
                lfs = {"oid": _etag(content), "size": len(content), "pointerSize": 134}
                entry |= {"oid": hashlib.sha1(content).hexdigest(), "lfs": lfs}
            entries.append(entry)
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        start = int(query.get("cursor", ["0"])[0])
        more = {}
        if start + _PAGE < len(entries):
            page = f"{self.hub.address}{urllib.parse.urlsplit(self.path).path}?recursive=true&cursor={start + _PAGE}"
            more = {"Link": f'<{page}>; rel="next"'}
        return self.json(entries[start : start + _PAGE], more)

    def resolve(self, repository, revision, folder, name):
        if not (folder / name).is_file():
            return self.refuse(404, "EntryNotFound")
        content = (folder / name).read_bytes()
        commit = revision if re.fullmatch(r"[0-9a-f]{40}", revision) else commit_of(revision)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(content)}"'}
        if len(content) <= _LFS:
            return self.content(repository, commit, name, content, headers)
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"]}
        place = f"{self.hub.files_address}/lfs/{repository}/{commit}/{name}?signature=secret"
        return self.send(302, b"", headers | {"Location": place})

    def file(self, repository, commit, name):
        content = (self.hub.folder(repository, commit) / name).read_bytes()
        return self.content(repository, commit, name, content, {"ETag": f'"{_etag(content)}"'})

    def content(self, repository, commit, name, content, headers):
        status, wanted = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and not self.hub.ignores_ranges:
            start, stop = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
            if start >= len(content):
                return self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
            status, content = 206, content[start:stop]
        breaks = self.command == "GET" and len(content) > _LFS and self.hub.take("broken")
        if self.command == "GET":
            with self.hub.lock:
                self.hub.sent[f"{repository}/{name}"] += len(content) // 2 if breaks else len(content)
        return self.send(status, content, headers | {"Accept-Ranges": "bytes"}, breaks)

    def json(self, value, headers=None):
        return self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def refuse(self, status, code):
        return self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def send(self, status, content, headers=None, breaks=False):
        """Send an answer; `breaks`: close the connection after half of it."""
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        content = content[: len(content) // 2] if breaks else content
        self.wfile.write(content)
        if breaks:
            self.wfile.flush()
            self.close_connection = True
