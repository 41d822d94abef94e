"""Every setting of Spearhead: name, default and help, declared once and read from the environment.

``.env.example`` lists the same names; ``tests/test_settings.py`` holds the two together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

GIB = 1024**3


class Settings(BaseSettings):
    """Settings of all stages. Raises ``pydantic.ValidationError`` that names the variable and what it takes."""

    model_config = SettingsConfigDict(env_prefix="", case_sensitive=False, extra="ignore", frozen=True)

    # The volume
    flashblade_path: Path = Field(Path("/mnt/flashblade"), description="Root of the shared volume")
    flashblade_max_bytes_per_s: int | None = Field(
        None, ge=1, description="Throughput limit of the volume, for KPI 17; empty: KPI 17 is null"
    )
    fsync: bool = Field(True, description="Flush every publish to stable storage; off trades durability for speed")
    disk_low_bytes: int = Field(1 * GIB, ge=0, description="Producers pause while the volume has less free space")
    results_retention_bytes: int = Field(10 * GIB, ge=0, description="Result files kept, in bytes; 0 keeps all")
    results_retention_seconds: int = Field(3600, ge=0, description="Result files kept, in seconds; 0 keeps all")
    archive_retention_days: float = Field(
        60.0,
        ge=0,
        description="Days that decisions without a label wait for one once their result file is gone; 0: all",
    )
    archive_retention_bytes: int = Field(2 * GIB, ge=0, description="Such decisions kept, in bytes; 0: all")

    # Traffic
    generation_rate: Annotated[str, Field(description="Rows a second of the generator or replay, or max")] = "50000"
    population: Literal["synthetic", "handbook"] = Field(
        "synthetic",
        description="Generator's traffic: synthetic, endless; or the Fraud Detection Handbook's, which ends",
    )
    cards: int = Field(50_000, ge=10, le=5_000_000, description="Cards in the synthetic population")
    merchants: int = Field(2_000, ge=20, le=1_000_000, description="Merchants in the synthetic population")
    fraud_rate: float = Field(0.005, ge=0.0, le=0.2, description="Share of synthetic transactions that are fraud")
    seed: int = Field(1, ge=0, lt=2**63, description="Seed of the synthetic population and its traffic")
    rows: int | None = Field(None, ge=0, description="Stop after this many rows; empty: run for ever")
    source: Path | None = Field(None, description="CSV or Parquet file to replay instead of synthetic traffic")
    loop: bool = Field(False, description="Replay the source for ever, event time shifted on at each turn")
    segment_rows: int = Field(65_536, ge=1, le=1_048_576, description="Most rows in a segment")
    flush_seconds: float = Field(0.1, gt=0, le=60, description="Longest time a row waits for its segment")
    partitions: int = Field(1, ge=1, le=256, description="Partitions of raw-transactions, by card")
    token_key: SecretStr | None = Field(
        None, description="Key (16 characters or more) that turns card numbers into tokens; empty: TOKEN_KEY_FILE"
    )
    token_key_file: Path = Field(
        Path("~/.local/state/spearhead/token.key"),
        description="Where the token key is kept, outside the volume; made on first use when TOKEN_KEY is empty",
    )

    # Back pressure, in rows
    raw_transactions_warning: int = Field(1_500_000, ge=1, description="raw-transactions: warn above")
    raw_transactions_critical: int = Field(3_000_000, ge=1, description="raw-transactions: pause producers at")
    features_ready_warning: int = Field(250_000, ge=1, description="features-ready: warn above")
    features_ready_critical: int = Field(500_000, ge=1, description="features-ready: pause prep at")
    inference_results_warning: int = Field(100_000, ge=1, description="Rows not yet in the ledger: warn above")
    inference_results_critical: int = Field(200_000, ge=1, description="Rows not yet in the ledger: alert at")

    # Features
    label_delay_days: float = Field(7.0, ge=0, description="Days of event time until a label may be used")
    label_wait_seconds: float = Field(
        86_400.0, ge=0, description="How long a label waits for a decision to join before it is set aside"
    )
    card_state_max: int = Field(6_000_000, ge=1, description="Cards whose history prep keeps; longest idle go first")
    card_idle_days: float = Field(
        400.0, ge=7, description="Days of event time without a transaction after which prep forgets a card"
    )
    merchant_state_max: int = Field(1_000_000, ge=1, description="Merchants whose history prep keeps")
    checkpoint_seconds: float = Field(10.0, gt=0, description="Least time between two checkpoints of prep")

    # Model
    fraud_threshold: float = Field(0.52, gt=0, lt=1, description="Risk score from which a transaction is flagged")
    reasons_max_per_s: int = Field(
        500, ge=0, description="Flagged transactions explained a second, by all replicas; dearest first"
    )
    train_first_rows: int = Field(20_000, ge=1, description="Matured rows that the first model waits for")
    train_interval_seconds: float = Field(60.0, gt=0, description="Retrain at least this often when rows are new")
    train_new_rows: int = Field(1_000_000, ge=1, description="Retrain early once this many new rows have matured")
    train_cpu_share: float = Field(0.1, gt=0, description="Cores that retraining takes at most, on average")
    train_max_rows: int = Field(400_000, ge=100, description="Most rows kept in the training sample")
    train_window_days: float = Field(
        28.0, gt=0, description="Event days that the training sample should span; 14 at first, more as they are seen"
    )
    promote_margin: float = Field(
        0.005, ge=0, le=1, description="Average precision by which a new model must beat the one in service"
    )
    promote_ece_tolerance: float = Field(
        0.1, ge=0, description="How much worse its calibration error may be, as a share of the fraud rate"
    )
    cost_per_alert: float = Field(5.0, ge=0, description="$ that looking into one flagged transaction costs")
    cost_per_missed_fraud: float = Field(
        1.0, ge=0, description="$ that a fraud which was not flagged costs, for each $ of its amount"
    )
    train_threads: int = Field(1, ge=1, description="Threads of a training run")
    inference_threads: int = Field(1, ge=1, description="Threads of one inference replica")
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where XGBoost trains and predicts")

    # Queue workers
    lease_seconds: float = Field(15.0, gt=0, description="A worker silent this long is taken for dead")
    heartbeat_seconds: float = Field(2.0, gt=0, description="How often a worker reports")
    poll_min_seconds: float = Field(0.001, gt=0, description="Shortest sleep of an idle worker")
    poll_max_seconds: float = Field(0.05, gt=0, description="Longest sleep of an idle worker")
    fold_seconds: float = Field(0.25, gt=0, description="Least time between two folds of the ledger")
    worker_id: str | None = Field(None, pattern=r"^[a-z0-9]{6,32}$", description="Unique worker name; empty: random")
    health_file: Path | None = Field(None, description="File a worker touches as it makes progress (health checks)")
    supervisor_pid: int | None = Field(None, description="Set by `up`: a stage ends when this process has gone")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line")

    # API
    bind: str = Field("127.0.0.1", description="Address the API listens on")
    port: int = Field(8000, ge=1, le=65535, description="Port the API listens on")
    api_workers: int = Field(2, ge=1, le=64, description="API processes")
    api_token: SecretStr | None = Field(None, description="Bearer token of control endpoints; empty: they stay closed")

    @field_validator("generation_rate")
    @classmethod
    def _rate(cls, value: str) -> str:
        parse_rate(value)
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_default(cls, value: object, info: object) -> object:
        """An empty variable means 'not set', as Compose passes unset ones."""
        if value == "":
            name = info.field_name  # type: ignore[attr-defined]
            return cls.model_fields[name].get_default()
        return value

    @property
    def finite(self) -> bool:
        """Whether the traffic ends by itself."""
        ends = not self.loop if self.source is not None else self.population == "handbook"
        return self.rows is not None or ends

    @property
    def label_delay_us(self) -> int:
        return round(self.label_delay_days * 86_400_000_000)

    @property
    def card_idle_us(self) -> int:
        return round(self.card_idle_days * 86_400_000_000)


def parse_rate(text: str) -> float:
    """Rows a second from ``"50000"`` or ``"max"`` (infinity). Raises ValueError that says what is allowed."""
    if text.strip().lower() == "max":
        return float("inf")
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < float("inf"):
        raise ValueError(f"rate must be a number of rows a second (0 or more) or 'max', not {text!r}")
    return rate


def explain(error: ValidationError) -> str:
    """What is wrong with the environment, in one line that names each variable."""
    return "; ".join(
        f"{'.'.join(map(str, one['loc'])).upper()}: {one['msg'].removeprefix('Value error, ')}"
        for one in error.errors(include_input=False)
    )
