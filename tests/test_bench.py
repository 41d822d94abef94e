"""The benchmark itself: what it prints is there, true to the volume, and no worse than a wide margin allows."""

import os
import subprocess
import sys

import msgspec
import pytest

HEADLINE = ["tx_per_s", "floor_tx_per_s", "ratio", "p99_ms_at_100k"]
# Seven runs on two cores: 0.49, 0.50, 0.53 and 0.56 beside some work, 0.44, 0.82 and 0.86 beside busy cores, which
# mostly slow the pinned floor more than the pipeline. A disk that others slow does the opposite: hence half the usual.
LEAST_RATIO = 0.25
CORES = 2  # the floor grows with every core, one replica of each stage does not


@pytest.mark.soak
def test_the_pipeline_keeps_its_share_of_the_floor() -> None:
    """A ratio of two figures of one run, so that a slow machine is no failure and a slow pipeline is one."""
    command = [
        sys.executable,
        "-m",
        "spearhead",
        "bench",
        "--json",
        "--seconds",
        "8",
        "--windows",
        "3",
        "--warm-up",
        "8",
    ]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:CORES])  # processes that are started from here inherit it
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        os.sched_setaffinity(0, cores)
    figures = msgspec.json.decode(done.stdout)
    assert list(figures)[:4] == HEADLINE
    assert figures["ratio"] == pytest.approx(figures["tx_per_s"] / figures["floor_tx_per_s"], abs=0.001)
    assert figures["verify_at_max"]["ok"]
    assert figures["verify_at_100k"]["ok"]
    assert figures["clean_exit"]
    assert set(figures["stages_at_max"]) == {"generator", "prep", "train", "inference", "api", "supervisor"}
    assert figures["fsyncs_per_s"] > 0
    assert 100 < figures["bytes_written_per_row"] < 1000
    assert figures["ratio"] > LEAST_RATIO, figures


def test_bench_needs_a_checkout(tmp_path) -> None:
    """Installed without the folder bench/ it says so in a line."""
    program = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'bench' else f(n, *a); "
    )
    program += "import sys; sys.argv = ['spearhead', 'bench']; from spearhead.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "checkout" in done.stderr
