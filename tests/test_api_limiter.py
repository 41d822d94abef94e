"""Look-ups take their turn: few at once, few in line, and nobody else waits for them."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from ledgers import Scorer
from processes import wait_until
from sparkov import row
from test_api import Api

from services.api import lookups
from services.api.context import LOOKUPS, LOOKUPS_WAITING
from services.api.explainer import Explainer
from services.api.limiter import Limiter, SaturatedError, Stopped
from spearhead.volume import Volume


async def stays() -> bool:
    return False


def test_few_run_few_wait_and_the_others_are_refused() -> None:
    let_go = threading.Event()
    running: list[int] = []

    def work(_: Stopped) -> int:
        running.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        let_go.wait()
        return len(running)

    async def main() -> None:
        limiter = Limiter(2, 3)
        tasks = [asyncio.create_task(limiter.run(work, stays)) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(SaturatedError):
            await limiter.run(work, stays)
        while len(running) < 2:
            await asyncio.sleep(0.001)
        assert not any(task.done() for task in tasks)
        let_go.set()
        assert len(await asyncio.gather(*tasks)) == 5
        assert await limiter.run(work, stays) == 6  # there is room again
        limiter.close()

    asyncio.run(main())
    assert min(running) >= 10  # they yield to whoever else wants the processor
    assert os.getpriority(os.PRIO_PROCESS, 0) < 10


@pytest.mark.parametrize("why", ["gone", "closed"])
def test_work_ends_when_nobody_waits_for_it(why: str) -> None:
    begun = threading.Event()

    def work(stopped: Stopped) -> str:
        begun.set()
        wait_until(stopped, "it is told to end", 30)
        return "ended"

    async def left() -> bool:
        return why == "gone"

    async def main() -> None:
        limiter = Limiter(1, 0)
        task = asyncio.create_task(limiter.run(work, left))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        if why == "closed":
            limiter.close()
        assert await task == "ended"
        limiter.close()

    asyncio.run(main())


def test_what_raises_frees_its_place() -> None:
    def work(_: Stopped) -> None:
        raise OSError("the volume is away")

    async def main() -> None:
        limiter = Limiter(1, 0)
        for _ in range(3):
            with pytest.raises(OSError, match="away"):
                await limiter.run(work, stays)
        limiter.close()

    asyncio.run(main())


def test_a_search_ends_at_the_next_file(volume: Volume) -> None:
    scorer = Scorer(volume)
    for _ in range(3):
        scorer.score(10)
    looked: list[bool] = []

    def stopped() -> bool:
        looked.append(True)
        return len(looked) == 3

    with pytest.raises(lookups.StoppedError):
        lookups.find(volume, 1, "unknown", Explainer(volume, lambda: None), stopped)
    assert len(looked) == 3


def test_all_else_is_answered_while_look_ups_take_long(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    real = lookups.find

    def slow(*arguments: object) -> object:
        let_go.wait()
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(lookups, "find", slow)
    Scorer(volume).score(50)
    api = Api(volume, api_token="secret")
    with api.client, ThreadPoolExecutor(LOOKUPS + LOOKUPS_WAITING) as senders:
        path = f"/api/transactions/{7:032x}"
        asked = [senders.submit(api.client.get, path) for _ in range(LOOKUPS + LOOKUPS_WAITING)]
        limiter = api.app.state.context.lookups
        wait_until(lambda: limiter._inside == LOOKUPS + LOOKUPS_WAITING, "all places are taken", 60)
        refused = api.client.get(path)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert api.get("/api/business/metrics")["status"]
        sent = api.client.post("/api/transactions", json=[row()], headers={"Authorization": "Bearer secret"})
        assert sent.status_code == 202
        let_go.set()
        assert {one.result().status_code for one in asked} == {200}
        assert api.client.get(path).status_code == 200
