"""The api under load beside a pipeline at 100,000 rows/s, and ingest over HTTP; prints one JSON object.

``python -m bench.api [seconds]``: 500 requests/s on /api/business/metrics, 1,000 WebSocket clients. Load and pipeline
share this machine's cores, so on a small one the generator of the load is part of what is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

RATE = "100000"
REQUESTS_PER_S = 500
CONNECTIONS = 20
CLIENTS = 1_000
INGEST_ROWS = 5_000
WARM_SECONDS = 240.0
ROW = {
    "trans_date_trans_time": "2019-01-07 13:04:44", "cc_num": "4599735407877245", "merchant": "Medhurst Inc",
    "category": "home", "amt": 83.03, "first": "Mary", "last": "Myers", "state": "TN", "lat": 36.3846, "long": -89.4649,
    "city_pop": 5577, "dob": "1964-12-30", "trans_num": "", "merch_lat": 37.322676, "merch_long": -89.220738,
}  # fmt: skip


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    with tempfile.TemporaryDirectory(prefix="spearhead-api-") as folder:
        port = free_port()
        environment = os.environ | {"API_TOKEN": "bench"}
        command = [sys.executable, "-m", "spearhead", "up", "--volume", str(Path(folder) / "v"), "--rate", RATE]
        with (Path(folder) / "log").open("wb") as log:
            up = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=log, stderr=log)
        try:
            wait_for_model(port)
            print(json.dumps(asyncio.run(measure(port, seconds)), indent=1))
        finally:
            up.terminate()
            up.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return json.load(answer)


def wait_for_model(port: int) -> None:
    """Until the backlog of the time before the first model is scored."""
    until = time.monotonic() + WARM_SECONDS
    while time.monotonic() < until:
        try:
            dashboard = get(port, "/api/dashboard")
        except OSError:
            dashboard = None
        if (
            dashboard
            and dashboard["model"]["version"]
            and sum(list(dashboard["queue_backlogs"].values())[:2]) < 100_000
        ):
            return
        time.sleep(1)
    raise SystemExit("no model scored the backlog in time")


async def measure(port: int, seconds: float) -> dict[str, Any]:
    alone = await throughput(port, seconds)
    loading = asyncio.create_task(load(port, seconds + 5))
    await asyncio.sleep(5)  # until every client is connected
    beside = await throughput(port, seconds)
    latencies, messages = await loading
    ranked = sorted(latencies)
    return {
        "tx_per_s_alone": round(alone),
        "tx_per_s_under_load": round(beside),
        "loss_percent": round((1 - beside / alone) * 100, 1),
        "requests_per_s": round(len(ranked) / (seconds + 5)),
        "request_ms": {name: round(ranked[int(len(ranked) * q)] * 1e3, 2) for name, q in (("p50", 0.5), ("p99", 0.99))},
        "websocket_messages_per_s": round(messages / (seconds + 5)),
        "ingest_rows_per_s": round(await ingest(port, seconds / 2)),
        "cores": os.cpu_count(),
    }


async def throughput(port: int, seconds: float) -> float:
    """Transactions counted a second, over ``seconds``."""
    first, began = await asyncio.to_thread(get, port, "/api/business/metrics"), time.monotonic()
    await asyncio.sleep(seconds)
    last, ended = await asyncio.to_thread(get, port, "/api/business/metrics"), time.monotonic()
    return float((last["transactions_analyzed"] - first["transactions_analyzed"]) / (ended - began))


async def load(port: int, seconds: float) -> tuple[list[float], int]:
    until = time.monotonic() + seconds
    latencies: list[float] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as listeners:  # they must not delay the requests here
        counting = asyncio.get_running_loop().run_in_executor(listeners, listen_all, port, seconds)
        await asyncio.gather(*(ask(port, until, latencies) for _ in range(CONNECTIONS)))
        return latencies, await counting


def listen_all(port: int, seconds: float) -> int:
    """Messages that CLIENTS get in ``seconds``."""

    async def everybody() -> int:
        until = time.monotonic() + seconds
        return sum(await asyncio.gather(*(listen(port, until) for _ in range(CLIENTS))))

    return asyncio.run(everybody())


async def ask(port: int, until: float, latencies: list[float]) -> None:
    """One connection's share of the requests, evenly spaced."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due = time.monotonic()
    while due < until:
        due += CONNECTIONS / REQUESTS_PER_S
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        began = time.monotonic()
        writer.write(b"GET /api/business/metrics HTTP/1.1\r\nHost: bench\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        latencies.append(time.monotonic() - began)
    writer.close()


async def listen(port: int, until: float) -> int:
    messages = 0
    async with connect(f"ws://127.0.0.1:{port}/ws/metrics", compression=None, open_timeout=60) as socket_:
        while (left := until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    await socket_.recv()
            except TimeoutError:
                break
            messages += 1
    return messages


async def ingest(port: int, seconds: float) -> float:
    """Rows a second that two senders get a 202 for."""
    until = time.monotonic() + seconds
    began = time.monotonic()

    def send(sender: int) -> int:
        rows = 0
        while time.monotonic() < until:
            body = json.dumps([ROW | {"trans_num": f"s{sender}-{rows + i}"} for i in range(INGEST_ROWS)]).encode()
            headers = {"Content-Type": "application/json", "Authorization": "Bearer bench"}
            request = urllib.request.Request(f"http://127.0.0.1:{port}/api/transactions", body, headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                rows += json.load(answer)["accepted"]
        return rows

    sent = await asyncio.gather(*(asyncio.to_thread(send, sender) for sender in range(2)))
    return sum(sent) / (time.monotonic() - began)


if __name__ == "__main__":
    main()
