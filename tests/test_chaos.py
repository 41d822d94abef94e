"""Stages are killed and frozen while a finite run goes on: every row comes out once, with the score it should have."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from processes import Up, command, scores, stage, verified, wait_until

from spearhead.control import Control, write_control
from spearhead.files import Files
from spearhead.heartbeat import Heartbeat
from spearhead.ledger import read_ledger
from spearhead.volume import Volume

Start = Callable[..., Up]
ROWS = int(os.environ.get("CHAOS_ROWS", "30000"))
SETTINGS = {
    "CARDS": 2_000, "MERCHANTS": 200, "SEGMENT_ROWS": 500, "CHECKPOINT_SECONDS": 0.5,
    "LEASE_SECONDS": 1.5, "HEARTBEAT_SECONDS": 0.2, "SEED": 7, "ROWS": ROWS,
}  # fmt: skip


def run(root: Path, *options: str, **settings: object) -> None:
    """A finite run to its end."""
    pipeline = Up(root, "--once", "--no-api", *options, **(SETTINGS | settings))
    try:
        assert pipeline.wait() == 0, pipeline.output
    finally:
        pipeline.kill()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, trained by the product."""
    root = tmp_path_factory.mktemp("model") / "volume"
    run(root, "--rate", "max", ROWS=30_000, TRAIN_FIRST_ROWS=5_000, FSYNC="false", SEGMENT_ROWS=65_536)
    return root / "models"


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """What the results are when nothing happens, and segments are cut otherwise."""
    root = tmp_path_factory.mktemp("undisturbed") / "volume"
    run(root, "--rate", "max", "--no-train", "--model", str(model), FSYNC="false", SEGMENT_ROWS=65_536)
    return scores(root)


def finite(up: Start, model: Path, *options: str, rate: int = 5_000, **settings: object) -> Up:
    """The same run, slow enough to be disturbed."""
    options = ("--once", "--no-api", "--no-train", "--model", str(model), "--rate", str(rate), *options)
    return up(*options, **(SETTINGS | settings))


def proven(pipeline: Up, undisturbed: pl.DataFrame) -> None:
    """The run ended by itself, lost and doubled nothing, and scored every row as the undisturbed one did."""
    assert pipeline.wait() == 0, pipeline.output
    report = verified(pipeline.root)
    assert report["ok"], report
    assert (report["published"], report["ledger"], report["result_rows"]) == (ROWS, ROWS, ROWS), report
    assert (report["dead"], report["waiting"], report["pruned"]) == (0, 0, 0), report
    assert_frame_equal(scores(pipeline.root), undisturbed, check_exact=True)


def heartbeats(root: Path, name: str) -> list[Heartbeat]:
    found = []
    for path in (root / "metrics" / "workers").glob(f"{name}-*.json"):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Heartbeat))
        except FileNotFoundError:
            continue
    return found


def working(pipeline: Up, name: str) -> None:
    """Wait until a stage has done rows."""
    wait_until(lambda: any(beat.rows for beat in heartbeats(pipeline.root, name)), f"rows of {name}\n{pipeline.output}")


def test_every_stage_is_killed_again_and_again(up: Start, model: Path, undisturbed: pl.DataFrame) -> None:
    pipeline = finite(up, model, "--inference", "2", rate=2_000)
    kills = 0
    for name in itertools.cycle(("generator", "prep", "inference")):
        if pipeline.process.poll() is not None:
            break
        for pid in pipeline.stages(name)[:1]:
            os.kill(pid, signal.SIGKILL)
            kills += 1
        if kills >= 24:
            break
        time.sleep(0.5)  # the beat of the murders, not something that is waited for
    assert kills > 5
    proven(pipeline, undisturbed)


def test_a_killed_supervisor_is_followed_by_another(up: Start, model: Path, undisturbed: pl.DataFrame) -> None:
    first = finite(up, model)
    working(first, "inference")
    first.process.kill()
    first.process.wait()
    second = finite(up, model)
    proven(second, undisturbed)


