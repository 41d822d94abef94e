"""The shapes of all answers, for OpenAPI; tests hold the real answers against them. None: not known."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Ratio = float | None
State = Literal["ok", "starting", "no_model", "stopped", "degraded", "unavailable"]
Severity = Literal["normal", "warning", "critical"]
Priority = Literal["inference", "training", "balanced"]
Bands = dict[Literal["low", "medium", "high"], int]


class Shape(BaseModel):
    """No field beyond those that are declared: what is not documented is not sent."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Status(Shape):
    state: State = Field(description="How far the numbers beside it can be trusted")
    reasons: list[str] = Field(description="Why it is not ok, in sentences")
    ledger_age_seconds: float | None = Field(description="Since the ledger was last written")
    data_age_seconds: float | None = Field(description="Since the newest decision that is counted")
    epoch: int | None = Field(description="Raised by each reset")


class ScoreBin(Shape):
    bin: str
    count: int
    percentage: float | None = Field(description="Of all transactions")
    score: float | None = Field(description="Height of the bar, 0 to 100")


class VelocityMinute(Shape):
    timestamp: str
    time: str = Field(description='Minutes ago, such as "-29m"')
    count: int
    score: float | None


class CategoryRisk(Shape):
    category: str
    amount: float
    count: int
    avg_risk_score: float | None
    score: float | None
    transactions: int


class Reason(Shape):
    code: str = Field(description="What it is about; features that say much the same share one")
    text: str = Field(description="In plain words")
    feature: str = Field(description="The feature of the code that raised the score most")
    value: float = Field(description="The feature's")
    contribution: float = Field(description="What the code adds to the score, in log odds")


class RiskSignal(Shape):
    trans_num: str
    risk_score: float
    merchant: str
    category: str
    cc_num_masked: str
    state: str
    cardholder: str
    amount: float
    timestamp: str = Field(description="When it was decided")
    event_time: str
    seconds_ago: int
    model_version: str
    reasons: list[Reason] = Field(description="At most 3, strongest first; [] where none was computed")


class Percentiles(Shape):
    p50: float | None
    p95: float | None
    p99: float | None


class Labels(Shape):
    """Decisions against labels; the four outcomes are of matured rows out of sample."""

    true_positives: int | None
    false_positives: int | None
    true_negatives: int | None
    false_negatives: int | None
    pending: int | None = Field(description="Rows whose labels have not matured")
    in_sample: int | None = Field(description="Matured rows that the scoring model had seen")
    unlabelled: int | None = Field(description="Rows without a label")


DriftStatus = Literal["ok", "warn", "alarm"] | None


class DriftBrief(Shape):
    """The rest is in `GET /api/model`."""

    status: DriftStatus = Field(description="The worst of features, score, fraud rate and calibration")
    score_psi: float | None = Field(description="PSI of the risk score against the test part of the training window")


class MlDetails(Shape):
    precision: Ratio
    recall: Ratio
    accuracy: Ratio
    false_positive_rate: Ratio
    threshold: float
    decision_latency_ms: float | None
    latency_ms: Percentiles
    model_version: str | None
    drift: DriftBrief = Field(description="How far recent traffic is from the training window; null: not measurable")
    labels: Labels


class RiskConcentration(Shape):
    top_1_percent_txns: int | None
    top_1_percent_fraud_amount: float | None
    total_fraud_amount: float | None
    concentration_percentage: float | None
    pattern_alert: str | None


class StateRisk(Shape):
    rank: int
    state: str
    fraud_amount: float
    count: int
    transactions: int


class KpiValue(Shape):
    id: int
    key: str
    name: str
    value: float | int | list[dict[str, Any]] | dict[str, Any] | None
    unit: str
    formula: str
    details: dict[str, float | None] | None = None


class Metadata(Shape):
    total_transactions: int | None
    total_amount: float | None
    high_risk_count: int | None
    threshold: float
    elapsed_hours: float | None
    timestamp: str
    data_source: str | None
    dead_rows: int | None


