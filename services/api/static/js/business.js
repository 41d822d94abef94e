/* The Business tab. */

import { bars, share, spark } from "./chart.js";
import { h, panel, s, table, text, tip } from "./dom.js";
import { UNKNOWN, category, clock, count, fixed, milliseconds, money, percent, seconds, short, shortMoney, words } from "./format.js";
import { SAYS } from "./trust.js";

const LEDGER = "Source: the ledger, counted once per transaction since start or reset.";
const LABELS = "Source: the ledger; matured labels of event time that the model had not seen.";

/* The cards: [key, name until the data brings it, how to show the value, what null means]. Formulas and units come with the data. */
const HEROES = [
  ["fraud_exposure_identified", "Fraud exposure identified", shortMoney, "no data yet"],
  ["fraud_rate", "Fraud rate ($)", percent, "no transactions yet"],
  ["high_risk_flagged", "High-risk flagged", short, "no data yet"],
  ["transactions_analyzed", "Transactions analysed", short, "no data yet"],
  ["projected_annual_savings", "Annual savings", shortMoney, "needs some time to project from"],
];
const CARDS = [
  ["decision_latency_ms", "Decision latency", milliseconds, "no transactions yet"],
  ["precision", "Precision at threshold", percent, "no matured labels out of sample"],
  ["recall", "Recall", percent, "no matured labels out of sample"],
  ["false_positive_rate", "False positive rate", percent, "no matured labels out of sample"],
  ["alerts_per_million", "Alerts per 1 M", short, "no transactions yet"],
  ["high_risk_txn_rate", "High-risk transaction rate", percent, "no transactions yet"],
  ["risk_concentration", "Risk concentration", percent, "nothing flagged yet"],
  ["flashblade_util", "Volume utilisation", (value) => (value === null ? UNKNOWN : `${value.toFixed(1)} %`), "no maximum configured"],
];

/* States as squares about where they are: [row, column]. */
const TILES = {
  AK: [0, 0], ME: [0, 10], VT: [1, 9], NH: [1, 10], WA: [2, 0], ID: [2, 1], MT: [2, 2], ND: [2, 3], MN: [2, 4], IL: [2, 5],
  WI: [2, 6], MI: [2, 7], NY: [2, 8], RI: [2, 9], MA: [2, 10], OR: [3, 0], NV: [3, 1], WY: [3, 2], SD: [3, 3], IA: [3, 4],
  IN: [3, 5], OH: [3, 6], PA: [3, 7], NJ: [3, 8], CT: [3, 9], CA: [4, 0], UT: [4, 1], CO: [4, 2], NE: [4, 3], MO: [4, 4],
  KY: [4, 5], WV: [4, 6], VA: [4, 7], MD: [4, 8], DE: [4, 9], AZ: [5, 1], NM: [5, 2], KS: [5, 3], AR: [5, 4], TN: [5, 5],
  NC: [5, 6], SC: [5, 7], DC: [5, 8], OK: [6, 3], LA: [6, 4], MS: [6, 5], AL: [6, 6], GA: [6, 7], HI: [7, 0], TX: [7, 3],
  FL: [7, 7],
};

export class Business {
  sections = "business";

