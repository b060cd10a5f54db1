"""The W&B report that shows a report's page and table, made by W&B's own package against a server
on this machine that keeps what it is sent."""

import http.server
import json
import re
import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from metalearn.tracking.wandb_report import as_report

PROJECT = {"id": "P", "internalId": "7", "name": "m", "entityName": "me"}


class Views(http.server.BaseHTTPRequestHandler):
    """Knows one project, and keeps the reports that are sent for it."""

    kept: ClassVar[list[dict[str, Any]]] = []

    def answer(self, asked: str, variables: dict[str, Any]) -> dict[str, Any]:
        if asked == "upsertView":
            self.kept.append(variables)
            view = {name: variables[name] for name in ("name", "displayName", "spec", "type")}
            project = {name: PROJECT[name] for name in ("id", "name", "entityName")}
            view |= {"id": "Vmlldzox", "project": project, "updatedAt": "2026-01-01T00:00:00"}
            return {"upsertView": {"view": view, "inserted": True}}
        node = PROJECT | {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
        page = {"endCursor": "c", "hasNextPage": False}
        return {
            "Viewer": {"viewer": {"id": "V", "entity": "me", "username": "me", "flags": "{}"}},
            "ProjectInternalId": {"project": {"id": "P", "internalId": "7"}},
            "GetProjects": {"models": {"edges": [{"node": node, "cursor": "c"}], "pageInfo": page}},
        }.get(asked, {})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode(errors="replace")
        asked = re.search(r"(?:query|mutation)\s+(\w+)", body)
        variables = json.loads(body).get("variables", {}) if asked else {}
        answer = json.dumps({"data": self.answer(asked[1], variables) if asked else {}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *_):  # type: ignore[override]
        """Quiet."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of W&B's package, at its import
def test_the_report_shows_the_page_and_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Views) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
        run = SimpleNamespace(entity="me", project="m", name="report")
        try:
            address = as_report(run, "runs of a week", warn=pytest.fail)
        finally:
            server.shutdown()
            thread.join()
        told = f"http://127.0.0.1:{server.server_port}/me/m/reports/runs-of-a-week--Vmlldzox"
    assert address == told
    (sent,) = Views.kept
    assert (sent["entityName"], sent["projectName"]) == ("me", "m")
    assert (sent["displayName"], sent["type"]) == ("runs of a week", "runs")
    (grid,) = [b for b in json.loads(sent["spec"])["blocks"] if b["type"] == "panel-grid"]
    (runs,) = grid["metadata"]["runSets"]
    assert runs["search"]["query"] == "report"
    panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
    page, table = panels
    assert page["config"]["mediaKeys"] == ["page"]
    assert "'table'" in repr(table["config"])
