/* The Model tab. */

import { lines, share } from "./chart.js";
import { Calibration, Drift, Duel, Labels } from "./trust.js";
import { h, panel, table, text } from "./dom.js";
import { UNKNOWN, clock, count, fixed, percent, seconds, short, shortMoney, words } from "./format.js";

const TEST = "On the test part: event time later than all that the model was trained on, weighted to all rows.";
const FILES = "Source: the version's own files in models/.";

export class ModelView {
  sections = "model_details,business";

  constructor(root) {
    this.cards = h("div.cards");
    this.progress = h("div.progress", { hidden: true }, h("p"), h("div.meter", {}, h("i")));
    this.curve = lines("Precision and recall", [{ label: "Precision", color: "--c1" }], { x: "number", xLabel: "Recall", format: (v) => v.toFixed(2), xFormat: (v) => v.toFixed(2), yRange: [0, 1.02] });
    this.loss = lines("Log loss by tree", [{ label: "Training", color: "--c2" }, { label: "Validation", color: "--c4" }], { x: "number", xLabel: "Tree", format: (v) => v.toFixed(3), xFormat: (v) => v.toFixed(0) });
    this.overTime = lines("Precision and recall over time", [
      { label: "Average precision", color: "--c1", points: true }, { label: "Precision", color: "--c2", points: true }, { label: "Recall", color: "--c3", points: true },
    ], { format: (v) => v.toFixed(2), yRange: [0, 1.02] });
    this.thresholds = table("What each threshold would do", [
      { label: "Threshold", numeric: true, cell: (row) => row.threshold.toFixed(2) },
      { label: "", cell: (row) => (row.best ? h("span.state.best", {}, "lowest cost") : row.operating ? "in force" : ""), tip: "In force: what decides now. Lowest cost: where the cost beside it is least." },
      { label: "Precision", numeric: true, cell: (row) => percent(row.precision), tip: `TP / (TP + FP). ${TEST}` },
      { label: "Recall", numeric: true, cell: (row) => percent(row.recall), tip: `TP / (TP + FN). ${TEST}` },
      { label: "Alerts per 1 M", numeric: true, cell: (row) => count(row.alerts_per_million), tip: `Flagged / rows × 10⁶. ${TEST}` },
      { label: "Caught", numeric: true, cell: (row) => shortMoney(row.fraud_dollars_caught), tip: `Σ amount of frauds flagged. ${TEST}` },
      { label: "Missed", numeric: true, cell: (row) => shortMoney(row.fraud_dollars_missed), tip: `Σ amount of frauds not flagged. ${TEST}` },
      { label: "Cost", numeric: true, cell: (row) => shortMoney(row.cost), tip: `$ per million transactions: alerts × cost of an alert + amounts missed × share lost (settings). ${TEST}` },
    ], "The model in service has no threshold table");
    this.importances = table("Feature importances", [
      { label: "Feature", cell: (row) => words(row.feature) },
      { label: "", cell: (row) => share(row.bar) },
      { label: "Gain", numeric: true, cell: (row) => percent(row.share), tip: `Share of the total gain of all splits. ${FILES}` },
    ], "The model in service tells no importances");
    this.scenarios = table("Average precision by scenario", [
      { label: "Scenario", cell: (row) => words(row.name) },
      { label: "", cell: (row) => share((row.value ?? 0) * 100) },
      { label: "Average precision", numeric: true, cell: (row) => fixed(row.value, 3), tip: `Of finding this scenario's frauds among all genuine rows. ${TEST}` },
    ], "No scenarios are known of this traffic");
    this.versions = table("Versions", [
      { label: "Version", cell: (row) => (row.in_service ? h("span.state.running", {}, row.version) : row.version) },
      { label: "Made", cell: (row) => clock(row.made_at), tip: "When it was put on the volume." },
      { label: "Average precision", numeric: true, cell: (row) => fixed(row.average_precision, 3), tip: TEST },
      { label: "AUC", numeric: true, cell: (row) => fixed(row.auc, 4), tip: TEST },
      { label: "Log loss", numeric: true, cell: (row) => fixed(row.logloss, 4), tip: TEST },
      { label: "Rows", numeric: true, cell: (row) => count(row.rows), tip: `Rows in the training sample. ${FILES}` },
      { label: "Took", numeric: true, cell: (row) => (row.train_seconds === null ? UNKNOWN : `${row.train_seconds.toFixed(1)} s`), tip: `Time of the training. ${FILES}` },
      { label: "Went into service", cell: (row) => (row.promoted === null ? UNKNOWN : row.promoted ? "yes" : "no: not better") },
    ], "No model yet");
    this.trust = { duel: new Duel(), drift: new Drift(), calibration: new Calibration(), labels: new Labels() };
    this.panels = {
      ...Object.fromEntries(Object.entries(this.trust).map(([name, view]) => [name, view.panel])),
      overTime: panel("Precision and recall over time", `Of each version, at the threshold in force. ${TEST}`, this.overTime),
      curve: panel("Precision–recall curve", `Precision at each recall of the model in service. ${TEST}`, this.curve),
      loss: panel("Loss", `Mean log loss as trees are added, on the training and on the validation part. ${FILES}`, this.loss),
      thresholds: panel("Thresholds", TEST, this.thresholds),
      importances: panel("Importances", `Share of the total gain, largest first. ${FILES}`, this.importances),
      scenarios: panel("Scenarios", `How well each kind of fraud is found. ${TEST}`, this.scenarios),
      versions: panel("Versions", `Newest first. ${FILES}`, this.versions),
    };
    const spans = {
      duel: 6, labels: 6, calibration: 6, curve: 6, overTime: 6, loss: 6, importances: 5, thresholds: 7, scenarios: 6, drift: 6, versions: 12,
    };
    root.append(this.progress, this.cards, h("div.grid", {}, ...Object.entries(spans).map(([name, columns]) => {
      this.panels[name].classList.add(`w${columns}`);
      return this.panels[name];
    })));
  }

