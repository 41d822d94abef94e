"""A volume that can't be used as it is set up is refused with a sentence that says so."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from spearhead.segment import SegmentName
from spearhead.volume import Volume, VolumeError


def publish(volume: Volume, *names: tuple[int, str, int, int]) -> None:
    """Empty files under the names (epoch, producer, partition, number): only names are looked at."""
    for name in names:
        folder = volume.raw_ready(name[2])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SegmentName(*name).file).touch()


def test_an_unknown_format_is_refused(volume: Volume) -> None:
    (volume.control / "format").write_text("1\n")
    with pytest.raises(VolumeError, match=r"format '1', this version reads 5: see docs/OPERATIONS.md, Upgrade"):
        volume.prepare()
    assert (volume.control / "format").read_text() == "1\n"


@pytest.mark.parametrize(
    ("published", "partitions", "refused"),
    [
        ([], 4, False),
        ([(1, "g00", 0, 5), (1, "g00", 1, 5)], 2, False),
        ([(1, "g00", 0, 5), (1, "g00", 1, 4)], 2, False),  # a flush cut short
        ([(1, "g00", 0, 1)], 2, False),  # the very first flush cut short
        ([(1, "g00", 0, 2)], 2, True),
        ([(1, "g00", 0, 5), (1, "g00", 1, 5)], 1, True),
        ([(1, "g00", 0, 5), (1, "g00", 1, 5)], 3, True),
        ([(1, "g00", 0, 1), (1, "g00", 1, 1), (1, "g01", 0, 1)], 2, False),  # a second producer that just began
    ],
)
def test_another_partition_count_is_refused(
    volume: Volume, published: Sequence[tuple[int, str, int, int]], partitions: int, refused: bool
) -> None:
    publish(volume, *published)
    if not refused:
        volume.prepare(partitions)
        return
    with pytest.raises(VolumeError, match=f"PARTITIONS says {partitions}: set it back"):
        volume.prepare(partitions)


def test_after_a_reset_any_partition_count_is_taken(volume: Volume) -> None:
    publish(volume, (1, "g00", 0, 9))
    volume.raise_epoch()
    volume.prepare(4)
    assert volume.raw_ready(3).is_dir()
