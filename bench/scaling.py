"""The scaling model: fitted to the figures of ``bench.full``, laid beside them, and asked about larger machines.

CPU of a stage = ns a row × rows + ms a segment × segments + us a reason × reasons + what it takes when idle; and a row
costs more the larger its segment, as less of that stays in the processor's cache. Flat out, four things limit the rate:
the one chain of prep and of each inference replica (CPU and waiting for the disk, a segment at a time; prep computes
one ahead), the machine's cores, and the volume's bandwidth. They get into each other's way: times add up by a norm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

STAGES: Final = ("generator", "prep", "inference", "api", "supervisor")
CHAINS: Final = ("prep", "inference")
SAME: Final = {"cards": 50_000, "training": False, "history": True, "fsync": True, "reasons": True}
FLUSH_SECONDS: Final = 0.1
READY_CRITICAL: Final = 500_000  # rows in features-ready, claimed or not, from which on prep pauses
REASONS_PER_S: Final = 500.0  # the product's budget; half a second of it may be spent at once
BURST: Final = 250.0
LIMIT: Final = 0.15  # the error that the model is meant to keep to
OTHER: Final = 0.3  # cores; the benchmark itself and the kernel's writing take some of that
CORES: Final = (16, 64, 256)
SPARE: Final = 0.7  # of the cores, to leave room for bursts and catching up
LEDGER_SECONDS: Final = 0.28e-3  # a segment, one after the other (docs/decisions/0002-ledger.md)
FREE: Final = 1.5  # times what was written: a bound above that is none
PACED_WEIGHT: Final = 3.0  # flat out, stages that wait for a core take more for the same
LARGE_SEGMENT: Final = 1_048_576
BUSY: Final = "**Provisional**: other work shared the machine while these figures were taken, now more, now less."
VOLUMES: Final = (0.4, 1.0, 4.0, 15.0, 75.0)  # GB/s written: a local disk, NFS at 10 and 40 Gbit/s, FlashBlades


class Cost(NamedTuple):
    """CPU seconds of one stage: a row, a segment, a reason, a second and process of idling, a row and row beside it."""

    row: float
    segment: float
    reason: float
    idle: float
    beside: float = 0.0

    def cores(self, rows: float, segments: float, reasons: float, processes: float) -> float:
        """CPU in use at these rates a second."""
        row = self.row + (self.beside * rows / segments if segments else 0.0)
        return row * rows + self.segment * segments + self.reason * reasons + self.idle * processes


class Model(NamedTuple):
    costs: dict[str, Cost]
    wait: dict[str, float]  # seconds that a chain waits for the disk a segment
    usable: float  # share of the cores that gets used
    norm: float
    flagged: float  # reasons asked for, a row
    bytes_per_row: float
    fsyncs_per_segment: float
    disk: float  # bytes a second that bound the rate
    written: float  # bytes a second, the most that was seen
    cores: int


class Row(NamedTuple):
    """A measured figure beside the predicted one."""

    name: str
    what: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def fit(document: Mapping[str, Any]) -> Model:
    """The model of a document of ``bench.full``. Raises ValueError if too little of it was measured."""
    points = list(_points(document))
    flat = [(asked, found) for asked, found in points if asked["rate"] == "max"]
    paced = [(asked, found) for asked, found in points if asked["rate"] != "max"]
    if len(flat) < 4 or not paced:
        raise ValueError(f"{len(flat)} flat out and {len(paced)} paced figures are too few to fit a model")
    model = Model(
        costs={stage: _cost(stage, points) for stage in STAGES},
        wait=dict.fromkeys(CHAINS, 0.0), usable=1.0, norm=4.0,
        flagged=float(np.median([found["reasons_per_s"] / found["tx_per_s"] for _, found in paced])),
        bytes_per_row=float(np.median([found["bytes_per_row"] for _, found in flat])),
        fsyncs_per_segment=float(np.median([found["fsyncs_per_s"] / found["segments_per_s"] for _, found in flat])),
        disk=np.inf, written=max(found["tx_per_s"] * found["bytes_per_row"] for _, found in flat),
        cores=document["machine"]["cores"],
    )  # fmt: skip

    def shaped(x: NDArray[np.float64]) -> Model:
        return model._replace(
            wait=dict(zip(CHAINS, x[:2] * 1e-3, strict=True)), usable=x[2], norm=x[3], disk=x[4] * 1e6
        )

    def errors(x: NDArray[np.float64]) -> list[float]:
        return [float(np.log(_flat_out(shaped(x), asked, found) / found["tx_per_s"])) for asked, found in flat]

    # Several processes write at once, and the kernel later: more than one long write gets. What was seen is the least.
    seen = model.written / 1e6
    low, high = [0.0, 0.0, 0.3, 1.5, seen], [200.0, 200.0, 1.0, 20.0, 20 * seen]
    best = least_squares(errors, [5.0, 5.0, 0.8, 4.0, 1.5 * seen], bounds=(low, high), loss="soft_l1", f_scale=0.1)
    return shaped(best.x)


def rate(
    model: Model,
    segment_rows: float,
    inference: int,
    cores: float | None = None,
    prep: int = 1,
    disk: float | None = None,
) -> float:
    """Rows a second flat out."""  # fmt: skip
    cores, disk = cores or model.cores, disk or model.disk
    low, high = 1.0, 1e12
    for _ in range(100):  # by bisection: reasons and idling are a matter of seconds, not of rows
        middle = (low * high) ** 0.5
        if middle * _seconds_per_row(model, middle, segment_rows, inference, prep, cores, disk) < 1:
            low = middle
        else:
            high = middle
    return low


def _flat_out(model: Model, asked: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Rows a second of a measured pipeline, on the cores that other work left to it."""
    left = model.cores - (found["other_cores"] or 0.0)
    return rate(model, asked["segment_rows"], asked["inference"], max(left, 0.1))