class BusinessMetrics(Shape):
    status: Status
    fraud_exposure_identified: float | None
    fraud_rate: Ratio
    alerts_per_million: float | None
    high_risk_txn_rate: Ratio
    projected_annual_savings: float | None
    transactions_analyzed: int | None
    risk_score_distribution: list[ScoreBin]
    risk_bands: Bands | None
    fraud_velocity: list[VelocityMinute]
    risk_signals_by_category: list[CategoryRisk]
    recent_risk_signals: list[RiskSignal]
    ml_details: MlDetails
    risk_concentration: RiskConcentration
    state_risk: list[StateRisk]
    state_risk_all: list[StateRisk]
    kpis: list[KpiValue]
    metadata: Metadata


class Pipeline(Shape):
    status: Literal["running", "paused", "stopped", "degraded"]
    uptime_seconds: float | None
    current_stage: Literal["generation", "preprocessing", "training", "inference"] | None


class Progress(Shape):
    """Rows out over rows in of each step, 0 to 100."""

    data_ingestion: float | None
    preprocessing: float | None
    training: float | None
    inference: float | None


class Utilization(Shape):
    cpu_cores: float | None
    ram_percent: float | None
    ram_gb: float | None


class Throughput(Shape):
    current: float | None
    peak: float | None
    unit: Literal["rows/sec"]


class Totals(Shape):
    total_transactions: int | None
    fraud_detected: int | None
    fraud_rate: Ratio
    total_amount: float | None
    fraud_amount: float | None


class QueueBacklogs(Shape):
    raw_transactions: int | None
    features_ready: int | None
    inference_results: int | None
    training_queue: int | None


class PodCounts(Shape):
    generation: int | None
    preprocessing: int | None
    training: int | None
    inference: int | None


class SystemConfig(Shape):
    generation_rate: float | Literal["max"]
    system_priority: Priority | None
    running: bool | None
    threshold: float
    control_enabled: bool = Field(description="Whether a token is configured")


class Flashblade(Shape):
    read_bytes_per_s: float | None
    write_bytes_per_s: float | None
    util_percent: float | None
    free_bytes: int | None
    total_bytes: int | None


class Latency(Percentiles):
    mean: float | None
    recent: Percentiles = Field(description="Of the rows counted in the last seconds")


class ModelState(Shape):
    version: str | None
    progress: str | None = Field(description="How far the first model is")
    matured_rows: int | None
    needed_rows: int | None


class WorkerState(Shape):
    stage: str
    worker: str
    state: str
    detail: str
    rows: int
    rows_per_s: float
    cpu_cores: float
    rss_bytes: int
    started_at: str
    last_error: str | None


class DeadRows(Shape):
    segments: int
    rows: int
    unknown_segments: int
    rejected_rows: int


class Flow(Shape):
    """Rows that each step has come to in this epoch."""

    published: int | None
    rejected: int | None
    consumed: int | None
    emitted: int | None
    scored: int | None


class Dashboard(Shape):
    status: Status
    pipeline: Pipeline
    progress: Progress
    utilization: Utilization
    throughput: Throughput
    business_metrics: Totals
    queue_backlogs: QueueBacklogs
    pod_counts: PodCounts
    system_config: SystemConfig
    flashblade: Flashblade
    latency_ms: Latency
    model: ModelState
    workers: list[WorkerState] | None
    dead: dict[str, DeadRows] | None
    flow: Flow
    timestamp: str


class BacklogStatus(QueueBacklogs):
    timestamp: str
    status: Status


class QueuePressure(Shape):
    backlog: int | None
    threshold_warning: int
    threshold_critical: int
    pressure_percent: float | None
    status: Severity | None


class PressureAlert(Shape):
    severity: Severity
    queue: str
    message: str
    backlog: int
    threshold: int
    timestamp: str


class Replicas(Shape):
    preprocessing: int | None
    inference: int | None


class BacklogPressure(Shape):
    overall_pressure: Literal["normal", "medium", "high", "critical"] | None
    queues: dict[Literal["raw_transactions", "features_ready", "inference_results"], QueuePressure]
    alerts: list[PressureAlert]
    recommendations: list[str]
    recommended_replicas: Replicas
    timestamp: str
    status: Status


class ChartSample(Shape):
    time: float
    epoch: int
    generation: float | None
    preprocessing: float | None
    inference: float | None
    flagged: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    raw_transactions: int | None
    features_ready: int | None
    inference_results: int | None
    training_queue: int | None
    read_bytes: float | None
    write_bytes: float | None
    precision: Ratio
    recall: Ratio


