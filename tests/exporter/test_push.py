"""Pushing an export: the real huggingface_hub against a local test server."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import ModelCard

from backtrack.errors import ExportError, UsageError
from backtrack.exporter import push

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CARD = "---\nlibrary_name: peft\ntags: [backtrack]\n---\n\n# A point\n"


class Hub(BaseHTTPRequestHandler):
    """Accepts a repository and a commit; every file is small enough to be inside the commit."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, body, self.headers["Authorization"]))  # type: ignore[attr-defined]
        if self.path == "/api/repos/create" and b"taken" in body:
            self._answer({"error": "You don't have the rights to create a model here"}, 403)
        elif self.path == "/api/repos/create":
            request = json.loads(body)
            owner = request.get("organization") or "me"
            self._answer({"url": f"{self._origin}/{owner}/{request['name']}"})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self._answer({"files": modes})
        elif "/commit/" in self.path:
            self._answer(
                {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"{self._origin}/me/point/commit/{40 * '0'}",
                }
            )
        else:
            self._answer({})

    def do_GET(self) -> None:
        self._answer({"id": "me/point", "sha": "0" * 40, "siblings": []})

    @property
    def _origin(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]

    def _answer(self, values: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Hub that records its requests; the library may reach it."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export = tmp_path / "chosen"
    export.mkdir()
    (export / "README.md").write_text(CARD)
    (export / "adapter_config.json").write_text("{}")
    (export / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    return export


def address(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def committed(server: Any) -> dict[str, bytes]:
    """Files of the commit, by path."""
    (body,) = [body for path, body, _ in server.seen if "/commit/" in path]
    lines = [json.loads(line) for line in body.splitlines()]
    files = [line["value"] for line in lines if line["key"] == "file"]
    return {file["path"]: base64.b64decode(file["content"]) for file in files}


def test_a_push_creates_the_repository_and_commits_all_files_at_once(
    hub: Any, folder: Path
) -> None:
    url = push(folder, "me/point", is_private=True, endpoint=address(hub))
    assert url == f"{address(hub)}/me/point"
    created = json.loads(hub.seen[0][1])
    assert (created["name"], created["organization"]) == ("point", "me")
    assert created.get("private") is True or created.get("visibility") == "private"
    files = committed(hub)
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {token for _, _, token in hub.seen} == {"Bearer hf_of_the_test"}
    assert ModelCard(files["README.md"].decode()).data.to_dict()["library_name"] == "peft"


def test_if_the_hub_refuses_the_folder_stays_and_the_error_says_how_to_go_on(
    hub: Any, folder: Path
) -> None:
    with pytest.raises(ExportError, match=r"could not be pushed.*hf upload me/taken"):
        push(folder, "me/taken", endpoint=address(hub))
    assert (folder / "README.md").read_text() == CARD


def test_an_unreachable_hub_is_one_clear_error(hub: Any, folder: Path) -> None:
    with pytest.raises(ExportError, match="could not be pushed"):
        push(folder, "me/point", endpoint="http://127.0.0.1:9")


def test_an_invalid_name_is_refused(hub: Any, folder: Path) -> None:
    with pytest.raises(UsageError, match="--push 'not/a/name'"):
        push(folder, "not/a/name", endpoint=address(hub))


def test_without_a_login_nothing_is_sent(
    hub: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UsageError, match="hf auth login"):
        push(folder, "me/point", endpoint=address(hub))
    assert hub.seen == []