def _seconds_per_row(
    model: Model, rows: float, segment_rows: float, inference: int, prep: int, cores: float, disk: float
) -> float:
    segments = rows / segment_rows
    reasons = asked_reasons(model, rows, segments)
    computes, scores = (
        model.costs[stage].cores(rows, segments, reasons, count) / count / rows
        for stage, count in (("prep", prep), ("inference", inference))
    )
    writes = model.wait["prep"] / prep / segment_rows
    chains = [computes + writes, scores + model.wait["inference"] / inference / segment_rows]
    if segment_rows >= READY_CRITICAL:  # prep computes the next segment, but writes it only when this one is scored
        chains = [max(computes, chains[1]) + writes]
    used = total_cores(model, rows, segments, inference, prep)
    times = np.array([*chains, used / (model.usable * cores) / rows, model.bytes_per_row / disk])
    return float(np.sum(times**model.norm) ** (1 / model.norm))


def asked_reasons(model: Model, rows: float, segments: float) -> float:
    """Reasons a second."""
    return min(REASONS_PER_S, BURST * segments, model.flagged * rows)


def total_cores(model: Model, rows: float, segments: float, inference: int = 1, prep: int = 1) -> float:
    """CPU of all stages at a rate."""
    processes = {"inference": inference, "prep": prep}
    reasons = asked_reasons(model, rows, segments)
    return sum(cost.cores(rows, segments, reasons, processes.get(stage, 1)) for stage, cost in model.costs.items())


def compare(document: Mapping[str, Any], model: Model) -> list[Row]:
    """Each figure that the model was fitted to: rows a second flat out, CPU where the rate was set."""
    rows = []
    for asked, found in _points(document):
        name = ", ".join(_words(asked))
        if asked["rate"] == "max":
            rows.append(Row(name, "rows/s", found["tx_per_s"], _flat_out(model, asked, found)))
        else:
            tx = float(asked["rate"])
            segments = max(tx / asked["segment_rows"], min(tx, 1 / FLUSH_SECONDS))
            rows.append(Row(name, "cores", found["cpu_cores"], total_cores(model, tx, segments, asked["inference"])))
    return rows