  constructor(root) {
    this.cards = new Map();
    const card = ([key, name, format, missing], hero) => {
      const one = { format, missing, value: h("strong", {}, UNKNOWN), name: h("span.name", {}, name), note: h("span.sub"), line: spark() };
      one.element = h(hero ? "article.card.hero" : "article.card", { tabindex: "0" }, one.name, one.value, one.note, one.line);
      this.cards.set(key, one);
      return one.element;
    };
    this.distribution = bars("Risk distribution", { ticks: ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"] });
    this.bands = h("dl.bands");
    this.velocity = bars("Fraud velocity", { ticks: ["29 min ago", "15", "now"] });
    this.categories = table("Flagged amount by category", [
      { label: "Category", cell: (row) => category(row.category) },
      { label: "", cell: (row) => share(row.score ?? 0) },
      { label: "Flagged", numeric: true, cell: (row) => money(row.amount), tip: `Σ amount of flagged transactions of the category. ${LEDGER}` },
      { label: "Alerts", numeric: true, cell: (row) => count(row.count), tip: `Count of flagged transactions of the category. ${LEDGER}` },
      { label: "Mean score", numeric: true, cell: (row) => fixed(row.avg_risk_score, 2), tip: `Mean risk score of the flagged ones. ${LEDGER}` },
    ], "Nothing has been scored yet");
    this.states = table("States by flagged amount", [
      { label: "#", numeric: true, cell: (row) => String(row.rank) },
      { label: "State", cell: (row) => row.state },
      { label: "Flagged", numeric: true, cell: (row) => money(row.fraud_amount), tip: `Σ amount of flagged transactions of the state. ${LEDGER}` },
      { label: "Alerts", numeric: true, cell: (row) => count(row.count), tip: `Count of flagged transactions of the state. ${LEDGER}` },
    ], "Nothing has been scored yet");
    this.map = new StateMap();
    this.signals = table("Newest flagged transactions", [
      { label: "Time", cell: (row) => clock(row.timestamp), tip: "When it was decided. Source: the result row." },
      { label: "Score", numeric: true, cell: (row) => score(row.risk_score), tip: "Risk score of the model, 0 to 1. Source: the result row." },
      { label: "Amount", numeric: true, cell: (row) => money(row.amount), tip: "Amount of the transaction. Source: the result row." },
      { label: "Why", cell: reasons, tip: "The three features that raised the score most (TreeSHAP), each with its value. A dash: more were flagged than REASONS_MAX_PER_S, the dearest come first; GET /api/transactions/{trans_num} has them. Source: the ledger." },
      { label: "Merchant", cell: (row) => row.merchant },
      { label: "Category", cell: (row) => category(row.category) },
      { label: "Card", cell: (row) => row.cc_num_masked, tip: "The last four digits; the number itself is nowhere on the volume." },
      { label: "Cardholder", cell: (row) => row.cardholder },
      { label: "State", cell: (row) => row.state },
      { label: "Age", numeric: true, cell: (row) => seconds(row.seconds_ago), tip: "Time since it was decided." },
    ], "Nothing flagged yet");
    this.concentration = { big: h("strong", {}, UNKNOWN), line: h("p"), meter: h("div.meter", { "aria-hidden": "true" }, h("i")), rows: h("dl.facts") };
    const panels = {
      distribution: panel("Risk distribution", `Count of transactions by risk score, 20 bins; bar heights on a logarithmic scale. ${LEDGER}`, this.distribution, this.bands),
      velocity: panel("Fraud velocity", `Flagged transactions per wall-clock minute, last 30 minutes. ${LEDGER}`, this.velocity),
      concentration: panel("Risk concentration", `Σ amount of the top 1 % of flagged by amount / Σ amount flagged, from a histogram with buckets of 1 %. ${LEDGER}`,
        h("div.focus", {}, this.concentration.big, this.concentration.meter), this.concentration.line, this.concentration.rows),
      signals: panel("Live risk signals", "The newest flagged transactions, card and name masked. Source: the ledger.", this.signals),
      categories: panel("Categories", `Flagged transactions by category, all of them. ${LEDGER}`, this.categories),
      states: panel("States", `Flagged amount by the card holder's state, all in the map and the top 8 in the table. ${LEDGER}`,
        h("div.split", {}, this.map.element, this.states)),
    };
    this.panels = panels;
    root.append(
      h("div.cards.heroes", {}, ...HEROES.map((one) => card(one, true))),
      h("div.cards", {}, ...CARDS.map((one) => card(one, false))),
      h("div.grid", {},
        wide(panels.distribution, 5), wide(panels.velocity, 4), wide(panels.concentration, 3),
        wide(panels.signals, 12), wide(panels.categories, 5), wide(panels.states, 7)));
  }

  show({ business }) {
    if (!business) return;
    if (business.status.epoch !== this.epoch) {
      this.epoch = business.status.epoch;
      for (const one of this.cards.values()) one.line.clear();
    }
    for (const kpi of business.kpis) this.#card(kpi, business);
    this.#distribution(business);
    this.#velocity(business.fraud_velocity);
    this.#concentration(business);
    this.signals.show(business.recent_risk_signals);
    this.categories.show(business.risk_signals_by_category);
    this.states.show(business.state_risk);
    this.map.show(business.state_risk_all);
  }

  #card(kpi, business) {
    const one = this.cards.get(kpi.key);
    if (!one) return;
    text(one.name, kpi.name);
    text(one.value, one.format(kpi.value));
    one.element.classList.toggle("unknown", kpi.value === null);
    text(one.note, kpi.value === null ? one.missing : this.#note(kpi, business));
    tip(one.element, `KPI ${kpi.id}: ${kpi.formula}. ${exact(kpi)} ${/precision|recall|positive/.test(kpi.key) ? LABELS : kpi.key === "flashblade_util" ? "Source: workers' heartbeats." : LEDGER}`);
    one.line.push(kpi.value);
  }

  #note(kpi, business) {
    const labels = business.ml_details.labels;
    switch (kpi.key) {
      case "decision_latency_ms": return `mean · p50 ${milliseconds(kpi.details.p50)} · p99 ${milliseconds(kpi.details.p99)}`;
      case "precision": return `${count(labels.true_positives)} of ${count(labels.true_positives + labels.false_positives)} alerts`;
      case "recall": return `${count(labels.true_positives)} of ${count(labels.true_positives + labels.false_negatives)} frauds`;
      case "false_positive_rate": return `${short(labels.pending)} labels pending`;
      case "transactions_analyzed": return `${shortMoney(business.metadata.total_amount)} in all`;
      case "high_risk_flagged": return `score ≥ ${business.metadata.threshold}`;
      case "fraud_exposure_identified": return "flagged amount";
      case "fraud_rate": return "of all dollars are flagged";
      case "projected_annual_savings": return `at the pace of ${seconds(business.metadata.elapsed_hours * 3600)}`;
      case "high_risk_txn_rate": return "of all transactions are flagged";
      case "alerts_per_million": return "transactions";
      case "risk_concentration": return "of flagged dollars in the top 1 %";
      default: return "";
    }
  }

  #distribution(business) {
    const rows = business.risk_score_distribution;
    const tallest = Math.log1p(Math.max(1, ...rows.map((row) => row.count)));
    this.distribution.show(rows.map((row) => ({
      value: row.count, height: Math.log1p(row.count) / tallest, hot: Number(row.bin.slice(0, 4)) + 0.025 >= business.metadata.threshold,
      tip: `Score ${row.bin}: ${count(row.count)} transactions, ${percent(row.percentage / 100)}`,
    })));
    this.distribution.mark(rows.length ? business.metadata.threshold : null, `threshold ${business.metadata.threshold}`);
    const { status } = business.ml_details.drift;
    this.panels.distribution.note(rows.length ? `heights are logarithmic${status ? ` · traffic ${SAYS[status]}` : ""}` : "");
    const bands = business.risk_bands;
    const total = business.metadata.total_transactions;
    this.distribution.label(bands ? `Low ${bands.low}, medium ${bands.medium}, high ${bands.high}` : "Nothing known yet");
    const ranges = { low: "below 0.6", medium: "0.6 to 0.9", high: "from 0.9" };
    this.bands.replaceChildren(...(bands ? Object.entries(bands).map(([band, value]) =>
      h("div", { class: band, data: { tip: `Transactions with a score ${ranges[band]}: ${count(value)}. ${LEDGER}` } },
        h("dt", {}, words(band)), h("dd", {}, short(value), h("small", {}, ` ${percent(total ? value / total : null)}`)))) : []));
  }

