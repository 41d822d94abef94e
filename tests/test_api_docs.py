"""The pages about the API and the KPIs against what is served; their snippets are run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from ledgers import Scorer
from processes import ROOT, wait_until
from test_api import beat_all, put_model
from test_api_server import Server

from services.api import document
from services.api.examples import all_examples
from spearhead.kpi import KPIS
from spearhead.volume import Volume

PAYLOADS = document.PAGE.read_text()
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    volume = Volume(tmp_path_factory.mktemp("volume"))
    volume.prepare()
    scorer = Scorer(volume)
    for _ in range(2):
        scorer.score(1500)
        scorer.fold()
    beat_all(volume)
    put_model(volume)
    started = Server(
        volume.root, api_workers=1, api_token="secret", token_key="a key for tests only", lease_seconds=600
    )
    wait_until(started.alive, "the api answers")
    yield started
    started.kill()


def snippets(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def run(command: list[str], server: Server, cwd: Path | None = None) -> str:
    base = f"http://127.0.0.1:{server.port}"
    environment = os.environ | {"BASE": base, "API_TOKEN": "secret"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_is_what_is_served() -> None:
    """If this fails: python -m services.api.document"""
    assert document.page() == PAYLOADS


def test_examples_are_of_one_moment_and_tell_what_a_run_can_tell() -> None:
    """If this fails: make examples"""
    found = all_examples()
    stamps = {one.get("timestamp") or one["metadata"]["timestamp"] for name, one in found.items() if name != "history"}
    times = sorted(map(datetime.fromisoformat, stamps))
    assert (times[-1] - times[0]).total_seconds() < 5
    model = found["model_details"]
    assert all(model["labels"]["feedback"][name] for name in ("received", "applied", "corrected", "duplicate"))
    assert all(model["reasons_summary"].values())
    drift = model["drift"]
    assert None not in (drift["status"], drift["score_psi"], drift["window"]["from"], drift["features"][0]["psi"])
    assert None not in (*drift["label_rate"].values(), *drift["calibration"].values())


@pytest.mark.skipif(not (shutil.which("jq") and shutil.which("curl")), reason="jq or curl is not installed")
def test_shell_snippets(server: Server) -> None:
    read, send, tell = snippets(PAYLOADS, "sh")
    out = run(["bash", "-euo", "pipefail", "-c", read], server)
    assert '"transactions_analyzed": 3000' in out
    assert "2 Transactions analysed: 3000" in out
    assert "17 Volume utilisation: null" in out
    assert out.rstrip().endswith("ready")
    for _ in range(2):  # the same key: the same answer
        sent = run(["bash", "-euo", "pipefail", "-c", send], server)
        assert sent.split() == ["{", '"accepted":', "1,", '"rejected":', "0", "}"]
    told = run(["bash", "-euo", "pipefail", "-c", tell], server)
    assert told.split() == ["{", '"accepted":', "1,", '"rejected":', "0", "}"]


@pytest.mark.skipif(not (shutil.which("jq") and shutil.which("curl")), reason="jq or curl is not installed")
def test_curl_lines_of_the_readme(server: Server) -> None:
    lines = [line.strip() for line in README.splitlines() if line.strip().startswith("curl ")]
    assert lines
    for line in lines:
        out = run(
            ["bash", "-euo", "pipefail", "-c", line.replace("localhost:8000", f"127.0.0.1:{server.port}")], server
        )
        assert "null" not in [word.strip(",") for word in out.split()][:2], line


def node() -> list[str]:
    """Node with a WebSocket: built in from version 22 on, behind an option in 20 and 21."""
    has = subprocess.run(["node", "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"], check=False)
    return ["node"] if has.returncode == 0 else ["node", "--experimental-websocket", "--no-warnings"]


@pytest.mark.browser
def test_javascript_snippet(server: Server, tmp_path: Path) -> None:
    (snippet,) = snippets(PAYLOADS, "js")
    path = tmp_path / "snippet.mjs"
    path.write_text(snippet)
    first, second = run([*node(), str(path)], server).splitlines()
    assert first == "ok 3000"
    assert 0 < float(second.split()[1]) < 1


def test_python_snippet(server: Server) -> None:
    (snippet,) = snippets(PAYLOADS, "python")
    first, second = run([sys.executable, "-c", snippet], server).splitlines()
    assert first.startswith("3000 ")
    assert second == "{'success': True, 'rate': 'max'}"


def test_every_kpi_has_its_row() -> None:
    page = (ROOT / "docs" / "KPIS.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.*?) \| (.*?) \|", page, re.M)
    assert [(int(number), key) for number, key, *_ in rows] == [(one.id, one.key) for one in KPIS]
    assert [name for _, _, name, _ in rows] == [one.name for one in KPIS]
    assert [unit for *_, unit in rows] == [one.unit for one in KPIS]


def test_the_api_page_names_every_served_path(server: Server) -> None:
    for path in server.get("/openapi.json")["paths"]:
        last = path.rsplit("/", 1)[1]
        assert path in PAYLOADS or f"`{last}`" in PAYLOADS or path in ("/healthz", "/metrics"), path
