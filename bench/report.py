"""docs/PERFORMANCE.md and its plots, made of ``docs/performance/*.json`` and of nothing else."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

INK: Final = "#1f4e8c"
SECOND: Final = "#c0392b"
INCHES: Final = (5.4, 3.2)
STYLE: Final = {"svg.hashsalt": "spearhead", "svg.fonttype": "none", "font.size": 9.0}


class Column(NamedTuple):
    title: str
    value: Callable[[Mapping[str, Any]], Any]  # of a pipeline's figures; None: not known


def _stage(stage: str, figure: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda found: found["stages"].get(stage, {}).get(figure)


RATE: Final = Column("rows/s", lambda found: found["tx_per_s"])
P50: Final = Column("p50, ms", lambda found: found["p50_ms_at_window"])
P99: Final = Column("p99, ms", lambda found: found["p99_ms_at_window"])
CORES: Final = Column("cores in use", lambda found: found["cpu_cores"])
BYTES: Final = Column("bytes written a row", lambda found: found["bytes_per_row"])
FSYNCS: Final = Column("fsyncs/s", lambda found: found["fsyncs_per_s"])
MEMORY: Final = Column("memory, MiB", lambda found: found["pss_mib"])
GENERATOR_NS: Final = Column("generator, ns a row", _stage("generator", "cpu_ns_per_row"))
PREP_NS: Final = Column("prep, ns a row", _stage("prep", "cpu_ns_per_row"))
INFERENCE_NS: Final = Column("inference, ns a row", _stage("inference", "cpu_ns_per_row"))
PREP_MIB: Final = Column("prep, MiB", _stage("prep", "rss_mib"))
TRAIN_NS: Final = Column("training, ns a row", _stage("train", "cpu_ns_per_row"))


class Curve(NamedTuple):
    """A section of the page. ``plotted`` is on the left axis, ``beside`` on the right one."""

    title: str
    axis: str
    text: str
    columns: Sequence[Column]
    plotted: Column = RATE
    beside: Column | None = None


SECTIONS: Final = {
    "cards": Curve(
        "Cards", "cards of the population",
        "Flat out. Prep remembers what each card did: its memory grows with the cards that have bought something, and "
        "so does the chance that a card's record is not in the processor's cache.",
        (RATE, PREP_NS, GENERATOR_NS, Column("cards remembered", lambda found: found["cards_remembered"]),
         PREP_MIB, Column("generator, MiB", _stage("generator", "rss_mib")), MEMORY),
        beside=PREP_MIB,
    ),
    "segment_rows": Curve(
        "Segment size", "rows a segment (SEGMENT_ROWS)",
        "Flat out. A segment costs the same whatever it holds: renames, links, flushes, an aggregate.",
        (RATE, Column("segments/s", lambda found: found["segments_per_s"]), FSYNCS, GENERATOR_NS, PREP_NS, INFERENCE_NS,
         MEMORY),
        beside=FSYNCS,
    ),
    "inference": Curve(
        "Replicas of inference", "inference processes",
        "Flat out. Replicas share the machine's cores with all other stages.",
        (RATE, CORES, INFERENCE_NS, Column("inference, cores", _stage("inference", "cpu_cores")), FSYNCS, MEMORY),
        beside=CORES,
    ),
    "backlog": Curve(
        "Backlog", "rows standing in raw-transactions, at most",
        "Flat out, segments of 16,384 rows; the queue is filled before the pipeline starts and kept full. Latency then "
        "is the time that the backlog takes. Counting is `Backlog.rows()`, of all queues, footers unread and known.",
        (RATE, Column("rows waiting", lambda found: sum(found["waiting_rows"].values())), PREP_NS, INFERENCE_NS,
         GENERATOR_NS, Column("count first, ms", lambda found: found["count_ms_first"]),
         Column("count again, ms", lambda found: found["count_ms_again"]), P50),
        beside=Column("count again, ms", lambda found: found["count_ms_again"]),
    ),
    "rate": Curve(
        "Rate", "rows a second asked for (GENERATION_RATE)",
        "At a set rate; latency is from ingest to decision. A segment closes after `FLUSH_SECONDS` (0.1 s).",
        (RATE, P50, P99, CORES, Column("segments/s", lambda found: found["segments_per_s"]), FSYNCS, BYTES),
        plotted=P99, beside=CORES,
    ),
    "switches": Curve(
        "What each part costs", "one switch at a time",
        "Flat out, training on but where it is said to be off. *Reasons off* is `REASONS_MAX_PER_S=0`, *fsync off* "
        "`FSYNC=false`; *history off* is no setting: the benchmark runs a prep of its own, whose features are zeros.",
        (RATE, CORES, GENERATOR_NS, PREP_NS, INFERENCE_NS, TRAIN_NS, BYTES, FSYNCS, MEMORY),
    ),
}  # fmt: skip


def write(folder: Path, document: Mapping[str, Any]) -> None:
    """``PERFORMANCE.md`` beside ``folder`` (docs/performance), one SVG a curve in it."""
    (folder.parent / "PERFORMANCE.md").write_text(render(document))
    for name in SECTIONS:
        (folder / f"{name}.svg").write_text(plot(document, name))


def render(document: Mapping[str, Any]) -> str:
    """The page, in Markdown."""
    machine = document["machine"]
    lines = [
        "# Performance",
        "",
        "Growth curves of the whole pipeline on one machine, each point a pipeline of its own on a fresh local volume, "
        "alone: one setting changed, all others the product's but for training, which is off unless said. "
        f"`make bench-full` measures them (windows of {document['window_seconds']:g} s) and makes this page of "
        "[performance/curves.json](performance/curves.json); `python -m bench.full --render` only makes the page. "
        "Every volume was audited afterwards. What the figures come to on larger machines is in "
        "[SCALING.md](SCALING.md).",
        "",
        "| machine | |",
        "| --- | --- |",
        f"| processor | {machine['processor']}, {machine['cores']} cores |",
        f"| memory | {machine['memory_gib']} GiB |",
        f"| kernel, Python | {machine['kernel']}, {machine['python']} |",
        f"| disk | {machine['fsyncs_per_s']:,} flushes of 4 KiB a second, {machine['write_mb_per_s']:,} MB/s written |",
        f"| other work beside a pipeline, cores | {_other(document)} |",
        f"| taken | {document['taken_at']} |",
        "",
        "Memory is the sum over all processes, shared pages counted once (PSS).",
    ]
    for name, curve in SECTIONS.items():
        lines += ["", f"## {curve.title}", "", curve.text, "", f"![{curve.title}](performance/{name}.svg)", ""]
        lines += _table(document, name, curve)
    return "\n".join([*lines, "", *_audits(document), ""])


def _other(document: Mapping[str, Any]) -> str:
    found = [each["figures"]["other_cores"] for each in document["setups"].values() if each["figures"]]
    if not found or None in found:
        return "not measured: the figures are provisional"
    return f"median {statistics.median(found):.2f}, at most {max(found):.2f} (the benchmark itself, the kernel, others)"


def _table(document: Mapping[str, Any], name: str, curve: Curve) -> list[str]:
    lines = [
        "| " + " | ".join([curve.axis, *(column.title for column in curve.columns)]) + " |",
        "| --- " * (len(curve.columns) + 1) + "|",
    ]
    for x, measured in _points(document, name):
        found = measured["figures"]
        cells = (
            [_cell(column.value(found)) for column in curve.columns]
            if found
            else [f"not measured: {measured['reason'].splitlines()[0]}", *[""] * (len(curve.columns) - 1)]
        )
        lines.append("| " + " | ".join([_cell(x), *cells]) + " |")
    return lines


def _audits(document: Mapping[str, Any]) -> list[str]:
    audits = [measured["figures"]["verify"] for measured in document["setups"].values() if measured["figures"]]
    rows, lost, doubled = (sum(audit[key] for audit in audits) for key in ("published", "lost", "duplicated"))
    return [
        "## Audit",
        "",
        f"{len(audits)} of {len(document['setups'])} pipelines ran; of their {rows:,} rows {lost:,} were lost and "
        f"{doubled:,} counted twice (`spearhead verify`).",
    ]


def plot(document: Mapping[str, Any], name: str) -> str:
    """A curve as SVG, the same for the same figures."""
    curve = SECTIONS[name]
    points = [(x, measured["figures"]) for x, measured in _points(document, name) if measured["figures"]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.add_subplot()
        places = range(len(points))
        axes.set_xticks(places, [_cell(x) for x, _ in points])
        axes.set_xlabel(curve.axis)
        axes.set_ylabel(curve.plotted.title, color=INK)
        axes.bar(places, [curve.plotted.value(found) or 0 for _, found in points], width=0.5, color=INK, alpha=0.75)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
        if curve.beside:
            other = axes.twinx()
            other.plot(places, [curve.beside.value(found) or 0 for _, found in points], color=SECOND, marker="o")
            other.set_ylim(bottom=0)
            other.set_ylabel(curve.beside.title, color=SECOND)
            other.yaxis.set_major_formatter("{x:,.5g}")
            other.spines[["top"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _points(document: Mapping[str, Any], name: str) -> list[tuple[Any, Mapping[str, Any]]]:
    return [
        (x, document["setups"].get(setup, {"figures": None, "reason": "was left out"}))
        for x, setup in document["curves"][name]
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:,.3g}"
