/* Whether the model can be trusted: challenger, calibration, drift, and the labels that all of it rests on. */

import { lines } from "./chart.js";
import { h, panel, table, text, tip } from "./dom.js";
import { UNKNOWN, count, fixed, percent, short, words } from "./format.js";

const JUDGED = "Both judged on the latest matured event time that neither was fitted on. Source: the challenger's metrics.json.";
const TEST = "On the test part of the champion. Source: metrics.json of the version.";
const LEDGER = "Source: the ledger.";

/** The model in service beside the newest one that is not, and why it is not. */
export class Duel {
  constructor() {
    this.verdict = h("p.verdict");
    this.table = table("Champion and challenger", [
      { label: "", cell: (row) => row.name, className: "prose" },
      { label: "Champion", numeric: true, cell: (row) => row.champion },
      { label: "Challenger", numeric: true, cell: (row) => row.challenger },
    ], "No model yet");
    this.panel = panel("Champion and challenger",
      `A challenger goes into service only if its average precision is better by the margin and its calibration is not worse. ${JUDGED}`, this.verdict, this.table);
  }

  show({ champion, challenger }) {
    const verdict = challenger?.verdict;
    const rows = [
      ["Version", champion?.version, challenger?.version],
      ["Average precision, judged together", fixed(verdict?.champion_average_precision), fixed(verdict?.challenger_average_precision)],
      ["Calibration error, judged together", fixed(verdict?.champion_ece, 4), fixed(verdict?.challenger_ece, 4)],
      ["Average precision, own test part", fixed(champion?.average_precision), fixed(challenger?.average_precision)],
      ["Calibration error, own test part", fixed(champion?.ece, 4), fixed(challenger?.ece, 4)],
    ];
    this.table.show(champion || challenger ? rows.map(([name, one, other]) => ({ name, champion: one ?? UNKNOWN, challenger: other ?? UNKNOWN })) : []);
    this.verdict.hidden = !verdict;
    if (!verdict) {
      this.panel.note(champion ? "no challenger" : "");
      return;
    }
    this.verdict.replaceChildren(
      h(verdict.promoted ? "span.state.ok" : "span.state.shadow", {}, verdict.promoted ? "promoted" : "in the shadow"), ` ${verdict.reason ?? ""}`);
    this.panel.note(verdict.margin === null || verdict.margin === undefined ? ""
      : `margin ${fixed(verdict.margin)} · ${short(verdict.rows)} rows, ${count(verdict.frauds)} frauds`);
  }
}

/** Reliability: how often what was scored so turned out to be fraud. */
export class Calibration {
  constructor() {
    this.facts = h("dl.facts");
    this.plot = lines("Calibration", [
      { label: "Share of fraud", color: "--c1", points: true }, { label: "Perfect", color: "--muted", dash: [6, 4] },
    ], { x: "number", xLabel: "Mean score", format: (v) => v.toFixed(2), xFormat: (v) => v.toFixed(2), yRange: [0, 1.02] });
    this.bins = table("Reliability bins", [
      { label: "Score", cell: (row) => `${row.low.toFixed(2)} to ${row.high.toFixed(2)}` },
      { label: "Rows", numeric: true, cell: (row) => count(row.rows), tip: `Rows with a score in the bin. ${TEST}` },
      { label: "Frauds", numeric: true, cell: (row) => count(row.frauds), tip: `Frauds among them. ${TEST}` },
      { label: "Mean score", numeric: true, cell: (row) => fixed(row.mean_score), tip: `What the model says. ${TEST}` },
      { label: "Share of fraud", numeric: true, cell: (row) => fixed(row.fraud_rate), tip: `What came true. ${TEST}` },
    ], "The model in service has no reliability bins");
    this.panel = panel("Calibration", `Share of fraud by score: a score of 0.8 should be fraud in 8 of 10 cases. ECE: mean distance, weighted by rows. ${TEST}`,
      this.facts, this.plot, this.bins);
  }