  #velocity(rows) {
    const tallest = Math.max(1, ...rows.map((row) => row.count));
    this.velocity.show(rows.map((row) => ({
      value: row.count, height: row.count / tallest, hot: false, tip: `${clock(row.timestamp)} (${row.time}): ${count(row.count)} flagged`,
    })));
    const sum = rows.reduce((total, row) => total + row.count, 0);
    this.panels.velocity.note(rows.length ? `${count(sum)} in 30 min, busiest minute ${count(tallest)}` : "");
    this.velocity.label(`${sum} flagged in 30 minutes`);
  }

  #concentration(business) {
    const found = business.risk_concentration;
    const part = found.concentration_percentage;
    text(this.concentration.big, part === null ? UNKNOWN : `${part.toFixed(1)} %`);
    this.concentration.meter.firstChild.style.width = `${part ?? 0}%`;
    text(this.concentration.line, found.pattern_alert ?? (part === null ? "Nothing flagged yet" : "No concentration pattern: the dearest 1 % hold less than a tenth of flagged dollars"));
    this.concentration.line.className = found.pattern_alert ? "pattern alert" : "pattern";
    this.concentration.rows.replaceChildren(
      fact("Top 1 %", count(found.top_1_percent_txns), "Flagged transactions in the top 1 % by amount, rounded up"),
      fact("Their amount", money(found.top_1_percent_fraud_amount), "Within 1 %: from a histogram"),
      fact("All flagged", money(found.total_fraud_amount), "Exact to the cent"));
  }
}