  show({ model_details: model, business }) {
    if (!model) return;
    this.#progress(model.state);
    this.#cards(model, business);
    const versions = model.versions.filter((one) => one.made_at);
    this.overTime.show([versions.map((one) => Date.parse(one.made_at) / 1000), ...["average_precision", "precision", "recall"].map((key) => versions.map((one) => one[key]))]);
    this.panels.overTime.note(model.refresh_seconds === null ? "" : `a new version every ${seconds(model.refresh_seconds)}`);
    const points = [...model.pr_curve].sort((a, b) => a.recall - b.recall);
    this.curve.show([points.map((point) => point.recall), points.map((point) => point.precision)]);
    const padded = (values = []) => model.loss_trees.map((_, index) => values[index] ?? null);
    this.loss.show([model.loss_trees, padded(model.loss.train), padded(model.loss.valid)]);
    this.thresholds.show(shown(model.thresholds, business?.metadata.threshold, model.cost_optimal_threshold));
    for (const view of Object.values(this.trust)) view.show(model, business?.ml_details.labels);
    this.panels.scenarios.classList.toggle("w12", this.panels.drift.hidden);
    this.panels.scenarios.classList.toggle("w6", !this.panels.drift.hidden);
    const most = Math.max(...model.importances.map((row) => row.share), 1e-9);
    this.importances.show(model.importances.slice(0, 12).map((row) => ({ ...row, bar: row.share / most * 100 })));
    this.scenarios.show(Object.entries(model.by_scenario).map(([name, value]) => ({ name, value })));
    this.versions.show([...model.versions].reverse());
  }

  #progress(state) {
    this.progress.hidden = state.version !== null;
    text(this.progress.firstChild, sentence(state.progress ?? "Not known"));
    const part = state.needed_rows ? state.matured_rows / state.needed_rows : 0;
    this.progress.lastChild.firstChild.style.width = `${Math.min(100, part * 100)}%`;
  }

  #cards(model, business) {
    const now = model.in_service;
    const live = business?.ml_details;
    const shownCards = [
      ["In service", now?.version ?? "none yet", now ? `for ${seconds(now.age_seconds)}` : "", `The version that inference scores with. ${FILES}`],
      ["Average precision", fixed(now?.average_precision, 3), now?.stateless ? `${fixed(now.stateless.average_precision, 3)} without history` : "", `Mean precision over the recalls reached. ${TEST} ${FILES}`],
      ["AUC", fixed(now?.auc, 4), now?.stateless ? `${fixed(now.stateless.auc, 4)} without history` : "", `Area under the ROC curve. ${TEST} ${FILES}`],
      ["Log loss", fixed(now?.logloss, 4), now?.trees ? `${now.trees} trees` : "", `Mean log loss. ${TEST} ${FILES}`],
      ["Live precision", percent(live?.precision ?? null), live?.precision == null ? "no matured labels out of sample" : "out of sample", "TP / (TP + FP) of decisions made, over matured labels of event time after the model's training. Source: the ledger."],
      ["Live recall", percent(live?.recall ?? null), live ? `${short(live.labels.pending)} labels pending` : "", "TP / (TP + FN) of decisions made, likewise. Source: the ledger."],
      ["Trained on", now ? `${short(now.rows)} rows` : UNKNOWN, now ? `${count(now.frauds)} frauds` : "", `Rows of the training sample. ${FILES}`],
      ["Fraud in test", percent(now?.test_base_rate ?? null), "what chance would reach", `Share of fraud in the test part: the average precision of a random order. ${FILES}`],
    ];
    if (!this.cards.children.length) {
      this.cards.append(...shownCards.map(() => h("article.card", { tabindex: "0" }, h("span.name"), h("strong"), h("span.sub"))));
    }
    shownCards.forEach(([name, value, note, about], index) => {
      const card = this.cards.children[index];
      text(card.children[0], name);
      text(card.children[1], value);
      text(card.children[2], note);
      card.classList.toggle("unknown", value === UNKNOWN);
      card.dataset.tip = about;
    });
  }
}

/** Every tenth, the operating point and the one of lowest cost. */
function shown(rows, operating, best) {
  return rows
    .map((row) => ({ ...row, operating: row.threshold === operating, best: row.threshold === best }))
    .filter((row) => Math.abs(row.threshold * 10 - Math.round(row.threshold * 10)) < 1e-9 || row.operating || row.best)
    .map((row) => ({ ...row, className: row.operating ? "current" : "" }));
}

const sentence = (line) => line.charAt(0).toUpperCase() + line.slice(1);