@pytest.fixture
def extra() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts stage processes beside ``up``; ends them."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, root: Path, **settings: object) -> subprocess.Popen[bytes]:
        started.append(stage(name, root, **(SETTINGS | settings)))
        return started[-1]

    yield start
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["generator", "prep", "inference"])
def test_a_worker_thought_dead_wakes_up(
    up: Start, extra: Callable[..., subprocess.Popen[bytes]], model: Path, undisturbed: pl.DataFrame, name: str
) -> None:
    pipeline = finite(up, model)
    working(pipeline, name)
    frozen = pipeline.stages(name)[0]
    extra(name, pipeline.root, GENERATION_RATE=5_000)
    wait_until(lambda: len(heartbeats(pipeline.root, name)) > 1, f"a second {name}")
    for _ in range(2):
        tell(frozen, signal.SIGSTOP)
        done = sum(beat.rows for beat in heartbeats(pipeline.root, name))
        wait_until(
            lambda before=done: (
                sum(beat.rows for beat in heartbeats(pipeline.root, name)) > before or all_counted(pipeline.root)
            ),
            f"work of the other {name}",
        )
        tell(frozen, signal.SIGCONT)
    proven(pipeline, undisturbed)


def all_counted(root: Path) -> bool:
    """Whether nothing is left to do: what is frozen then is not waited for, and must not hold up the end of the run."""
    ledger = read_ledger(Volume(root))
    return ledger is not None and ledger.transactions_analyzed == ROWS


def tell(pid: int, signum: signal.Signals) -> None:
    """Signal a stage, unless the run has ended meanwhile, without it, and taken it along."""
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def test_a_stage_added_and_one_removed(
    up: Start, extra: Callable[..., subprocess.Popen[bytes]], model: Path, undisturbed: pl.DataFrame
) -> None:
    pipeline = finite(up, model, "--inference", "3", "--prep", "2")
    working(pipeline, "inference")
    added = [extra(name, pipeline.root, WORKER_ID=f"added{name}") for name in ("prep", "inference")]
    for name in ("prep", "inference"):  # a worker that beats has its signal handlers in place
        beat = pipeline.root / "metrics" / "workers" / f"{name}-added{name}.json"
        wait_until(beat.exists, f"a heartbeat of the added {name}")
    for process in added:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    proven(pipeline, undisturbed)


def test_two_partitions_lose_nothing(up: Start, model: Path) -> None:
    """Merchant history differs with two partitions, so scores may; rows may not, and no companion is left."""
    pipeline = finite(up, model, "--prep", "2", "--inference", "3", rate=4_000, PARTITIONS=2)
    working(pipeline, "inference")
    kills = 0
    for name in itertools.cycle(("prep", "inference", "generator", "inference")):
        if pipeline.process.poll() is not None or kills >= 24:
            break
        for pid in pipeline.stages(name)[-2 if kills % 3 == 0 else -1 :]:
            os.kill(pid, signal.SIGKILL)
            kills += 1
        time.sleep(0.4)  # the beat of the murders, not something that is waited for
    assert kills > 5
    assert pipeline.wait() == 0, pipeline.output
    report = verified(pipeline.root)
    assert report["ok"], report
    assert (report["ledger"], report["dead"]) == (ROWS, 0), report
    assert os.listdir(Volume(pipeline.root).companions) == []


def test_a_reset_under_load_leaves_nothing_of_before(up: Start, model: Path, undisturbed: pl.DataFrame) -> None:
    pipeline = finite(up, model)
    working(pipeline, "inference")
    assert command("reset", "--volume", str(pipeline.root)).returncode == 0
    proven(pipeline, undisturbed)
    names = [path.name for path in (pipeline.root / "queue").rglob("*.arrow")]
    assert names
    assert all(name.startswith("e0002-") for name in names)


def test_a_pause_loses_nothing(up: Start, model: Path, undisturbed: pl.DataFrame) -> None:
    pipeline = finite(up, model)
    working(pipeline, "inference")
    volume = Volume(pipeline.root, Files(fsync=False))
    write_control(volume, Control(running=False))
    names = ("generator", "prep", "inference")
    wait_until(lambda: all(b.state == "paused" for n in names for b in heartbeats(pipeline.root, n)), "the pause")
    write_control(volume, Control(running=True))
    proven(pipeline, undisturbed)
