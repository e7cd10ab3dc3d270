"""A hub on this machine: what `huggingface_hub`, `transformers` and `datasets` ask of the real one, over HTTP.

`Hub` keeps repositories in memory and serves them in a thread. Files above `LFS_SIZE` bytes go the way of large files:
they are named by their SHA-256, sent from another address, and uploaded apart from the commit. `Hub.break_next` makes
the next downloads of a file fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


# What a download of a file can meet with.
TRUNCATED = "truncated"  # the connection ends in the middle
SHORT = "short"  # the answer says that it is whole, and is not
STALLED = "stalled"  # nothing comes after the first half, for longer than the client waits
FAILING = "failing"  # the server answers 500
FAULTS = (TRUNCATED, SHORT, STALLED, FAILING)

LFS_SIZE = 50_000
STALL_SECONDS = 4.0
KINDS = ("models", "datasets")


@dataclass
class Repository:
    """The commits of a repository, each with all its files, and the branches and tags that name them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], reference: str = "main") -> str:
        parent = self.references.get(reference, "")
        digest = hashlib.sha1(parent.encode() + str(len(self.commits)).encode())
        for name, content in sorted(files.items()):
            digest.update(name.encode() + content)
        identifier = digest.hexdigest()
        self.commits[identifier] = files
        self.references[reference] = identifier
        return identifier

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a hash names."""
        return self.references.get(revision, revision if revision in self.commits else None)


class Hub:
    """
    A hub at `url`, from `with Hub() as hub:` on.

    `requests` lists the method and the path of all that was asked, in order. If `on_request` is set, it gets each of
    these before its body is read, and a request for which it returns `True` gets no answer.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.on_request: Callable[[str], bool] | None = None
        self.faults: dict[str, list[str]] = {}
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        # Large files lie on another host than the hub, to which clients do not follow as they do within one.
        self.storage_url = f"http://localhost:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(self, kind: str, name: str, folder: Path, reference: str = "main") -> str:
        """Make the files of a folder the newest commit of a branch, and return its hash."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        return self.repositories.setdefault((kind, name), Repository()).commit(files, reference)

    def break_next(self, file_name: str, *faults: str) -> None:
        """Let the next downloads of a file fail, one fault for each."""
        self.faults.setdefault(file_name, []).extend(faults)

    def take_fault(self, file_name: str) -> str | None:
        with self.lock:
            waiting = self.faults.get(file_name)
            return waiting.pop(0) if waiting else None


class RefusalError(Exception):
    """An answer that is an error, as the hub words it."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Requests are kept in the hub, and printed nowhere."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - the names that http.server calls

    def _answer(self) -> None:
        request = f"{self.command} {self.path}"
        self.hub.requests.append(request)
        if self.hub.on_request is not None and self.hub.on_request(request):
            self.close_connection = True
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        try:
            self._route(parts, parse_qs(address.query), body)
        except RefusalError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            self._send_json({"error": str(refusal)}, refusal.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, parts: list[str], query: dict[str, list[str]], body: bytes) -> None:
        match parts:
            case ["api", "whoami-v2"]:
                self._send_json({"name": "org", "type": "user", "orgs": [], "auth": {"type": "access_token"}})
            case ["api", "validate-yaml"]:
                self._send_json({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", ("models" | "datasets") as kind, owner, name]:
                self._send_info(kind, f"{owner}/{name}", "main")
            case ["api", ("models" | "datasets") as kind, owner, name, "revision", revision]:
                self._send_info(kind, f"{owner}/{name}", revision)
            case ["api", ("models" | "datasets") as kind, owner, name, "tree", revision, *folder]:
                recursive = query.get("recursive", ["false"])[0].lower() == "true"
                self._send_tree(kind, f"{owner}/{name}", revision, "/".join(folder), recursive)
            case ["api", ("models" | "datasets") as kind, owner, name, "paths-info", revision]:
                self._send_paths(kind, f"{owner}/{name}", revision, body)
            case ["api", ("models" | "datasets") as kind, owner, name, "preupload", _]:
                self._repository(kind, f"{owner}/{name}")
                self._send_upload_modes(json.loads(body))
            case ["api", ("models" | "datasets") as kind, owner, name, "commit", revision]:
                self._commit(kind, f"{owner}/{name}", revision, body)
            case ["datasets", owner, name, "resolve", revision, *path]:
                self._send_file("datasets", f"{owner}/{name}", revision, "/".join(path))
            case [*prefix, owner, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                kind = prefix[0] if prefix else "models"
                self._repository(kind, f"{owner}/{name.removesuffix('.git')}")
                self._send_upload_addresses(json.loads(body))
            case ["large-files", digest] if self.command == "PUT":
                if hashlib.sha256(body).hexdigest() != digest:
                    raise RefusalError(400, "BadHash", "the content does not have the hash of its name")
                self.hub.large_files[digest] = body
                self._send_json({})
            case ["large-files", digest, *path]:
                if digest not in self.hub.large_files:
                    raise RefusalError(404, "EntryNotFound", "no such content")
                self._send_content(self.hub.large_files[digest], "/".join(path))
            case [owner, name, "resolve", revision, *path]:
                self._send_file("models", f"{owner}/{name}", revision, "/".join(path))
            case _:
                raise RefusalError(404, "NotFound", f"no such page: {self.path}")

    # What is asked of repositories

    def _repository(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            raise RefusalError(404, "RepoNotFound", "Repository not found")
        return repository

    def _files(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self._repository(kind, name)
        commit = repository.resolve(revision)
        if commit is None:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repository.commits[commit]

    def _create(self, request: dict[str, Any]) -> None:
        if "Bearer " not in self.headers.get("Authorization", ""):
            raise RefusalError(401, "Unauthorized", "Invalid username or password.")
        kind = f"{request.get('type') or 'model'}s"
        name = f"{request.get('organization') or 'org'}/{request['name']}"
        if (kind, name) in self.hub.repositories:
            return self._send_json({"error": "You already created this repo", "url": self._page(kind, name)}, 409)
        self.hub.repositories[kind, name] = Repository()
        self.hub.repositories[kind, name].commit({".gitattributes": b""})
        return self._send_json({"url": self._page(kind, name), "name": name})

    def _page(self, kind: str, name: str) -> str:
        return f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"

    def _send_info(self, kind: str, name: str, revision: str) -> None:
        commit, files = self._files(kind, name, revision)
        information = {
            "_id": hashlib.md5(name.encode()).hexdigest()[:24],
            "id": name,
            "author": name.split("/")[0],
            "sha": commit,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} for path in sorted(files)],
        }
        self._send_json(information | ({"modelId": name} if kind == "models" else {}))

    def _send_tree(self, kind: str, name: str, revision: str, folder: str, recursive: bool) -> None:
        _, files = self._files(kind, name, revision)
        prefix = f"{folder}/" if folder else ""
        below = {path.removeprefix(prefix): content for path, content in files.items() if path.startswith(prefix)}
        if folder and not below:
            raise RefusalError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        entries = [
            _describe(prefix + path, content)
            for path, content in sorted(below.items())
            if recursive or "/" not in path
        ]
        folders = {parent.as_posix() for path in below for parent in Path(path).parents} - {"."}
        shown = sorted(one for one in folders if recursive or "/" not in one)
        self._send_json([_describe_folder(prefix + one) for one in shown] + entries)

    def _send_paths(self, kind: str, name: str, revision: str, body: bytes) -> None:
        _, files = self._files(kind, name, revision)
        is_json = self.headers.get("Content-Type", "").startswith("application/json")
        wanted = json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
        entries = []
        for path in wanted:
            if path in files:
                entries.append(_describe(path, files[path]))
            elif any(one.startswith(f"{path}/") for one in files):
                entries.append(_describe_folder(path))
        self._send_json(entries)

    def _send_file(self, kind: str, name: str, revision: str, path: str) -> None:
        commit, files = self._files(kind, name, revision)
        if path not in files:
            raise RefusalError(404, "EntryNotFound", f"{path} does not exist on {revision}")
        content = files[path]
        headers = {"X-Repo-Commit": commit}
        if len(content) <= LFS_SIZE:
            self._send_content(content, path, {**headers, "ETag": f'"{_git_hash(content)}"'})
            return
        digest = hashlib.sha256(content).hexdigest()
        self.hub.large_files[digest] = content
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        headers["Location"] = f"{self.hub.storage_url}/large-files/{digest}/{path}"
        self._send(302, b"", headers)

    def _send_content(self, content: bytes, path: str, headers: dict[str, str] | None = None) -> None:
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **(headers or {})}
        fault = None if self.command == "HEAD" else self.hub.take_fault(path.rsplit("/", 1)[-1])
        if fault == FAILING:
            raise RefusalError(500, "InternalError", "the server is not well")
        if fault == SHORT:
            content = content[: len(content) // 2]
        status, first, last = 200, 0, len(content)
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and content:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first = int(start) if start else max(0, last - int(end))
            last = min(last, int(end) + 1) if start and end else last
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last - 1}/{len(content)}"
        body = content[first:last]
        if fault in (TRUNCATED, STALLED):
            self._send(status, body, headers, sent=len(body) // 2)
            if fault == STALLED:
                time.sleep(STALL_SECONDS)
            self.close_connection = True
            return
        self._send(status, body, headers)

    # What is uploaded

    def _send_upload_modes(self, request: dict[str, Any]) -> None:
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["size"] > LFS_SIZE else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for one in request["files"]
        ]
        self._send_json({"files": modes, "commitOid": "0" * 40})

    def _send_upload_addresses(self, request: dict[str, Any]) -> None:
        objects = []
        for one in request["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.large_files:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.storage_url}/large-files/{one['oid']}", "header": {}}
                }
            objects.append(answer)
        self._send_json({"transfer": "basic", "objects": objects})

    def _commit(self, kind: str, name: str, revision: str, body: bytes) -> None:
        repository = self._repository(kind, name)
        _, before = self._files(kind, name, revision)
        files = dict(before)
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    continue
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.hub.large_files:
                        raise RefusalError(400, "LfsFileMissing", f"{value['path']} was never uploaded")
                    files[value["path"]] = self.hub.large_files[value["oid"]]
                case "deletedFile":
                    files.pop(value["path"], None)
                case "deletedFolder":
                    files = {path: one for path, one in files.items() if not path.startswith(value["path"])}
        commit = repository.commit(files, revision)
        self._send_json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self._page(kind, name)}/commit/{commit}"}
        )

    # Answers

    def _send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str], sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
            self.wfile.flush()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _describe(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
    if len(content) > LFS_SIZE:
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry


def _describe_folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
