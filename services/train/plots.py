"""Pictures of a model card as PNG: the reliability diagram and the precision-recall curve."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES: Final = (6.4, 4.8)
DOTS_PER_INCH: Final = 100
MARGINS: Final = {"left": 0.11, "right": 0.98, "bottom": 0.1, "top": 0.94}  # shares of the picture
INK: Final = "#1f4e8c"
MARK: Final = "#c0392b"


def reliability(bins: Sequence[Mapping[str, Any]]) -> bytes:
    """Fraud rate against mean score of each bin, both axes logarithmic, as most scores are far below 0.01."""
    figure, axes = _axes("Mean score", "Fraud rate", "Calibration on the test part")
    shown = [b for b in bins if b["mean_score"] and b["fraud_rate"]]  # a logarithmic axis has no zero
    least = min([0.001, *(min(b["mean_score"], b["fraud_rate"]) for b in shown)]) / 2
    axes.set(xscale="log", yscale="log", xlim=(least, 1.2), ylim=(least, 1.2))
    axes.minorticks_off()  # a third of the drawing
    axes.plot([least, 1], [least, 1], color="0.6", linestyle="--", label="calibrated")
    scores, rates = [b["mean_score"] for b in shown], [b["fraud_rate"] for b in shown]
    axes.errorbar(
        scores, rates, yerr=_spread(shown), color=INK, marker="o", capsize=3, label="bins, with one standard error"
    )
    axes.legend(loc="upper left")
    return _png(figure)


def precision_recall(
    curve: Sequence[Mapping[str, float]], points: Mapping[str, Mapping[str, float | None] | None]
) -> bytes:
    """The curve, and named thresholds on it where their precision and recall are known."""
    figure, axes = _axes("Recall", "Precision", "Precision and recall on the test part")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.plot([p["recall"] for p in curve], [p["precision"] for p in curve], color=INK)
    for marker, (name, point) in zip("os^", points.items(), strict=False):
        if point and point["precision"] is not None and point["recall"] is not None:
            label = f"{name}: {point['threshold']:g}"
            axes.plot(point["recall"], point["precision"], marker=marker, color=MARK, linestyle="", label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left")
    return _png(figure)


def _spread(bins: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """One standard error of each fraud rate, down and up; down never to zero."""
    errors = [(b["fraud_rate"] * (1 - b["fraud_rate"]) / b["rows"]) ** 0.5 for b in bins]
    return [min(e, 0.9 * b["fraud_rate"]) for e, b in zip(errors, bins, strict=True)], errors


def _axes(x: str, y: str, title: str) -> tuple[Any, Axes]:
    # Not pyplot: it keeps figures and is not made for threads. Imported here, as a trainer may never draw.
    from matplotlib.figure import Figure  # noqa: PLC0415

    # Fixed margins: a layout that is worked out measures every text, which takes longer than drawing.
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH)
    axes = figure.subplots(gridspec_kw=MARGINS)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
