"""Models of the protocols: sound in every state they can reach, and able to tell a tempting variant that is not."""

from __future__ import annotations

import pytest

from tests.models.companion import SCOPES, TEMPTING, Scope, Variant, check

BREAKS_WITH: dict[Variant, tuple[str, str]] = {
    "features first": ("features that are ready have no companion", "publish_features"),
    "companion goes before the commit": ("features that are claimed have no companion", "removes the companion"),
    "companion goes when listings lack X": ("features that are ready have no companion", "collector removes"),
    "buried before the claim is": ("features that are claimed have no companion", "puts the companion into dead/"),
}


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_companions_are_there_for_as_long_as_they_are_needed_and_no_longer(scope: Scope) -> None:
    verdict = check("protocol", scope)
    assert verdict.problem == "", verdict.trace
    assert verdict.states > 10_000, "the search ended before the protocol did"


@pytest.mark.parametrize("variant", TEMPTING)
def test_a_tempting_variant_breaks(variant: Variant) -> None:
    problem, last = BREAKS_WITH[variant]
    verdict = check(variant, Scope())
    assert verdict.problem == problem
    assert last in verdict.trace[-1]
