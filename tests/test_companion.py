"""Companions: columns that features leave to a hard link of their raw segment come through, whoever is killed when."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from spearhead.companion import companion, read_features
from spearhead.files import Files
from spearhead.hop import Hop
from spearhead.producer import Producer
from spearhead.segment import SegmentError, read_segment
from spearhead.volume import Volume
from tests.faulting import Crash, FaultingFiles
from tests.segments import FORBIDDEN_CENTS, Chain, drain, publish, raw_batch, volume_at
from tests.test_hop import Alive, segment_name, work
from tests.test_partition import open_log

SIZES = (5, 0, 8, 4)
TOTAL = sum(SIZES)


def companions(volume: Volume) -> list[str]:
    return sorted(os.listdir(volume.companions))


def prepared(root: Path) -> Volume:
    """A volume whose features wait, made by prep; its raw segments are gone, as after a checkpoint."""
    volume = volume_at(root)
    publish(volume, SIZES)
    drain(open_log(volume))
    for path in volume.raw_ready(0).glob("*.arrow"):
        path.unlink()
    return volume


def scored(volume: Volume) -> list[dict[str, object]]:
    """Rows of all results, in order."""
    names = [segment_name(seq) for seq in range(1, len(SIZES) + 1)]
    return [row for name in names for row in read_segment(volume.result_file(name))[0].to_pylist()]


def expected() -> list[dict[str, object]]:
    return Chain().apply(raw_batch(0, TOTAL)).features.to_pylist()


def test_features_hold_only_what_is_new_and_give_all_without_the_raw_segment(tmp_path: Path) -> None:
    volume = prepared(tmp_path)
    path = volume.features / "ready" / f"{segment_name(1)}.arrow"
    assert read_segment(path)[0].schema.names == ["link"]
    batch, info = read_features(volume, path)
    assert batch.to_pylist() == expected()[:5]
    assert info.shared == ()


def test_a_segment_with_refused_rows_holds_all_columns(tmp_path: Path) -> None:
    volume = volume_at(tmp_path)
    batch = raw_batch(0, 4, cents=[100, FORBIDDEN_CENTS, 200, 300])
    source = Producer(volume, "g00", 1, "feeder")
    source.resume()
    source.publish(batch, cursor="4", watermark=4)
    drain(open_log(volume))
    own, info = read_segment(volume.features / "ready" / f"{segment_name(1)}.arrow")
    assert own.schema.names == ["trans_num", "card", "link"]
    assert (own.num_rows, info.shared, companions(volume)) == (3, (), [])


@pytest.mark.parametrize("mode", ["before", "torn", "reply lost"])
def test_inference_killed_at_any_call_leaves_no_companion_and_loses_no_column(tmp_path: Path, mode: str) -> None:
    template = tmp_path / "template"
    prepared(template)
    shutil.copytree(template, tmp_path / "calls")
    files = FaultingFiles()
    work(Volume(tmp_path / "calls", files), "first", Alive("first"))
    assert files.calls > 60
    for crash_at in range(1, files.calls + 1):
        root = tmp_path / "v"
        shutil.copytree(template, root)
        with suppress(Crash, FileNotFoundError):
            work(Volume(root, FaultingFiles(crash_at, mode)), "first", Alive("first"))  # type: ignore[arg-type]
        volume = Volume(root, Files(fsync=False))
        work(volume, "last", Alive("last"))
        assert scored(volume) == expected(), f"killed at call {crash_at}"
        assert companions(volume) == [], f"killed at call {crash_at}"
        assert os.listdir(volume.features / "dead") == []
        shutil.rmtree(root)


def test_prep_killed_at_any_call_publishes_each_companion_before_its_features(tmp_path: Path) -> None:
    template = tmp_path / "template"
    publish(volume_at(template), SIZES)
    shutil.copytree(template, tmp_path / "calls")
    files = FaultingFiles()
    drain(open_log(Volume(tmp_path / "calls", files)), checkpoint_each=1)
    for crash_at in range(1, files.calls + 1):
        root = tmp_path / "v"
        shutil.copytree(template, root)
        with suppress(Crash):
            drain(open_log(Volume(root, FaultingFiles(crash_at))), checkpoint_each=1)
        volume = Volume(root, Files(fsync=False))
        waiting = set(os.listdir(volume.features / "ready"))
        assert waiting <= set(companions(volume)), f"killed at call {crash_at}"
        drain(open_log(volume, "next"))
        work(volume, "last", Alive("last"))
        assert scored(volume) == expected(), f"killed at call {crash_at}"
        assert companions(volume) == [], f"killed at call {crash_at}"
        shutil.rmtree(root)


def test_companions_are_durable_before_their_features_are_visible(tmp_path: Path) -> None:
    """Else a power cut may keep the features and lose what they need."""
    files = FaultingFiles()
    volume = volume_at(tmp_path, files)
    publish(volume, (5, 8))
    log = open_log(volume)
    del files.log[:]
    while log.step():
        pass
    unsynced: set[str] = set()
    seen = 0
    for call, path in files.log:
        if (call, path) == ("fsync", volume.companions):
            unsynced.clear()
        elif call == "rename" and path.parent == volume.companions:
            unsynced.add(path.name)
        elif call == "rename" and path.parent == volume.features / "ready":
            assert path.name not in unsynced
            seen += 1
    assert seen == 2


def test_a_companion_that_a_power_cut_brought_back_is_removed_and_one_that_waits_is_not(tmp_path: Path) -> None:
    volume = prepared(tmp_path)
    first = companion(volume, segment_name(1))
    kept = first.read_bytes()
    hop = Hop(volume, "w", Alive("w"))
    claims = hop.claim(1)
    hop.recover()
    assert first.exists(), "claimed: still to be read by whoever takes it back"
    hop.release(claims)
    work(volume, "w2", Alive("w", "w2"))
    first.write_bytes(kept)
    hop.recover()
    assert companions(volume) == []


def test_a_segment_whose_companion_is_gone_is_set_aside_and_says_so(tmp_path: Path) -> None:
    volume = prepared(tmp_path)
    lost = segment_name(3)
    companion(volume, lost).unlink()
    with pytest.raises(SegmentError, match="companion"):
        read_features(volume, volume.features / "ready" / f"{lost}.arrow")
    work(volume, "w", Alive("w"))
    assert "companion" in (volume.features / "dead" / f"{lost}.reason.json").read_text()
    assert volume.result_file(segment_name(4)).exists()
    assert companions(volume) == []


def test_a_reset_removes_companions_of_before(tmp_path: Path) -> None:
    volume = prepared(tmp_path)
    assert len(companions(volume)) == len(SIZES)
    volume.raise_epoch()
    Hop(volume, "w", Alive("w")).recover()
    assert companions(volume) == []
