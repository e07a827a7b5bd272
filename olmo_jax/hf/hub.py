"""The Hugging Face hub: the revisions of a repository, their files, whole files and parts of files.

Requests go through huggingface_hub, which takes the address from HF_ENDPOINT, the token from HF_TOKEN or its own login,
and waits as the hub asks (429, Retry-After) or longer after each failure. Files are identified by the hashes in the
hub's listings, so much can be said about a history before any of it is fetched.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from olmo_jax.errors import UserError, brief

PREFIX = "hub:"
# Requests at a time. The hub counts requests per five minutes, so more would only be refused sooner.
WORKERS = 8
_TRIES = 5
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")

_T = TypeVar("_T")
_R = TypeVar("_R")


class HubError(UserError):
    """The hub refuses a request, or answers what can't be used; the message says what, of which repository."""


class File(NamedTuple):
    """A file of a revision, as the hub lists it.

    Attributes:
      path: in the repository. size: in bytes.
      digest: the SHA-256 of its content; of a small file, which the hub keeps in git, the hash of its git object.
    """

    path: str
    size: int
    digest: str


@dataclasses.dataclass
class Traffic:
    """Counts of what was read: parts of files and whole files, and the bytes of both."""

    requests: int = 0
    bytes: int = 0
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def add(self, count: int) -> None:
        """Count one request that read so many bytes."""
        with self._lock:
            self.requests += 1
            self.bytes += count


@dataclasses.dataclass(frozen=True)
class Repository:
    """A model's repository on the hub, named OWNER/NAME. All methods raise HubError."""

    name: str
    traffic: Traffic = dataclasses.field(default_factory=Traffic)

    @classmethod
    def parse(cls, text: str) -> "Repository":
        """Return the repository named by hub:OWNER/NAME. Raises HubError for any other text, or without the library."""
        try:
            import httpx2  # noqa: F401  of huggingface_hub since version 2
            from huggingface_hub.utils import logging as library_logging
        except ImportError as error:
            raise HubError(f"{text}: needs huggingface_hub 2.4 or later; pip install 'olmo-jax[hub]'") from error
        for handler in library_logging.get_logger().handlers:  # which say on stderr what is repeated, and why
            if not any(isinstance(known, _WithoutSignatures) for known in handler.filters):
                handler.addFilter(_WithoutSignatures())
        name = text.removeprefix(PREFIX)
        if not _NAME.fullmatch(name):
            raise HubError(
                f"{text}: isn't a repository; write {PREFIX}OWNER/NAME, such as {PREFIX}EleutherAI/pythia-14m"
            )
        return cls(name)

    def revisions(self) -> dict[str, str]:
        """Return the commit of each branch and tag, by name."""
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        with self._errors():
            # huggingface_hub's list_repo_refs doesn't repeat a request that the hub was too busy for.
            response = http_backoff(
                "GET", f"{_endpoint()}/api/models/{self.name}/refs", headers=build_hf_headers(), timeout=_TIMEOUT
            )
            hf_raise_for_status(response)
            refs = response.json()
            return {ref["name"]: ref["targetCommit"] for kind in ("branches", "tags") for ref in refs[kind]}

    def files(self, revision: str) -> list[File]:
        """Return the files of a revision, given by name or commit, sorted by path."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        with self._errors(revision):
            entries = list(HfApi(_endpoint()).list_repo_tree(self.name, recursive=True, revision=revision))
        return sorted(
            File(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile)
        )

    def read(self, revision: str, path: str, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of a file, without fetching the others; fewer where the file ends sooner."""
        from httpx2 import TransportError
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        url = hf_hub_url(self.name, path, revision=revision, endpoint=_endpoint())
        # Of a compressed answer a range would be one of the compressed bytes.
        headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with self._errors(revision, path):
            for attempt in range(_TRIES):
                # A connection that breaks inside the body is our own to repeat.
                try:
                    with http_stream_backoff(
                        "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT, retry_on_exceptions=()
                    ) as response:
                        if response.status_code == 416:  # beyond the end of the file
                            return b""
                        if response.is_error:
                            response.read()
                        hf_raise_for_status(response)
                        # A small file may come whole, whatever range was asked for.
                        whole = int(response.headers.get("Content-Length", stop + 1))
                        if response.status_code != 206 and (start > 0 or whole > stop):
                            raise HubError(
                                f"{self._place(revision, path)}: the server ignores the range that was asked for, so "
                                "parts of files can't be read there; import the revisions, which fetches whole files"
                            )
                        content: bytes = response.read()
                    break
                except TransportError:
                    if attempt == _TRIES - 1:
                        raise
                    time.sleep(2.0**attempt / 2)
        self.traffic.add(len(content))
        return content

    def fetch(self, revision: str, file: File, folder: Path) -> Path:
        """Fetch a file into a folder, check its hash, and return its path there.

        A connection that breaks is continued; after a kill the file is fetched anew. One that is in huggingface_hub's
        cache is copied from there.
        """
        from huggingface_hub import hf_hub_download

        for abandoned in folder.glob(".cache/huggingface/**/*.incomplete"):  # by a process that was killed
            abandoned.unlink()
        with self._errors(revision, file.path):
            path = Path(
                hf_hub_download(self.name, file.path, revision=revision, local_dir=folder, endpoint=_endpoint())
            )
        if path.stat().st_size != file.size or _digest(path, file) != file.digest:
            path.unlink()
            raise HubError(
                f"{self._place(revision, file.path)}: what was fetched isn't what the hub lists (hashes differ); run "
                "the same command again"
            )
        self.traffic.add(file.size)
        return path

    def _place(self, revision: str = "", path: str = "") -> str:
        at = f" at {revision[:12]}" if revision else ""
        return f"{PREFIX}{self.name}{at}{f', {path}' if path else ''}"

    @contextlib.contextmanager
    def _errors(self, revision: str = "", path: str = "") -> Iterator[None]:
        """Raise errors of requests as HubError."""
        try:
            yield
        except HubError:
            raise
        except Exception as error:
            reason = _reason(error)
            if reason is None:
                raise
            raise HubError(f"{self._place(revision, path)}: {reason}") from error