def _points(document: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Settings and figures of the pipelines that differ in rate, segments, replicas or backlog only."""
    for measured in document["setups"].values():
        asked, found = measured["asked"], measured["figures"]
        if found and found["segments_per_s"] and all(asked[name] == value for name, value in SAME.items()):
            yield asked, found


def quiet(document: Mapping[str, Any]) -> bool:
    """Whether the machine was the benchmark's own: no other work took more than OTHER cores beside most pipelines."""
    other = [found["other_cores"] for _, found in _points(document)]
    return None not in other and float(np.median(other)) <= OTHER


def _words(asked: Mapping[str, Any]) -> list[str]:
    pace = "flat out" if asked["rate"] == "max" else f"{int(asked['rate']):,} rows/s"
    return [pace, f"{asked['segment_rows']:,} rows a segment", f"{asked['inference']} inference",
            f"backlog {asked['backlog']:,}"][: 4 if asked["rate"] == "max" else 1]  # fmt: skip


def _cost(stage: str, points: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Cost:
    """Least squares of relative errors, no coefficient below zero."""
    table, cores, counts = [], [], []
    for asked, found in points:
        used = found["stages"].get(stage, {"cpu_cores": 0.0})["cpu_cores"]
        processes = asked["inference"] if stage == "inference" else 1
        reasons = found["reasons_per_s"] if stage == "inference" else 0.0
        table.append([found["tx_per_s"], found["segments_per_s"], reasons, processes,
                      found["tx_per_s"] ** 2 / found["segments_per_s"]])  # fmt: skip
        cores.append(max(used, 1e-3))
        counts.append(1.0 if asked["rate"] == "max" else PACED_WEIGHT)
    scale = np.array([1e-6, 1e-3, 1e-4, 1e-2, 1e-13])
    weight = np.array(counts) / np.array(cores)
    solution, _ = nnls(np.array(table) * scale * weight[:, None], np.array(cores) * weight)
    return Cost(*(solution * scale).tolist())


# The page


def write(folder: Path, document: Mapping[str, Any], model: Model) -> None:
    """Put the model into docs/SCALING.md, between its marks."""
    page = folder.parent / "SCALING.md"
    page.write_text(within(page.read_text(), render(document, model)))


def within(page: str, text: str) -> str:
    """``page`` with ``text`` between the marks. Raises ValueError if it has none."""
    found = re.compile(r"(<!-- model -->\n).*?(<!-- end of model -->)", re.DOTALL)
    if not found.search(page):
        raise ValueError("docs/SCALING.md has lost its marks <!-- model --> and <!-- end of model -->")
    return found.sub(lambda match: match[1] + text + match[2], page)


def render(document: Mapping[str, Any], model: Model) -> str:
    """The section in Markdown."""
    machine = document["machine"]
    rows = compare(document, model)
    kept = sum(abs(row.error) <= LIMIT for row in rows)
    lines = [
        "",
        f"Fitted by `bench/scaling.py` to the figures of {document['taken_at'][:10]} on {machine['cores']} cores "
        f"({machine['processor']}), without training.",
        "",
        "| stage | ns a row | ns a row more, each 100,000 rows of its segment | ms a segment | us a reason | "
        "idle, % of a core a process | waiting, ms a segment |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_cost_line(stage, cost, model) for stage, cost in model.costs.items()),
        "",
        f"{model.bytes_per_row:.0f} bytes are written a row, {model.fsyncs_per_segment:.1f} flushes done a segment. "
        f"{_writing(model)} {model.usable:.0%} of the cores get used flat out; times add up by a norm of "
        f"{model.norm:.1f}.",
        "",
        *([] if quiet(document) else [BUSY, ""]),
        f"**Beside what was measured**: {kept} of {len(rows)} figures are predicted within {LIMIT:.0%}.",
        "",
        "| pipeline | figure | measured | predicted | error |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {r.name} | {r.what} | {_figure(r.measured)} | {_figure(r.predicted)} | {r.error:+.0%} |" for r in rows),
        "",
        *_larger(model),
        "",
    ]
    return "\n".join(lines)


def _writing(model: Model) -> str:
    written = f"Up to {model.written / 1e6:,.0f} MB/s were written"
    if model.disk > FREE * model.written:
        return f"{written}, which the disk did not bound."
    return f"{written}; the disk bounds the rate at {model.disk / 1e6:,.0f} MB/s."


def _cost_line(stage: str, cost: Cost, model: Model) -> str:
    wait = f"{model.wait[stage] * 1e3:.1f}" if stage in model.wait else ""
    return (
        f"| {stage} | {cost.row * 1e9:.0f} | {cost.beside * 1e14:.0f} | {cost.segment * 1e3:.2f} | "
        f"{cost.reason * 1e6:.0f} | {cost.idle * 100:.1f} | {wait} |"
    )


def _larger(model: Model) -> list[str]:
    """What more cores would do (computed), and the volume that they would need."""
    lines = [
        f"**Computed, and never run**: {SPARE:.0%} of the cores in use, replicas of prep and inference as many as that "
        f"takes, {LARGE_SEGMENT:,} rows a flush and as many `PARTITIONS` as prep has replicas (so that segments are "
        "smaller by that). The rate is that of the cores, or of the bandwidth of all volumes together where that gives "
        f"less. One volume has one ledger, which takes {LEDGER_SECONDS * 1e3:g} ms a segment "
        f"([decision 2](decisions/0002-ledger.md)): where that is more than {SPARE:.0%} of its time, "
        "cards are divided among volumes.",
        "",
        "| cores | rate of the cores, M rows/s | prep / inference | volumes | GB/s that takes | "
        + " | ".join(f"at {gb:g} GB/s" for gb in VOLUMES) + " |",
        "| --- " * (5 + len(VOLUMES)) + "|",
    ]  # fmt: skip
    for cores in CORES:
        million, prep, inference = cores_allow(model, cores)
        need = million * model.bytes_per_row / 1e3
        bound = [min(million, gb * 1e3 / model.bytes_per_row) for gb in VOLUMES]
        cells = [f"{value:.1f}{' (volume)' if value < million else ''}" for value in bound]
        lines.append(
            f"| {cores} | {million:.1f} | {prep} / {inference} | {volumes(million, prep)} | {need:.1f} | "
            + " | ".join(cells)
            + " |"
        )
    return lines


def volumes(million: float, partitions: int) -> int:
    """Volumes that cards must be divided among, so that no ledger is busier than SPARE. Each has its part of both."""
    busy = million * 1e6 * partitions / LARGE_SEGMENT * LEDGER_SECONDS
    return max(1, int(np.ceil((busy / SPARE) ** 0.5)))


def cores_allow(model: Model, cores: int) -> tuple[float, int, int]:
    """Million rows a second that the cores allow, and the replicas of prep and inference that it takes."""
    prep = 1
    for _ in range(20):  # until the number of partitions and the rate agree
        segment = LARGE_SEGMENT / prep
        row = sum(cost.row + cost.segment / segment for cost in model.costs.values())
        fixed = model.costs["inference"].reason * REASONS_PER_S
        rows = (SPARE * cores - fixed) / row
        chain = {stage: model.costs[stage].row + (model.costs[stage].segment + model.wait[stage]) / segment
                 for stage in CHAINS}  # fmt: skip
        wanted = int(np.ceil(rows * chain["prep"]))
        inference = int(np.ceil(rows * chain["inference"] + fixed))
        if wanted <= prep:
            break
        prep = wanted
    return rows / 1e6, prep, inference


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"
