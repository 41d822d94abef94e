"""The hub behind ``/ws/metrics``: one computation a tick, slow clients dropped, others not held up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.websockets import WebSocketDisconnect

from services.api.live import WAITING, Hub


class Answers:
    def __init__(self) -> None:
        self.made = 0

    def bytes(self, name: str) -> bytes:
        self.made += 1
        return b'{"n":%d}' % self.made


class Socket:
    """A client that takes messages at once, or hangs after ``takes`` of them."""

    def __init__(self, takes: int | None = None) -> None:
        self.takes = takes
        self.got: list[str] = []
        self.gone = asyncio.Event()
        self.closed: int | None = None

    async def accept(self) -> None: ...

    async def send_text(self, text: str) -> None:
        if self.takes is not None and len(self.got) >= self.takes:
            await asyncio.Event().wait()
        self.got.append(text)

    async def receive(self) -> Any:
        await self.gone.wait()
        raise WebSocketDisconnect(1001)

    async def close(self, code: int) -> None:
        self.closed = code


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


def test_a_slow_client_is_dropped_and_the_others_get_everything() -> None:
    async def scenario() -> None:
        answers = Answers()
        hub = Hub(lambda: answers)
        fast, slow = Socket(), Socket(takes=1)
        serving = {
            name: asyncio.create_task(hub.serve(socket, ())) for name, socket in (("fast", fast), ("slow", slow))
        }
        await until(lambda: len(fast.got) == len(slow.got) == 1)
        for tick in range(WAITING + 5):
            await hub.broadcast()
            await until(lambda tick=tick: len(fast.got) == tick + 2)
        await until(serving["slow"].done)
        assert hub.dropped == 1
        assert len(slow.got) == 1
        assert not serving["fast"].done()
        fast.gone.set()
        await serving["fast"]

    asyncio.run(scenario())


def test_a_tick_is_computed_once_for_all_clients() -> None:
    async def scenario() -> None:
        answers = Answers()
        hub = Hub(lambda: answers)
        sockets = [Socket() for _ in range(100)]
        serving = [asyncio.create_task(hub.serve(socket, ())) for socket in sockets]
        await until(lambda: all(len(socket.got) == 1 for socket in sockets))
        before = answers.made
        await hub.broadcast()
        await until(lambda: all(len(socket.got) == 2 for socket in sockets))
        assert answers.made == before + 1
        assert len({socket.got[1] for socket in sockets}) == 1
        for socket in sockets:
            socket.gone.set()
        await asyncio.gather(*serving)

    asyncio.run(scenario())


def test_closing_lets_every_client_go() -> None:
    async def scenario() -> None:
        hub = Hub(Answers)
        sockets = [Socket() for _ in range(3)]
        serving = [asyncio.create_task(hub.serve(socket, ())) for socket in sockets]
        await until(lambda: all(socket.got for socket in sockets))
        hub.close()
        await asyncio.wait_for(asyncio.gather(*serving), 30)
        assert [socket.closed for socket in sockets] == [1013] * 3

    asyncio.run(scenario())