class History(Shape):
    """Columns of equal length, oldest first."""

    status: Status
    epoch: int | None
    time: list[float]
    generation: list[float | None]
    preprocessing: list[float | None]
    inference: list[float | None]
    flagged: list[float | None]
    p50_ms: list[float | None]
    p95_ms: list[float | None]
    p99_ms: list[float | None]
    raw_transactions: list[int | None]
    features_ready: list[int | None]
    inference_results: list[int | None]
    training_queue: list[int | None]
    read_bytes: list[float | None]
    write_bytes: list[float | None]
    precision: list[Ratio]
    recall: list[Ratio]


class Verdict(Shape):
    """Nulls: no model was in service, so there was nothing to judge against."""

    promoted: bool
    reason: str = Field(description="Why it went into service, or why not")
    margin: float
    version: str | None = Field(description="The model it was judged against")
    champion_average_precision: float | None
    challenger_average_precision: float | None
    confidence: float | None
    champion_ece: float | None
    challenger_ece: float | None
    rows: int | None = Field(description="Test rows that the champion had not seen")
    frauds: int | None
    seen_by_champion: bool | None


class Champion(Shape):
    version: str
    average_precision: float | None
    ece: float | None
    brier: float | None
    cost_optimal_threshold: float | None
    verdict: Verdict | None


class Challenger(Shape):
    version: str
    average_precision: float | None
    ece: float | None
    verdict: Verdict | None


class ReliabilityBin(Shape):
    low: float = Field(description="Scores from")
    high: float = Field(description="Scores below; the last bin includes 1")
    rows: int = Field(description="Rows of the sample in the bin")
    frauds: int
    mean_score: float | None
    fraud_rate: float | None = Field(description="Share of fraud in the bin, weighted as the sample is")


class Calibration(Shape):
    ece: float | None
    brier: float | None
    slope: float | None
    intercept: float | None
    bins: list[ReliabilityBin]


class InService(Shape):
    version: str
    made_at: str | None
    age_seconds: float | None
    average_precision: float | None
    auc: float | None
    logloss: float | None
    rows: int | None
    frauds: int | None
    base_rate: float | None
    test_base_rate: float | None
    test_rows: int | None
    test_frauds: int | None
    trees: int | None
    train_seconds: float | None
    at_threshold: dict[str, float | None] | None
    stateless: dict[str, float | None] | None
    verdict: Verdict | None
    train_end: str | None
    parameters: dict[str, Any] | None


class ModelVersion(Shape):
    version: str
    made_at: str | None
    in_service: bool
    promoted: bool | None
    average_precision: float | None
    auc: float | None
    logloss: float | None
    precision: float | None
    recall: float | None
    rows: int | None
    train_seconds: float | None


class CurvePoint(Shape):
    threshold: float
    recall: float
    precision: float


class FeatureShare(Shape):
    feature: str
    share: float


class ReasonsSummary(Shape):
    computed: int | None = Field(description="Flagged transactions explained as they were scored")
    deferred: int | None = Field(description="Flagged transactions beyond the budget: explained when looked up")
    at_look_up: int | None = Field(
        description="Look-ups of those that were explained, each counted, since the live API servers started"
    )


class DriftReference(Shape):
    version: str | None = Field(description="The model in service")
    rows: int | None = Field(description="Sampled rows of its training window")


class DriftWindow(Shape):
    from_: str | None = Field(
        alias="from", description="Event time at which the first of at most seven whole days begins"
    )
    to: str | None = Field(description="Event time at which the last of them ends")
    rows: int | None = Field(description="Rows that were counted, one in 48")


class FeatureDrift(Shape):
    feature: str = Field(description="Name of the feature, as in docs/FEATURES.md")
    psi: float | None = Field(
        description="Population stability index; null where the feature has not settled or rows are too few"
    )
    status: DriftStatus = Field(description="Of this PSI, by `warn` and `alarm`")


class LabelRateDrift(Shape):
    reference: float | None = Field(description="Share of fraud in the training window")
    recent: float | None = Field(description="Share of fraud among the labels of the newest matured week")
    ratio: float | None = Field(description="`recent` over `reference`; null with too few frauds")
    low: float | None = Field(
        description="Lower end of the interval that chance leaves to the ratio, at three deviations"
    )
    high: float | None = Field(description="Upper end of it")
    rows: int | None = Field(description="Matured labels of that week")
    status: DriftStatus = Field(
        description="Of the end that is nearer to 1: a warning beyond 1.25 or its inverse, an alarm beyond 1.5"
    )


