"""A stand-in for the Hugging Face hub on loopback, good enough for the real client libraries.

    with HubStandIn({"datasets/acme/vqa": folder, "models/acme/molmo": folder}) as hub:
        run(..., env={"HF_ENDPOINT": hub.endpoint, "HF_HOME": ...})
        assert hub.bytes_served < ...

`huggingface_hub` reads HF_ENDPOINT when it is imported, so the client has to run in a process of its own.
Served are repository information, tree listings, path information and files, with HEAD, Range, ETag and the
hub's own error headers. Every repository has one commit, on `main`; it changes when a file does.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """One request that was answered."""

    method: str
    path: str
    range: str | None
    status: int
    body_bytes: int


class HubStandIn:
    """Serves folders as repositories; keys are `datasets/<owner>/<name>` and `models/<owner>/<name>`.

    gated: repositories that exist, but whose content is refused. unavailable: path endings (`.parquet`) whose
    content is answered with status 500, as a hub in trouble does. tokens: repositories that are there only for whoever
    sends this token.
    """

    def __init__(
        self,
        repositories: Mapping[str, Path],
        *,
        gated: Iterable[str] = (),
        unavailable: tuple[str, ...] = (),
        tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.repositories = {key: Path(folder) for key, folder in repositories.items()}
        self.gated = set(gated)
        self.unavailable = unavailable
        self.tokens = dict(tokens or {})
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            stand_in = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def bytes_served(self) -> int:
        """Bytes of all response bodies so far."""
        with self._lock:
            return sum(request.body_bytes for request in self.requests)

    def note(self, request: Request) -> None:
        """Remember a request."""
        with self._lock:
            self.requests.append(request)

    def commit(self, repository: str) -> str:
        """Commit of a repository: 40 hexadecimal digits that depend on its files."""
        digest = hashlib.sha1(repository.encode())
        for path in self.files(repository):
            digest.update(path.encode() + _etag(self.repositories[repository] / path).encode())
        return digest.hexdigest()

    def files(self, repository: str) -> list[str]:
        """Paths of a repository's files."""
        folder = self.repositories[repository]
        return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())

    def __enter__(self) -> HubStandIn:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _etag(file: Path) -> str:
    status = file.stat()
    return _sha256(file, status.st_mtime_ns, status.st_size)