  show({ calibration }) {
    const bins = (calibration?.bins ?? []).filter((bin) => bin.rows > 0 && bin.mean_score !== null);
    facts(this.facts, calibration ? [
      ["ECE", fixed(calibration.ece, 4), `Σ rows of bin / rows × |share of fraud − mean score|. ${TEST}`],
      ["Brier", fixed(calibration.brier, 4), `Mean of (score − label)². ${TEST}`],
      ["Slope", fixed(calibration.slope, 2), `Of the log-odds of fraud over those of the score; 1 is right, less is too sure. ${TEST}`],
      ["Intercept", fixed(calibration.intercept, 2), `At even odds; 0 is right. ${TEST}`],
    ] : []);
    const sorted = [...bins].sort((a, b) => a.mean_score - b.mean_score);
    this.plot.show([sorted.map((bin) => bin.mean_score), sorted.map((bin) => bin.fraud_rate), sorted.map((bin) => bin.mean_score)]);
    this.plot.label(`Expected calibration error ${fixed(calibration?.ece, 4)}`);
    this.bins.show(bins);
  }
}

/** Drift in a word. */
export const SAYS = { ok: "steady", warn: "shifting", alarm: "drifted" };

/** How far recent traffic is from what the champion was trained on. */
export class Drift {
  constructor() {
    this.facts = h("dl.facts");
    this.limits = { warn: 0.1, alarm: 0.25 };
    this.features = table("Features by PSI", [
      { label: "Feature", cell: (row) => words(row.feature) },
      { label: "", cell: (row) => gauge(row.psi, this.limits) },
      { label: "PSI", numeric: true, cell: (row) => fixed(row.psi), tip: "Population stability index of recent rows against the champion's training window: Σ (recent − reference) × ln(recent / reference) over bins. The marks are the limits of warning and alarm." },
      { label: "", cell: (row) => pill(row.status) },
    ], "Too few rows yet to compare with the training window");
    this.panel = panel("Drift", `Recent traffic against the champion's training window. PSI below the first mark is steady, above the second it is an alarm. ${LEDGER}`,
      this.facts, this.features);
  }

  show({ drift }) {
    this.panel.hidden = drift === undefined; // not measured: a panel that says so would say nothing
    this.limits = { warn: drift?.warn ?? 0.1, alarm: drift?.alarm ?? 0.25 };
    const { label_rate: labels, calibration } = drift ?? {};
    facts(this.facts, drift ? [
      ["Overall", pill(drift.status), "The worst of score, features, label rate and calibration."],
      ["Score PSI", fixed(drift.score_psi), "PSI of the risk score. Below the first limit it is steady."],
      ["Fraud rate", `${percent(labels?.recent)} (${times(labels?.ratio)})`, `Share of fraud among matured labels, ${count(labels?.rows)} of them, and how many times that of training, ${percent(labels?.reference)}; chance leaves it between ${times(labels?.low)} and ${times(labels?.high)}. ${LEDGER}`],
      ["Frauds over expected", times(calibration?.ratio), `Frauds found, ${count(calibration?.observed_frauds)}, over the sum of scores, ${fixed(calibration?.expected_frauds, 1)}, on ${count(calibration?.rows)} matured labels; chance leaves it between ${times(calibration?.low)} and ${times(calibration?.high)}. ${LEDGER}`],
    ] : []);
    const window = drift?.window;
    this.panel.note(window?.rows ? `${short(window.rows)} recent rows` : "");
    this.features.show((drift?.features ?? []).slice(0, 12));
  }
}

const times = (ratio) => (ratio === null || ratio === undefined ? UNKNOWN : `× ${ratio.toFixed(2)}`);
const pill = (status) => (status ? h(`span.state.${status}`, {}, SAYS[status] ?? status) : UNKNOWN);