class CalibrationDrift(Shape):
    expected_frauds: float | None = Field(description="Sum of the scores, over the newest matured week out of sample")
    observed_frauds: int | None = Field(description="Frauds among the same rows")
    ratio: float | None = Field(description="Observed over expected; null with too few frauds")
    low: float | None = Field(
        description="Lower end of the interval that chance leaves to the ratio, at three deviations"
    )
    high: float | None = Field(description="Upper end of it")
    rows: int | None = Field(description="Matured labels of that week that are out of sample")
    status: DriftStatus = Field(
        description="Of the end that is nearer to 1: a warning beyond 1.25 or its inverse, an alarm beyond 1.5"
    )


class DriftDetails(Shape):
    """Recent traffic against the training window of the model in service. Null: not measurable."""

    status: DriftStatus = Field(description="The worst of what follows")
    warn: float = Field(description="PSI from which on it is a warning")
    alarm: float = Field(description="PSI from which on it is an alarm")
    reference: DriftReference = Field(description="What recent traffic is compared with")
    window: DriftWindow = Field(description="What of recent traffic is compared")
    score_psi: float | None = Field(description="PSI of the risk score against the test part of the training window")
    features: list[FeatureDrift] = Field(description="Largest PSI first")
    label_rate: LabelRateDrift = Field(description="Whether there is more fraud or less than in the training window")
    calibration: CalibrationDrift = Field(description="Whether as many frauds were found as the scores had promised")


class ModelDetails(Shape):
    status: Status
    state: ModelState
    in_service: InService | None
    champion: Champion | None
    challenger: Challenger | None
    versions: list[ModelVersion]
    refresh_seconds: float | None
    pr_curve: list[CurvePoint]
    loss: dict[Literal["train", "valid"], list[float]]
    loss_trees: list[int]
    calibration: Calibration
    drift: DriftDetails = Field(description="How far recent traffic is from the training window")
    thresholds: list[dict[str, float | None]]
    cost_optimal_threshold: float | None
    reasons_summary: ReasonsSummary = Field(
        description="How many flagged transactions have reasons; `REASONS_MAX_PER_S` is the budget"
    )
    importances: list[FeatureShare]
    by_scenario: dict[str, float | None]
    by_category: dict[str, dict[str, float | None]]
    labels: LabelState
    timestamp: str


class LabelFeedback(Shape):
    """Labels that came on their own, since start or reset."""

    received: int | None = Field(description="Labels joined, or given up: the next four together")
    applied: int | None = Field(description="First labels of their transactions")
    corrected: int | None = Field(description="Labels that said otherwise than the one before")
    duplicate: int | None = Field(
        description="Labels that changed nothing: the same again, or older than what is known"
    )
    unmatched: int | None = Field(description="Labels given up: no decision was found in LABEL_WAIT_SECONDS")
    waiting: int | None = Field(description="Labels that wait for their decision")


class LabelState(Shape):
    """Decisions by what is known of their labels."""

    pending: int | None = Field(description="Decisions whose own labels will mature")
    unlabelled: int | None = Field(description="Decisions without any label")
    in_sample: int | None = Field(description="Labelled decisions of times that their model had been trained on")
    out_of_sample: int | None = Field(description="Labelled decisions behind precision and recall")
    feedback: LabelFeedback = Field(description="Labels that came on their own, since start or reset")


class LiveMessage(Shape):
    """A message of ``/ws/metrics``; the last four only when asked for with ``include``."""

    timestamp: str
    status: Status
    throughput: Throughput
    queue_backlogs: QueueBacklogs
    pod_counts: PodCounts
    utilization: Utilization
    business_metrics: Totals
    latency_ms: Latency
    model: ModelState
    system_config: SystemConfig
    sample: ChartSample | None
    business: BusinessMetrics | None = None
    dashboard: Dashboard | None = None
    pressure: BacklogPressure | None = None
    model_details: ModelDetails | None = None


class Health(Shape):
    status: Literal["alive"]


class Ready(Shape):
    ready: bool
    reasons: list[str]


