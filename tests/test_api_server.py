"""The api as processes: gunicorn's start and end, its address, its heartbeat, and the WebSocket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ledgers import Scorer
from processes import ROOT, children, wait_until
from sparkov import rows
from test_api import beat_all
from websockets.sync.client import connect

from services.api import schemas
from spearhead.heartbeat import Roster
from spearhead.volume import Volume


class Server:
    """``python -m services.api`` on a free port."""

    def __init__(self, root: Path, port: int | None = None, **settings: Any) -> None:
        self.port = port or free_port()
        environment = os.environ | {
            "FLASHBLADE_PATH": str(root), "PORT": str(self.port), "FSYNC": "false", "LOG_LEVEL": "info"
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.api"],
            cwd=ROOT,
            env=environment | {name.upper(): str(value) for name, value in settings.items()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def alive(self) -> bool:
        try:
            return bool(self.get("/healthz")["status"] == "alive")
        except OSError:
            assert self.process.poll() is None, self.end()
            return False

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit status and standard error."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, error = self.process.communicate(timeout=60)
        return self.process.returncode, error.decode()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(volume: Volume) -> Iterator[Server]:
    scorer = Scorer(volume)
    scorer.score(2000)
    scorer.fold()
    beat_all(volume)
    started = Server(volume.root, api_workers=2, api_token="secret")
    wait_until(started.alive, "the api answers")
    yield started
    started.kill()


def test_it_answers_beats_and_ends_cleanly(server: Server, volume: Volume) -> None:
    assert server.get("/api/business/metrics")["transactions_analyzed"] == 2000
    assert server.get("/readyz") == {"ready": True, "reasons": []}
    roster = Roster(volume, 15.0)
    beats = wait_until(lambda: [b for b in roster.alive().values() if b.stage == "api"], "a heartbeat")
    assert len(beats) == 1
    assert wait_until(lambda: len(children(server.process.pid)) == 2, "two workers")
    assert server.end() == (0, "")
    assert [b for b in roster.alive().values() if b.stage == "api"] == []
    roster.close()
    assert [path.name for path in volume.workers.glob(".probe.*")] == []


def test_a_taken_port_is_a_clear_error(server: Server, volume: Volume) -> None:
    second = Server(volume.root, port=server.port)
    status, error = second.end(signal.SIGCONT)
    assert status == 2
    assert error.splitlines()[-1:] == [
        f"spearhead api: can't listen on 127.0.0.1:{server.port} (Address already in use): "
        "set BIND and PORT to a free address"
    ]
    assert server.alive()


def test_a_killed_worker_is_replaced_and_a_killed_arbiter_frees_the_port(server: Server, volume: Volume) -> None:
    victim = children(server.process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(set(children(server.process.pid)) - {victim}) == 2, "a new worker")
    assert server.alive()
    server.process.kill()
    server.process.wait()
    again = Server(volume.root, port=server.port, supervisor_pid=os.getpid())
    try:
        wait_until(again.alive, "the next one listens")
    finally:
        again.kill()


def test_it_ends_with_its_supervisor(volume: Volume) -> None:
    parent = subprocess.Popen(["sleep", "600"])
    orphan = Server(volume.root, supervisor_pid=parent.pid)  # its parent is this process, not the supervisor
    try:
        assert orphan.process.wait(60) == 0
    finally:
        parent.kill()
        parent.wait()
        orphan.kill()


def test_a_volume_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    root = tmp_path / "later"
    early = Server(root)
    try:
        wait_until(early.alive, "the api answers")
        assert early.get("/api/business/metrics")["status"]["state"] == "unavailable"
        root.mkdir()
        volume = Volume(root)
        volume.prepare()
        scorer = Scorer(volume)
        scorer.score(100)
        scorer.fold()
        wait_until(lambda: early.get("/api/business/metrics")["transactions_analyzed"] == 100, "the ledger is read")
    finally:
        early.kill()


def test_live_messages_come_each_second_with_what_was_asked_for(server: Server) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/ws/metrics?include=business,model_details,nonsense") as socket:
        messages = [json.loads(socket.recv(timeout=30)) for _ in range(3)]
    for message in messages:
        schemas.LiveMessage.model_validate(message, strict=True)
        assert message["business"]["transactions_analyzed"] == 2000
        assert "dashboard" not in message
    assert len({message["timestamp"] for message in messages}) >= 2


def test_two_thousand_bytes_a_client_and_one_computation(server: Server) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/ws/metrics") as socket:
        text = socket.recv(timeout=30)
    assert len(text) < 3_000
    schemas.LiveMessage.model_validate_json(text, strict=True)


def test_rows_are_taken_by_a_forked_worker(server: Server, volume: Volume) -> None:
    """Libraries with thread pools, such as polars, hang in a child if they were used before the fork."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/api/transactions",
        data=json.dumps(rows(100)).encode(),
        headers={"Content-Type": "application/json", "Authorization": "Bearer secret"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 202
        segment = json.load(answer)["segment"]
    assert [path.name for path in volume.raw_ready(0).glob("*-h*")] == ["e0001-h00-p00-000000000001.arrow"]
    assert segment == "e0001-h00-000000000001"