/** PSI as a bar up to twice the alarm, with both limits marked. */
function gauge(psi, { warn, alarm }) {
  const place = (value) => `${Math.max(0, Math.min(100, value / (2 * alarm) * 100))}%`;
  const level = psi >= alarm ? "alarm" : psi >= warn ? "warn" : "ok";
  return h("div.share.gauge", { "aria-hidden": "true" },
    h(`i.${level}`, { style: { width: place(psi ?? 0) } }), h("b", { style: { left: place(warn) } }), h("b", { style: { left: place(alarm) } }));
}

const outOfSample = (labels) => (labels.true_positives === null ? null
  : labels.true_positives + labels.false_positives + labels.true_negatives + labels.false_negatives);

/** What is known of the truth: labels that matured, wait or never come, and feedback on live traffic. */
export class Labels {
  constructor() {
    this.labels = h("dl.facts");
    this.feedback = h("dl.facts");
    this.feedbackTitle = h("h3", {}, "Feedback on live traffic");
    this.reasons = h("dl.facts");
    this.panel = panel("Labels and reasons", `Truth that has come, and why transactions were flagged. ${LEDGER}`,
      h("h3", {}, "Labels"), this.labels, this.feedbackTitle, this.feedback, h("h3", {}, "Reasons"), this.reasons);
  }

  show({ labels, reasons_summary: reasons }, matured) {
    const feedback = labels?.feedback;
    labels ??= matured && { ...matured, out_of_sample: outOfSample(matured) };
    this.feedback.hidden = this.feedbackTitle.hidden = feedback === undefined;
    facts(this.labels, [
      ["Out of sample", count(labels?.out_of_sample), `Matured labels of event time after the training of the model that scored them: what precision and recall count. ${LEDGER}`],
      ["In sample", count(labels?.in_sample), `Matured labels of event time that model was trained on: counted apart. ${LEDGER}`],
      ["Pending", count(labels?.pending), `Labels that have not matured yet. ${LEDGER}`],
      ["Unlabelled", count(labels?.unlabelled), `Decisions on live traffic that no label has come for. ${LEDGER}`],
    ]);
    facts(this.feedback, [
      ["Received", count(feedback?.received), `Labels sent to POST /api/labels or dropped in raw-data/labels/ that were joined or given up. ${LEDGER}`],
      ["Applied", count(feedback?.applied), `Joined to a decision for the first time. ${LEDGER}`],
      ["Corrected", count(feedback?.corrected), `Changed a label that was there. ${LEDGER}`],
      ["Duplicate", count(feedback?.duplicate), `Said what was known. ${LEDGER}`],
      ["Unmatched", count(feedback?.unmatched), `Given up: no such decision was found. ${LEDGER}`],
      ["Waiting", count(feedback?.waiting), `Labels whose decision is not there yet. Source: raw-data/labels/.`],
    ]);
    facts(this.reasons, [
      ["Computed", count(reasons?.computed), `Flagged transactions whose reasons were computed in the stream. ${LEDGER}`],
      ["Deferred", count(reasons?.deferred), `Flagged transactions above the limit a second (REASONS_MAX_PER_S): a look-up computes their reasons. ${LEDGER}`],
      ["At look-up", count(reasons?.at_look_up), "Look-ups of deferred ones that computed reasons, each counted, since the API started. Source: heartbeats of the API."],
    ]);
  }
}

/** Name, value and formula; elements are kept, so that a tip on one survives. */
function facts(list, rows) {
  while (list.children.length > rows.length) list.lastChild.remove();
  rows.forEach(([name, value, about], index) => {
    const row = list.children[index] ?? list.appendChild(h("div", {}, h("dt"), h("dd")));
    text(row.firstChild, name);
    if (value instanceof Node) row.lastChild.replaceChildren(value);
    else if (row.lastChild.firstElementChild) row.lastChild.textContent = value;
    else text(row.lastChild, value);
    tip(row, about);
  });
}
