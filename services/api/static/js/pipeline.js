/* The Pipeline tab. */

import { lines } from "./chart.js";
import { h, panel, table, text, tip } from "./dom.js";
import { UNKNOWN, bytes, count, fixed, milliseconds, seconds, short, words } from "./format.js";

const RATE = "Rows a second over the last five seconds. Source: producers' newest segments, prep's commits, the ledger.";
const WAITING = "Rows that wait. Source: file names and footers in the queue.";
const BEATS = "Source: the workers' heartbeats, every two seconds.";
const LIMIT = 600;
const STEPS = [["generation", "Generate", "generator"], ["preprocessing", "Prepare", "prep"], ["inference", "Score", "inference"], ["training", "Train", "train"]];
const QUEUES = { raw_transactions: "raw transactions", features_ready: "features ready", inference_results: "to be counted", training_queue: "training sample" };
const COLUMNS = ["time", "generation", "preprocessing", "inference", "p50_ms", "p95_ms", "p99_ms", "raw_transactions", "features_ready", "inference_results", "read_bytes", "write_bytes"];

export class Pipeline {
  sections = "dashboard,pressure";

  constructor(root) {
    this.history = Object.fromEntries(COLUMNS.map((name) => [name, []]));
    this.steps = {};
    this.queues = {};
    const step = ([key, name, stage]) => {
      const one = { rate: h("strong", {}, UNKNOWN), replicas: h("span"), state: h("span.state") };
      one.element = h("div.step", { tabindex: "0", data: { tip: `${name}: ${RATE}` } }, h("h3", {}, name), one.rate, h("small", {}, key === "training" ? "matured rows" : "rows/s"), one.replicas, one.state);
      one.stage = stage;
      this.steps[key] = one;
      return h(`div.at-${key}`, {}, one.element);
    };
    const queue = (key) => {
      const one = { rows: h("strong", {}, UNKNOWN), fill: h("i") };
      one.element = h("div.queue", { tabindex: "0", data: { tip: WAITING } }, h("span", {}, QUEUES[key]), one.rows, h("div.pipe", {}, one.fill));
      this.queues[key] = one;
      return h(`div.at-${key}`, {}, one.element);
    };
    this.ledger = { total: h("strong", {}, UNKNOWN), flagged: h("span"), age: h("span.state") };
    this.model = h("strong", {}, UNKNOWN);
    const flow = h("div.flow", {},
      step(STEPS[0]), queue("raw_transactions"), step(STEPS[1]), queue("features_ready"), step(STEPS[2]), queue("inference_results"),
      h("div.at-ledger", {}, h("div.step.end", { tabindex: "0", data: { tip: "Transactions in the ledger: each counted once. Source: .metrics.json." } }, h("h3", {}, "Ledger"), this.ledger.total, h("small", {}, "transactions"), this.ledger.flagged, this.ledger.age)),
      queue("training_queue"), step(STEPS[3]),
      h("div.at-model", {}, h("div.queue", { tabindex: "0", data: { tip: "The model in service. Source: models/current." } }, h("span", {}, "model in service"), this.model, h("div.pipe.plain", {}))));
    this.throughput = lines("Throughput", [
      { label: "Generate", color: "--c1" }, { label: "Prepare", color: "--c2" }, { label: "Score", color: "--c3" }], { format: (v) => short(v, 1) });
    this.latency = lines("Decision latency", [
      { label: "p50", color: "--c3" }, { label: "p95", color: "--c2" }, { label: "p99", color: "--c4" }], { format: milliseconds });
    this.backlog = lines("Backlog", [
      { label: "Raw transactions", color: "--c1" }, { label: "Features ready", color: "--c2" }, { label: "To be counted", color: "--c4" }], { format: (v) => short(v, 1) });
    this.volume = lines("Volume throughput", [{ label: "Read", color: "--c1" }, { label: "Write", color: "--c2" }], { format: (v) => `${bytes(v)}/s` });
    this.pressure = h("ul.list");
    this.pressures = table("Pressure on the queues", [
      { label: "Queue", cell: (row) => words(row.queue) },
      { label: "Rows", numeric: true, cell: (row) => count(row.backlog), tip: WAITING },
      { label: "Warning", numeric: true, cell: (row) => count(row.threshold_warning), tip: "Rows from which it warns. Source: settings." },
      { label: "Critical", numeric: true, cell: (row) => count(row.threshold_critical), tip: "Rows at which the producer is paused. Source: settings." },
      { label: "Of critical", numeric: true, cell: (row) => (row.pressure_percent === null ? UNKNOWN : `${row.pressure_percent.toFixed(1)} %`), tip: "Backlog / critical threshold." },
      { label: "State", cell: (row) => h(`span.state.${row.status ?? "unknown"}`, {}, row.status ?? "unknown") },
    ]);
    this.workers = table("Live workers", [
      { label: "Stage", cell: (row) => row.stage },
      { label: "State", cell: (row) => h(`span.state.${row.state}`, {}, words(row.state)) },
      { label: "Rows/s", numeric: true, cell: (row) => count(row.rows_per_s), tip: `Since the heartbeat before. ${BEATS}` },
      { label: "Cores", numeric: true, cell: (row) => fixed(row.cpu_cores, 2), tip: `CPU seconds a second. ${BEATS}` },
      { label: "Memory", numeric: true, cell: (row) => bytes(row.rss_bytes), tip: `Resident memory. ${BEATS}` },
      { label: "Worker", cell: (row) => row.worker },
      { label: "Says", cell: (row) => row.last_error ?? row.detail },
    ], "No worker is known to be alive");
    this.space = h("dl.facts");
    this.whole = h("dl.facts");
    this.panels = {
      flow: panel("Flow", "Rows a second through each stage and rows that wait between them. A queue's bar is full at its critical threshold.", flow),
      latency: panel("Decision latency", "Ingest to decision of the rows counted in the last five seconds. Source: the ledger's histogram, buckets of 2 %.", this.latency),
      throughput: panel("Throughput", RATE, this.throughput),
      backlog: panel("Backlog", WAITING, this.backlog),
      volume: panel("Volume", `Bytes a second that all workers read and write, and space on the volume. ${BEATS}`, this.volume, this.space),
      pressure: panel("Back pressure", "Backlogs against their thresholds, and what to do.", this.pressures, this.pressure),
      workers: panel("Replicas", `One line a process. ${BEATS}`, this.whole, this.workers),
    };
    const spans = { flow: 12, throughput: 6, latency: 6, backlog: 6, volume: 6, pressure: 5, workers: 7 };
    root.append(h("div.grid", {}, ...Object.entries(spans).map(([name, columns]) => {
      this.panels[name].classList.add(`w${columns}`);
      return this.panels[name];
    })));
  }

