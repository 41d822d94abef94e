"""Every setting is documented, and a wrong one is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from spearhead.settings import Settings, explain, parse_rate

ROOT = Path(__file__).parent.parent
INTERNAL = {"worker_id", "supervisor_pid", "health_file"}  # set by whoever starts the process


def example() -> dict[str, str]:
    """``.env.example``: name and value as written, commented out or not."""
    pairs = [
        line.lstrip("# ").split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line
    ]
    return {name.strip(): value.strip() for name, value in pairs if name.strip().isupper()}


def shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    assert not isinstance(value, SecretStr)
    return str(value)


def test_env_example_lists_every_setting_with_its_default() -> None:
    listed = example()
    for name, field in Settings.model_fields.items():
        if name not in INTERNAL:
            assert listed.get(name.upper()) == shown(field.default), name.upper()


def test_env_example_explains_every_setting_in_the_words_of_its_declaration() -> None:
    text = (ROOT / ".env.example").read_text()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if name not in INTERNAL:
            assert field.description in text, name.upper()


def test_the_contract_of_the_backlog_thresholds() -> None:
    settings = Settings()
    assert (settings.raw_transactions_warning, settings.raw_transactions_critical) == (1_500_000, 3_000_000)
    assert (settings.features_ready_warning, settings.features_ready_critical) == (250_000, 500_000)
    assert (settings.inference_results_warning, settings.inference_results_critical) == (100_000, 200_000)
    assert settings.fraud_threshold == 0.52
    assert settings.flashblade_path == Path("/mnt/flashblade")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GENERATION_RATE", "-5"),
        ("GENERATION_RATE", "fast"),
        ("FRAUD_THRESHOLD", "1.5"),
        ("ROWS", "-1"),
        ("PARTITIONS", "0"),
        ("WORKER_ID", "../../etc"),
        ("DEVICE", "tpu"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert explain(caught.value).startswith(f"{name}: ")


def test_a_secret_is_never_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_KEY", "a-very-secret-key-0123456789")
    monkeypatch.setenv("PORT", "none")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "secret" not in explain(caught.value)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROWS", "PORT", "SOURCE", "TOKEN_KEY"):
        monkeypatch.setenv(name, "")
    settings = Settings()
    assert (settings.rows, settings.port, settings.source, settings.token_key) == (None, 8000, None, None)


def test_rates() -> None:
    assert parse_rate("max") == float("inf")
    assert parse_rate(" 250.5 ") == 250.5
    with pytest.raises(ValueError, match="'max'"):
        parse_rate("inf")