@lru_cache
def _sha256(file: Path, changed_ns: int, size_bytes: int) -> str:
    """Hash a file; the last two arguments make the cache forget a file that was changed."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    stand_in: HubStandIn
    protocol_version = "HTTP/1.1"  # connections are kept, as the clients expect

    def do_GET(self) -> None:
        path, query = self._route()
        match path:
            case ["api", kind, owner, name, *rest] if kind in ("datasets", "models"):
                self._api(f"{kind}/{owner}/{name}", rest, query)
            case ["datasets", owner, name, "resolve", revision, *rest]:
                self._resolve(f"datasets/{owner}/{name}", revision, "/".join(rest))
            case [owner, name, "resolve", revision, *rest]:
                self._resolve(f"models/{owner}/{name}", revision, "/".join(rest))
            case _:
                self._answer(404, b"{}")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _ = self._route()
        match path:
            case ["api", kind, owner, name, "paths-info", revision] if kind in ("datasets", "models"):
                repository = f"{kind}/{owner}/{name}"
                if self._is_open(repository, revision):
                    wanted = parse_qs(body.decode()).get("paths", [])
                    self._json([entry for entry in self._tree(repository, "", True) if entry["path"] in wanted])
            case _:
                self._answer(404, b"{}")

    def _route(self) -> tuple[list[str], dict[str, list[str]]]:
        parts = urlsplit(self.path)
        # split first: a revision such as refs%2Fpr%2F1 is one part
        return [unquote(part) for part in parts.path.strip("/").split("/")], parse_qs(parts.query)

    def _api(self, repository: str, rest: list[str], query: dict[str, list[str]]) -> None:
        match rest:
            case []:
                revision, kind = "main", "info"
            case ["revision", revision]:
                kind = "info"
            case ["tree", revision, *folder]:
                kind = "tree"
            case _:
                self._answer(404, b"{}")
                return
        if not self._exists(repository, revision):
            return
        if kind == "tree":
            if not self._is_open(repository, revision):
                return
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = self._tree(repository, "/".join(folder), recursive)
            if folder and not entries:
                self._refuse(404, "EntryNotFound", "Entry not found")
            else:
                self._json(entries)
            return
        hub = self.stand_in
        self._json(
            {
                "_id": "0" * 24,
                "id": repository.partition("/")[2],
                "sha": hub.commit(repository),
                "private": False,
                "gated": "manual" if repository in hub.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "lastModified": "2024-01-01T00:00:00.000Z",
                "createdAt": "2024-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": path} for path in hub.files(repository)],
            }
        )

    def _tree(self, repository: str, folder: str, recursive: bool) -> list[dict[str, object]]:
        root = self.stand_in.repositories[repository]
        start = root / folder
        if not start.is_dir():
            return []
        entries: list[dict[str, object]] = []
        for path in sorted(start.rglob("*") if recursive else start.iterdir()):
            entry: dict[str, object] = {
                "type": "directory" if path.is_dir() else "file",
                "path": path.relative_to(root).as_posix(),
                "size": 0 if path.is_dir() else path.stat().st_size,
                "oid": hashlib.sha1(path.as_posix().encode()).hexdigest(),
            }
            if path.suffix in (".parquet", ".safetensors"):
                entry["lfs"] = {"oid": _etag(path), "size": path.stat().st_size, "pointerSize": 134}
            entries.append(entry)
        return entries

    def _resolve(self, repository: str, revision: str, path: str) -> None:
        if not self._is_open(repository, revision):
            return
        hub = self.stand_in
        if path not in hub.files(repository):
            self._refuse(404, "EntryNotFound", "Entry not found", commit=hub.commit(repository))
            return
        if path.endswith(hub.unavailable) and self.command == "GET":
            self._answer(500, b"{}")
            return
        file = hub.repositories[repository] / path
        size = file.stat().st_size
        headers = {
            "ETag": f'"{_etag(file)}"',
            "X-Repo-Commit": hub.commit(repository),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        wanted = self._range(size)
        if wanted is None:
            self._answer(200, file.read_bytes(), headers=headers)
            return
        start, stop = wanted
        if start >= size:
            self._answer(416, b"", headers={"Content-Range": f"bytes */{size}"})
            return
        with file.open("rb") as opened:
            opened.seek(start)
            data = opened.read(stop - start)
        self._answer(206, data, headers={**headers, "Content-Range": f"bytes {start}-{start + len(data) - 1}/{size}"})

    def _range(self, size: int) -> tuple[int, int] | None:
        """Start and stop of the wanted bytes; None for all of them."""
        first, _, last = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
        if not first and not last:
            return None
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(size, int(last) + 1) if last else size

    def _exists(self, repository: str, revision: str) -> bool:
        hub = self.stand_in
        wanted = hub.tokens.get(repository)
        stranger = wanted is not None and self.headers.get("Authorization") != f"Bearer {wanted}"
        if repository not in hub.repositories or stranger:
            self._refuse(404, "RepoNotFound", "Repository not found")
            return False
        if revision not in ("main", hub.commit(repository)):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return False
        return True

    def _is_open(self, repository: str, revision: str) -> bool:
        if not self._exists(repository, revision):
            return False
        if repository in self.stand_in.gated:
            self._refuse(403, "GatedRepo", "Access to this resource is restricted")
            return False
        return True

    def _refuse(self, status: int, code: str, message: str, *, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        if commit:
            headers["X-Repo-Commit"] = commit
        self._answer(status, json.dumps({"error": message}).encode(), headers=headers)

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), headers={"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, *, headers: Mapping[str, str] | None = None) -> None:
        sent = b"" if self.command == "HEAD" else body
        request = Request(self.command, self.path, self.headers.get("Range"), status, len(sent))
        self.stand_in.note(request)  # before the client can act on the answer
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `HubStandIn.requests` has it all."""