def _reason(error: BaseException) -> str | None:
    """Return what went wrong in a request, and what to do; None for an error of this machine or of the program.

    Addresses are left out, as they can hold signatures.
    """
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _reason(error.__cause__)  # of the request for the file's hash
    if isinstance(error, errors.GatedRepoError):
        return "is gated; accept its terms on its page, and log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or a private one that isn't open to you; check the name, or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "isn't in the cache, and HF_HUB_OFFLINE is set; unset it to fetch it"
    if isinstance(error, errors.EntryNotFoundError):
        return "the revision has no such file"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        remedy = "wait, then run the same command again" if status == 429 or status >= 500 else "see the hub's page"
        return f"the hub answers with status {status}; {remedy}"
    if isinstance(error, HTTPError | InvalidURL):
        what = f"no answer from {_endpoint()} ({type(error).__name__})"
        return f"{what}; check the network and HF_ENDPOINT, then run the same command again"
    if isinstance(error, errors.FileMetadataError):
        return f"{_endpoint()} doesn't answer as the hub does; check HF_ENDPOINT"
    if isinstance(error, ValueError | KeyError | TypeError | AttributeError):
        return (
            f"{_endpoint()} answers with something other than the hub's JSON; if a proxy or a login page is in "
            "between, pass it first"
        )
    # RuntimeErrors are those of hf_xet. Errors with a number are of this machine's disk.
    if isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno is None):
        return f"{_without_queries(brief(error))}; run the same command again"
    return None


def _without_queries(text: str) -> str:
    """Return a text without the queries of the addresses in it."""
    return re.sub(r"\?[\w.~%-]+=[^\s'\")]*", "", text)


class _WithoutSignatures(logging.Filter):
    """Removes the queries of addresses from log messages, since those of files are signed and open them to anyone."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _without_queries(record.getMessage()), ()
        return True


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids requests."""
    from huggingface_hub import is_offline_mode

    return bool(is_offline_mode())


def cached(name: str) -> dict[str, Path]:
    """Return the folders of a repository's revisions in huggingface_hub's cache, by name; {} if there is none."""
    from huggingface_hub import constants

    # By its documented layout; scan_cache_dir leaves out a repository of which one download was interrupted.
    place = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    commits = {
        ref.relative_to(place / "refs").as_posix(): ref.read_text().strip()
        for ref in sorted((place / "refs").rglob("*"))
        if ref.is_file()
    }
    folders = {ref: place / "snapshots" / commit for ref, commit in commits.items()}
    return {ref: folder for ref, folder in folders.items() if folder.is_dir()}


def in_parallel(function: Callable[[_T], _R], items: list[_T]) -> Iterator[_R]:
    """Yield the function's value for each item, in order, with at most WORKERS requests at a time."""
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _digest(path: Path, file: File) -> str:
    """Return the hash of a file's content of the same kind as `file.digest`."""
    is_sha256 = len(file.digest) == 64
    digest: Any = hashlib.sha256() if is_sha256 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return str(digest.hexdigest())
