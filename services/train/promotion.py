"""Whether a new model takes the place of the one in service: both judged on the latest event time that neither saw."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from services.train import evaluation
from services.train.fit import Rows, predict, split
from spearhead.model import Artifact, Model


class Verdict(NamedTuple):
    """``figures`` say why; they go into the version's metrics under ``champion``."""

    promote: bool
    figures: dict[str, Any] | None


def judge(challenger: Artifact, champion: Model | None, rows: Rows) -> Verdict:
    """Promote if average precision on the challenger's test part is higher, or nothing is in service.

    Rows that shaped the champion's trees are left out. If that leaves no fraud (it was trained elsewhere, on later
    event time) all test rows count: it may have seen them, which favours the one in service. Where the test part has
    no fraud nothing can be shown, and the champion stays.
    """
    if champion is None:
        return Verdict(True, None)
    test = rows.take(split(rows).test)
    unseen = test.event_time > (champion.window.fit_end if champion.window else np.iinfo(np.int64).max)
    seen = not (test.label[unseen] > 0).any()
    if not seen:
        test = test.take(unseen)
    theirs = _average_precision(test, champion.score_values(np.ascontiguousarray(test.features)))
    ours = _average_precision(test, predict(challenger.booster, test.features))
    figures = {
        "version": champion.version,
        "average_precision": theirs,
        "challenger_average_precision": ours,
        "rows": len(test.label),
        "frauds": test.frauds,
        "seen_by_champion": seen,
    }
    return Verdict(ours is not None and theirs is not None and ours > theirs, figures)


def _average_precision(rows: Rows, scores: Any) -> float | None:
    return evaluation.average_precision(evaluation.rank(rows.label, scores, rows.weight))
