"""``/ws/metrics``: one computation a tick for all clients of a process; a slow client is dropped, not waited for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from services.api.answers import Answers

TICK_SECONDS: Final = 1.0
CHUNK: Final = 20  # clients served without a break
WAITING: Final = 3  # messages that a client may be behind before it is dropped
SECTIONS: Final = ("business", "dashboard", "pressure", "model_details")
TOO_SLOW: Final = 1013  # "try again later"


class Client:
    """One connection: what it wants, and the messages it has not taken yet."""

    def __init__(self, sections: frozenset[str]) -> None:
        self.sections = sections
        self.queue: asyncio.Queue[str | None] = asyncio.Queue(WAITING)

    def offer(self, text: str) -> bool:
        """Whether there was room."""
        try:
            self.queue.put_nowait(text)
        except asyncio.QueueFull:
            return False
        return True

    def end(self) -> None:
        """Close the connection, whatever waits."""
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(None)


class Hub:
    """All clients of this process."""

    def __init__(self, answers: Callable[[], Answers], tick: float = TICK_SECONDS) -> None:
        self._answers = answers
        self._tick = tick
        self._clients: set[Client] = set()
        self._sending: dict[Client, asyncio.Task[None]] = {}
        self.dropped = 0

    async def run(self) -> None:
        """Send a message a tick, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self._tick, loop.time())
            await asyncio.sleep(due - loop.time())
            await self.broadcast()

    async def broadcast(self) -> None:
        """One message, made once for each set of sections that somebody wants.

        Requests get their turn between a few clients and the next.
        """
        made: dict[frozenset[str], str] = {}
        answers = self._answers()
        for number, client in enumerate(list(self._clients), start=1):
            if number % CHUNK == 0:
                await asyncio.sleep(0)
            if client not in self._clients:  # it left meanwhile
                continue
            text = made.get(client.sections)
            if text is None:
                text = made[client.sections] = _compose(answers, client.sections)
            if not client.offer(text):
                self._drop(client)

    async def serve(self, socket: WebSocket, sections: Iterable[str]) -> None:
        """Talk to one client until it leaves or is dropped. It gets a message at once, then one a tick."""
        await socket.accept()
        client = Client(frozenset(sections))
        client.offer(_compose(self._answers(), client.sections))
        sending = asyncio.create_task(_send(socket, client))
        listening = asyncio.create_task(_listen(socket))
        self._clients.add(client)
        self._sending[client] = sending
        try:
            await asyncio.wait({sending, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._clients.discard(client)
            del self._sending[client]
            for task in (sending, listening):
                task.cancel()
            await asyncio.gather(sending, listening, return_exceptions=True)

    def close(self) -> None:
        """Let every client go."""
        for client in list(self._clients):
            client.end()

    def _drop(self, client: Client) -> None:
        """A send that hangs can't say goodbye: it is cancelled, and the server closes the connection."""
        self.dropped += 1
        self._clients.discard(client)
        self._sending[client].cancel()


async def _send(socket: WebSocket, client: Client) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):  # it left: so do we
        while (text := await client.queue.get()) is not None:
            await socket.send_text(text)
        await socket.close(TOO_SLOW)


async def _listen(socket: WebSocket) -> None:
    """Until the client leaves; what it says is of no interest."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while True:
            await socket.receive()


def _compose(answers: Answers, sections: frozenset[str]) -> str:
    """The common message, and under their names the answers that the client wants, serialised once a snapshot."""
    base = answers.bytes("message")
    for section in SECTIONS:
        if section in sections:
            base = base[:-1] + b',"%s":%s}' % (section.encode(), answers.bytes(section))
    return base.decode()