class StateMap {
  constructor() {
    this.tiles = new Map();
    const size = 10;
    const drawing = s("svg", { viewBox: `0 0 ${11 * size} ${8 * size}`, class: "map", "aria-hidden": "true" });
    for (const [state, [row, column]] of Object.entries(TILES)) {
      const box = s("rect", { x: column * size + 0.4, y: row * size + 0.4, width: size - 0.8, height: size - 0.8, rx: 1.4 });
      const name = s("text", { x: column * size + size / 2, y: row * size + size / 2 + 1.2 });
      name.textContent = state;
      const tile = s("g", { class: "tile" }, box, name);
      this.tiles.set(state, tile);
      drawing.append(tile);
    }
    this.element = h("div.map-frame", {}, drawing);
  }

  show(rows) {
    const most = Math.max(0, ...rows.map((row) => row.fraud_amount));
    const byState = new Map(rows.map((row) => [row.state, row]));
    for (const [state, tile] of this.tiles) {
      const row = byState.get(state);
      const level = row && most ? Math.ceil(Math.sqrt(row.fraud_amount / most) * 5) : 0;
      tile.setAttribute("class", `tile level-${level}`);
      tip(tile, row ? `${state}: ${money(row.fraud_amount)} flagged, ${count(row.count)} alerts of ${count(row.transactions)} transactions (rank ${row.rank})` : `${state}: no transactions`);
    }
  }
}

function exact(kpi) {
  if (kpi.value === null) return "";
  if (kpi.unit.startsWith("USD")) return `Now ${money(kpi.value)}.`;
  if (kpi.unit === "ratio") return `Now ${kpi.value.toPrecision(6)}.`;
  return `Now ${kpi.value.toLocaleString("en-US", { maximumFractionDigits: 3 })} ${kpi.unit}.`;
}

const wide = (element, columns) => { element.classList.add(`w${columns}`); return element; };
const fact = (name, value, about) => h("div", { data: { tip: about } }, h("dt", {}, name), h("dd", {}, value));

/** Why it was flagged, in words, the weightiest first. */
function reasons(row) {
  if (!row.reasons?.length) return UNKNOWN;
  return h("ol.reasons", {}, ...row.reasons.map((one) => h("li", {
    data: { tip: `${words(one.feature)} is ${number(one.value)}; adds ${number(one.contribution)} to the log-odds of fraud. ${one.code}` },
  }, one.text)));
}

const number = (value) => (value === null || value === undefined ? UNKNOWN : Number(value.toPrecision(4)).toLocaleString("en-US", { maximumFractionDigits: 4 }));

function score(value) {
  return h(value >= 0.9 ? "span.score.high" : value >= 0.6 ? "span.score.medium" : "span.score", {}, value.toFixed(3));
}