class Done(Shape):
    success: Literal[True]
    message: str
    running: bool | None = None
    epoch: int | None = None


class Throttle(Shape):
    success: Literal[True]
    rate: float | Literal["max"]


class PriorityDone(Shape):
    success: Literal[True]
    priority: Priority


class Refusal(Shape):
    success: Literal[False]
    error: str


class ThrottleOrder(BaseModel):
    rate: Any = Field(description='Rows a second, 0 or more, or "max"', examples=[50000, "max"])


class PriorityOrder(BaseModel):
    priority: Any = Field(description="inference, training or balanced", examples=["balanced"])


class TransactionIn(BaseModel):
    """A row in the Sparkov layout; values may be texts or numbers. Other columns are ignored."""

    trans_date_trans_time: str = Field(examples=["2019-01-07 13:04:44"], description="UTC")
    cc_num: str | int = Field(description="11 to 19 digits; it becomes a token and is kept nowhere")
    merchant: str
    category: str
    amt: float | str
    first: str
    last: str
    state: str
    lat: float | str
    long: float | str
    city_pop: int | str
    dob: str = Field(examples=["1964-12-30"])
    trans_num: str = Field(
        description="1 to 64 letters, digits or any of _.:-; not 11 to 19 digits without a letter: a card number?"
    )
    merch_lat: float | str
    merch_long: float | str


class LabelIn(BaseModel):
    """What a transaction turned out to be. The label with the later ``labelled_at`` counts."""

    trans_num: str = Field(description="1 to 64 letters, digits or any of _.:-")
    is_fraud: bool | int = Field(description="true, false, 1 or 0")
    labelled_at: str = Field(examples=["2024-03-01T09:30:00Z"], description="ISO 8601, UTC where it names no zone")


class RowRejection(Shape):
    row: int = Field(description="Position in the request, from 0")
    trans_num: str | None
    reason: str


class Ingested(Shape):
    success: bool
    accepted: int = Field(description="Durable rows that will be scored")
    rejected: int
    rejections: list[RowRejection] = Field(description="The first thousand")
    segment: str | None = Field(description="Epoch, producer and number of the segment that holds the rows")


class LabelsTaken(Shape):
    success: bool
    accepted: int = Field(description="Durable labels that will be joined with their decisions")
    rejected: int
    rejections: list[RowRejection] = Field(description="The first thousand")


class LateLabel(Shape):
    is_fraud: bool
    labelled_at: str = Field(description="When it was said, as its sender told")


class Decision(Shape):
    source: Literal["results"] = Field(description="A result file: all that is known")
    trans_num: str
    decision: Literal["approved", "flagged"]
    risk_score: float
    model_version: str
    amount: float
    merchant: str
    category: str
    state: str
    cc_num_masked: str
    event_time: str
    ingested_at: str
    timestamp: str = Field(description="When it was decided")
    is_fraud: bool | None = Field(description="The label that the row itself carried")
    label: LateLabel | None = Field(description="The newest label that came on its own (`POST /api/labels`, a file)")
    reasons: list[Reason] = Field(
        description="Of a flagged one at most 3, strongest first, with the model that scored it"
    )
    reasons_note: str | None = Field(description="Why a flagged one has no reasons, where nobody can say them any more")
    segment: str | None = None


NotArchived = Annotated[None, Field(description="Not archived")]


class ArchivedDecision(Shape):
    """A decision whose result file is gone."""

    source: Literal["archive"] = Field(
        description="The archive of decisions on rows without a label, whose result file is gone"
    )
    trans_num: str
    decision: Literal["approved", "flagged"]
    risk_score: float
    model_version: NotArchived
    amount: float
    merchant: str
    category: NotArchived
    state: NotArchived
    cc_num_masked: NotArchived
    event_time: str
    ingested_at: NotArchived
    timestamp: NotArchived
    is_fraud: None = Field(description="The row carried no label: others are not archived")
    label: LateLabel | None = Field(description="The newest label that came on its own (`POST /api/labels`, a file)")
    reasons: list[Reason] = Field(description="None: what they could be computed from is gone", max_length=0)
    reasons_note: str | None = Field(description="Why a flagged one has none")
    segment: NotArchived


class SignalPage(Shape):
    signals: list[Decision]
    next: str | None = Field(description="`cursor` of the next page; null at the end")
