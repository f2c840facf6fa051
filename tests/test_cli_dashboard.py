"""`o2o-smooth dashboard`: what it sends, to a server of the test's own, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.cli import main
from o2o_smooth.training.tracking import dashboard

pytest.importorskip("wandb_workspaces")
KEY = "0123456789abcdef" * 2 + "01234567"


def spec_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["dashboard", "--entity", "team", "--dry-run", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_dry_run_prints_the_workspace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    spec = spec_of(capsys, "--project", "mine", "--title", "My view")
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("team", "mine", "My view")
    section = spec["spec"]["section"]
    assert [s["name"] for s in section["panelBankConfig"]["sections"]] == [s.name for s in dashboard.SECTIONS]
    assert section["settings"]["xAxis"] == "env_steps"
    assert section["settings"]["smoothingType"] == "none"
    assert section["settings"]["shouldAutoGeneratePanels"] is True
    for one, part in zip(dashboard.SECTIONS, section["panelBankConfig"]["sections"], strict=True):
        assert part["localPanelSettings"]["xAxis"] == one.axis
        assert [p["config"]["chartTitle"] for p in part["panels"]] == [c.title for c in one.charts]
        assert part["flowConfig"]["columnsPerPage"] * part["flowConfig"]["rowsPerPage"] >= len(one.charts)


def test_a_dry_run_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_of(capsys, "--report", "--title", "Ramps on hopper")
    assert spec["displayName"] == "Ramps on hopper"
    assert spec["project"] == {"name": "o2o-smooth", "entityName": "team"}
    grids = [block for block in spec["spec"]["blocks"] if block["type"] == "panel-grid"]
    text = json.dumps(spec)
    for one, grid in zip(dashboard.SECTIONS, grids, strict=True):
        places = [p["layout"] for p in grid["metadata"]["panelBankSectionConfig"]["panels"]]
        assert len({(p["x"], p["y"]) for p in places}) == len(one.charts)
        assert all(p["x"] + p["w"] <= 24 for p in places)
        assert json.dumps(one.note)[1:-1] in text


def test_the_spec_goes_to_a_file_and_holds_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert main(["dashboard", "--dry-run", "--json", str(tmp_path / "a" / "spec.json")]) == 0
    text = (tmp_path / "a" / "spec.json").read_text(encoding="utf-8")
    assert json.loads(text)["entity"] == "team"
    assert KEY not in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give --entity"),
        (["--entity", "a/b", "--dry-run"], "entity must be a name as in the project's address on W&B, got 'a/b'"),
        (["--entity", "a", "--title", "x" * 129], "title must have 1 to 128 characters"),
        (["--entity", "a", "--title", "\N{ROCKET}", "--dry-run"], "W&B does not take this dashboard"),
        (["--entity", "a", "--repot"], "did you mean --report?"),
        (["--entity", "a"], "WANDB_MODE=offline, and a dashboard lives on W&B's server"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["dashboard", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert text in error
    assert error.count("\n") == 1


def test_without_the_package_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert main(["dashboard", "--entity", "a", "--dry-run"]) == 2
    assert "pip install 'o2o_smooth[wandb]'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- a server of our own


class Server(ThreadingHTTPServer):
    """Answers what the client asks while it uploads, and keeps what it is given."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.refuses = refuses
        self.views: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            if self.refuses:
                return {"errors": [{"message": "permission denied"}]}
            self.views.append(variables)
            view = {"id": "Vmlldzox", "name": variables["name"], "displayName": variables["displayName"]}
            project = {"id": "1", "name": variables["projectName"], "entityName": variables["entityName"]}
            view |= {"description": "", "project": project, "spec": variables["spec"]}
            return {"data": {"upsertView": {"view": view, "inserted": True}}}
        if "GetProjects" in query:
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"data": {"models": {"edges": [], "pageInfo": page}}}
        if "viewer" in query:
            me = {"id": "1", "entity": "team", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
            return {"data": {"viewer": me}}
        return {
            "data": {"upsertModel": {"model": {"id": "1", "name": "mine"}, "project": {"id": "1"}, "inserted": True}}
        }


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        told: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            told = self.server.answer(asked["query"], asked.get("variables") or {})
        text = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(refuses=getattr(request, "param", False)) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def send(server: Server, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, with W&B's client as it is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env = kept | {"HOME": str(home), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    command = [sys.executable, "-m", "o2o_smooth", "dashboard", "--entity", "team", "--project", "mine", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--report"]])
def test_what_is_sent_is_the_spec(server: Server, tmp_path: Path, arguments: list[str]) -> None:
    file = tmp_path / "spec.json"
    done = send(server, tmp_path / "home", "--json", str(file), *arguments)
    assert done.returncode == 0, done.stderr
    (view,) = server.views
    assert view["type"] == ("runs" if arguments else "project-view")
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("team", "mine", dashboard.TITLE)
    assert f"{'report' if arguments else 'workspace'}: {server.url}/team/mine" in done.stdout
    sent, told = (plain(spec) for spec in (json.loads(view["spec"]), json.loads(file.read_text())["spec"]))
    assert sent == told
    assert [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()] == []


def plain(spec: Any) -> Any:
    """A spec without the names that are drawn anew each time."""
    if isinstance(spec, dict):
        return {key: plain(value) for key, value in spec.items() if key not in ("id", "__id__", "name")}
    return [plain(value) for value in spec] if isinstance(spec, list) else spec


@pytest.mark.slow
@pytest.mark.parametrize("server", [True], indirect=True)
def test_a_server_that_refuses_is_one_line(server: Server, tmp_path: Path) -> None:
    done = send(server, tmp_path / "home")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "W&B did not take the dashboard" in line
    assert "permission denied" in line
    assert "--dry-run" in line
