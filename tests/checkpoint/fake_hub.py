"""A Hugging Face Hub on loopback: the HTTP that the real one speaks, and the accidents that the real one has.

Large files live on another host, `localhost` where the Hub is `127.0.0.1`, behind a redirect, as on the real Hub.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "owner/Tiny-Phi"


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Server(ThreadingHTTPServer):
    """Keeps quiet about clients that go away, which is what they are made to do here."""

    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        pass


@dataclass
class FakeHub:
    """What the Hub has and how it behaves.

    files       name → content; large are those that end in .safetensors, .bin or .gguf
    token       what must be shown to read a file; None: nothing
    gated       files are refused until conditions are accepted
    cuts        how many bytes a GET of a large file sends before it breaks off, one number a GET; then all
    reset       break off with a reset instead of an end
    status      answer every question with this
    lies        name → what the API says of it (size)
    n_weights   what the Hub counted in the safetensors files, where it did
    stall       bytes after which a large file waits until the test ends
    """

    files: dict[str, bytes]
    token: str | None = None
    gated: bool = False
    cuts: list[int] = field(default_factory=list)
    reset: bool = False
    ignore_range: bool = False
    status: int | None = None
    not_a_hub: bool = False
    lies: dict[str, int] = field(default_factory=dict)
    sent_instead: dict[str, bytes] = field(default_factory=dict)
    n_weights: int | None = None
    stall: int | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = Server(("127.0.0.1", 0), handler_of(self))
        self.port = self.server.server_address[1]
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.done.set()
        self.server.shutdown()
        self.server.server_close()

    def requests(self, method: str, start: str) -> list[tuple[str, dict[str, str]]]:
        """Path and headers of the requests whose path begins so."""
        return [
            (path, headers) for kind, path, headers in self.seen if kind == method and path.startswith(start)
        ]

    @property
    def fetched(self) -> list[str]:
        """The files whose bytes were asked for, large ones too, in order."""
        return [path.rsplit("/", 1)[1] for path, _ in self.requests("GET", f"/{REPO}/resolve/")]

    def is_large(self, name: str) -> bool:
        return name.endswith((".safetensors", ".bin", ".gguf"))

    def sibling(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        size = self.lies.get(name, len(content))
        entry: dict[str, Any] = {"rfilename": name, "size": size, "blobId": git_digest(content)}
        if self.is_large(name):
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
        return entry

    def tree_entry(self, name: str) -> dict[str, Any]:
        sibling = self.sibling(name)
        entry = {"type": "file", "path": name, "size": sibling["size"], "oid": sibling["blobId"]}
        if "lfs" in sibling:
            entry["lfs"] = {"oid": sibling["lfs"]["sha256"], "size": sibling["size"], "pointerSize": 134}
        return entry


def handler_of(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.seen.append((self.command, self.path, dict(self.headers.items())))
            path = unquote(urlsplit(self.path).path)
            if hub.status is not None:
                self.refuse(hub.status, "", "out of order")
            elif hub.not_a_hub:
                self.answer(200, b"<html>log in to the hotel's network</html>", {"Content-Type": "text/html"})
            elif path.startswith("/api/models/"):
                self.api(path.removeprefix("/api/models/"))
            elif found := re.fullmatch(rf"/{REPO}/resolve/([^/]+)/(.+)", path):
                self.resolve(*found.groups())
            elif path.startswith("/cdn/"):
                self.large(path.removeprefix("/cdn/"))
            else:
                self.refuse(404, "RepoNotFound", "Repository not found")

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def refuse(self, status: int, code: str, message: str) -> None:
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            self.answer(status, json.dumps({"error": message}).encode(), headers)

        def known(self, revision: str) -> bool:
            if revision in ("main", COMMIT):
                return True
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return False

        def api(self, rest: str) -> None:
            found = re.fullmatch(rf"{REPO}(?:/(revision|tree)/(.+))?", rest)
            if found is None:
                self.refuse(401 if hub.token is None else 404, "RepoNotFound", "Repository not found")
            elif not self.known(found[2] or "main"):
                return
            elif found[1] == "tree":
                self.json([hub.tree_entry(name) for name in hub.files])
            else:
                with_sizes = parse_qs(urlsplit(self.path).query).get("blobs")
                names = [hub.sibling(n) if with_sizes else {"rfilename": n} for n in hub.files]
                counted = {"parameters": {"BF16": hub.n_weights}, "total": hub.n_weights}
                about = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": names}
                self.json(about | ({"safetensors": counted} if hub.n_weights else {}))

        def json(self, document: object) -> None:
            self.answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

        def resolve(self, revision: str, name: str) -> None:
            if not self.known(revision):
                return
            if name not in hub.files:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            if hub.gated:
                return self.refuse(403, "GatedRepo", "Access to this model is restricted")
            if hub.token is not None and self.headers["Authorization"] != f"Bearer {hub.token}":
                return self.refuse(401, "GatedRepo", "Access to this model is restricted")
            sibling = hub.sibling(name)
            if not hub.is_large(name):
                etag = {"ETag": f'"{sibling["blobId"]}"', "X-Repo-Commit": COMMIT}
                return self.answer(200, hub.sent_instead.get(name, hub.files[name]), etag)
            headers = {
                "Location": f"http://localhost:{hub.port}/cdn/{name}",
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{sibling["lfs"]["sha256"]}"',
                "X-Linked-Size": str(sibling["size"]),
            }
            self.answer(302, b"", headers)

        def large(self, name: str) -> None:
            content = hub.sent_instead.get(name, hub.files[name])
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            start = int(asked[1]) if asked and not hub.ignore_range else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if self.command == "GET":
                self.send(content[start:])

        def send(self, body: bytes) -> None:
            if hub.stall is not None:
                self.wfile.write(body[: hub.stall])
                self.wfile.flush()
                hub.stalled.set()
                hub.done.wait()
            elif hub.cuts:
                self.wfile.write(body[: hub.cuts.pop(0)])
                self.wfile.flush()
                time.sleep(0.1)  # so that the other side has read it: a reset drops what it has not
                if hub.reset:  # lingering for no time makes the kernel send RST
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            else:
                self.wfile.write(body)

    return Handler