  /** Samples from before this page was opened. */
  seed(history) {
    for (const name of COLUMNS) this.history[name] = [...history[name]];
    this.epoch = history.epoch;
    this.#draw();
  }

  /** Called with every message, whichever tab is open. */
  keep({ sample }) {
    if (!sample) return;
    if (sample.epoch !== this.epoch) {
      this.epoch = sample.epoch;
      for (const name of COLUMNS) this.history[name] = [];
    }
    if (sample.time <= (this.history.time.at(-1) ?? 0)) return;
    for (const name of COLUMNS) {
      this.history[name].push(sample[name]);
      if (this.history[name].length > LIMIT) this.history[name].shift();
    }
  }

  show({ dashboard, pressure, sample }) {
    if (!dashboard) return;
    this.#flow(dashboard, pressure, sample);
    this.#draw();
    const disk = dashboard.flashblade;
    this.space.replaceChildren(
      fact("Read", disk.read_bytes_per_s === null ? UNKNOWN : `${bytes(disk.read_bytes_per_s)}/s`, `Bytes that workers read from storage. ${BEATS}`),
      fact("Write", disk.write_bytes_per_s === null ? UNKNOWN : `${bytes(disk.write_bytes_per_s)}/s`, `Bytes that workers write to storage. ${BEATS}`),
      fact("Utilisation", disk.util_percent === null ? "no maximum set" : `${disk.util_percent.toFixed(1)} %`, "KPI 17: measured bytes/s / FLASHBLADE_MAX_BYTES_PER_S"),
      fact("Free", disk.free_bytes === null ? UNKNOWN : `${bytes(disk.free_bytes)} of ${bytes(disk.total_bytes)}`, "Space on the volume. Source: statvfs."));
    this.whole.replaceChildren(
      fact("Up", seconds(dashboard.pipeline.uptime_seconds), `Since the longest-running worker started. ${BEATS}`),
      fact("CPU", dashboard.utilization.cpu_cores === null ? UNKNOWN : `${fixed(dashboard.utilization.cpu_cores, 2)} cores`, `Sum over workers. ${BEATS}`),
      fact("Memory", dashboard.utilization.ram_gb === null ? UNKNOWN : `${fixed(dashboard.utilization.ram_gb, 2)} GB, ${fixed(dashboard.utilization.ram_percent, 1)} %`, `Sum over workers, and its share of this host's. ${BEATS}`),
      fact("Peak", dashboard.throughput.peak === null ? UNKNOWN : `${short(dashboard.throughput.peak)} rows/s`, "The busiest minute's mean, or the rate now if higher. Source: the ledger."));
    this.workers.show(dashboard.workers ?? []);
    if (pressure) this.#pressure(pressure);
  }

  #flow(dashboard, pressure, sample) {
    for (const [key, one] of Object.entries(this.steps)) {
      const rate = key === "training" ? dashboard.model.matured_rows : sample?.[key];
      text(one.rate, short(rate, 2));
      const replicas = dashboard.pod_counts[key];
      text(one.replicas, replicas === null ? UNKNOWN : `${replicas} ${replicas === 1 ? "replica" : "replicas"}`);
      const states = (dashboard.workers ?? []).filter((worker) => worker.stage === one.stage).map((worker) => worker.state);
      const state = ["disk_low", "back_pressure", "no_model", "paused", "running", "starting", "idle", "stopped"].find((name) => states.includes(name)) ?? (replicas === null ? "unknown" : "absent");
      text(one.state, words(state));
      one.state.className = `state ${state}`;
    }
    for (const [key, one] of Object.entries(this.queues)) {
      const rows = dashboard.queue_backlogs[key];
      const limit = pressure?.queues[key];
      text(one.rows, short(rows));
      one.fill.style.width = limit && rows !== null ? `${Math.min(100, limit.pressure_percent)}%` : "0%";
      one.element.className = `queue ${limit?.status ?? ""}`;
      tip(one.element, limit ? `${count(rows)} rows of ${count(limit.threshold_critical)} at which it is critical. ${WAITING}` : `${count(rows)} rows, a bounded sample. ${WAITING}`);
    }
    text(this.ledger.total, short(dashboard.business_metrics.total_transactions));
    text(this.ledger.flagged, `${short(dashboard.business_metrics.fraud_detected)} flagged`);
    const age = dashboard.status.ledger_age_seconds;
    text(this.ledger.age, age === null ? "none yet" : `${seconds(age)} old`);
    text(this.model, dashboard.model.version ?? "none yet");
    this.panels.flow.note(words(dashboard.pipeline.status) + (dashboard.pipeline.current_stage ? `, rows reach ${dashboard.pipeline.current_stage}` : ""));
  }

  #draw() {
    const { history } = this;
    const pick = (...names) => names.map((name) => history[name]);
    this.throughput.show(pick("time", "generation", "preprocessing", "inference"));
    this.latency.show(pick("time", "p50_ms", "p95_ms", "p99_ms"));
    this.backlog.show(pick("time", "raw_transactions", "features_ready", "inference_results"));
    this.volume.show(pick("time", "read_bytes", "write_bytes"));
    this.throughput.label(`Now ${short(history.inference.at(-1))} rows a second scored`);
    this.latency.label(`Now p50 ${milliseconds(history.p50_ms.at(-1))}, p99 ${milliseconds(history.p99_ms.at(-1))}`);
    this.backlog.label(`Now ${count(history.features_ready.at(-1))} features ready`);
    this.volume.label(`Now ${bytes(history.write_bytes.at(-1))} a second written`);
  }

  #pressure(pressure) {
    this.panels.pressure.note(pressure.overall_pressure ?? "unknown");
    this.pressures.show(Object.entries(pressure.queues).map(([queue, row]) => ({ queue, ...row })));
    const wanted = pressure.recommended_replicas;
    const said = [...pressure.alerts.map((alert) => h(`li.${alert.severity}`, {}, alert.message)), ...pressure.recommendations.map((line) => h("li", {}, line))];
    const replicas = Object.entries(wanted).filter(([, number]) => number !== null).map(([step, number]) => `${step} ${number}`).join(", ");
    const measured = replicas ? `Replicas that would keep up: ${replicas}.` : "Replicas are recommended once rates are measured.";
    this.pressure.replaceChildren(...said, h("li", { data: { tip: "(arrivals + backlog / 60 s) / (0.8 × rows a replica does for each core-second it used). Source: heartbeats and the queue." } }, measured));
  }
}

const fact = (name, value, about) => h("div", { data: { tip: about } }, h("dt", {}, name), h("dd", {}, value));
