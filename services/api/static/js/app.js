/* Puts the page together: tabs, theme, the feed, and how much the numbers can be trusted right now. */

import { Business } from "./business.js";
import { redraw } from "./chart.js";
import { Control } from "./control.js";
import { h, text, tip } from "./dom.js";
import { Feed } from "./feed.js";
import { UNKNOWN, clock, seconds, short, words } from "./format.js";
import { ModelView } from "./model.js";
import { Pipeline } from "./pipeline.js";
import { start as startTips } from "./tip.js";

const NAMES = ["business", "pipeline", "model", "control"];
const STALE_SECONDS = 10;
const HEADLINES = {
  starting: "Starting", no_model: "No model yet", stopped: "Stopped", degraded: "Degraded", unavailable: "No data can be read",
};
const $ = (id) => document.getElementById(id);
const views = { business: Business, pipeline: Pipeline, model: ModelView, control: Control };
const made = {};
let current = null;
let last = null;
let connection = { connected: false, retryAt: null, ever: false };

// Vitals in the header

const vitals = {
  state: h("span.pill", { tabindex: "0" }, "Connecting"),
  rate: h("span.vital", { data: { tip: "Transactions scored and counted a second, over the last five seconds. Source: the ledger." } }),
  latency: h("span.vital", { data: { tip: "99th percentile of ingest to decision, of the rows counted in the last five seconds. Source: the ledger." } }),
  model: h("span.vital", { data: { tip: "The model in service. Source: models/current." } }),
};
$("vitals").append(...Object.values(vitals));

function showVitals(message) {
  vital(vitals.rate, short(message.throughput.current, 2), "tx/s");
  const p99 = message.latency_ms.recent.p99;
  vital(vitals.latency, p99 === null ? UNKNOWN : short(p99), "ms p99");
  vital(vitals.model, message.model.version ?? "none", "model");
}

function vital(element, value, unit) {
  if (!element.firstChild) element.append(h("b"), h("small"));
  text(element.firstChild, value);
  text(element.lastChild, unit);
}

// How much the numbers can be trusted

function trust() {
  const notice = $("notice");
  const { kind, head, lines } = judge();
  document.body.dataset.trust = kind;
  text(vitals.state, kind === "ok" ? "Live" : head);
  vitals.state.className = `pill ${kind}`;
  tip(vitals.state, kind === "ok" ? "Connected; the numbers are those of the last second." : lines.join(" ") || head);
  const shown = kind === "ok" ? "" : [head, ...lines].join("\n");
  if (notice.dataset.shown === shown) return;
  notice.dataset.shown = shown;
  notice.className = `notice ${kind}`;
  notice.replaceChildren(...(shown ? [h("strong", {}, head), ...lines.map((line) => h("span", {}, line))] : []));
}

function judge() {
  if (!connection.connected) {
    const wait = connection.retryAt ? Math.max(0, Math.ceil((connection.retryAt - Date.now()) / 1000)) : null;
    if (!connection.ever) return { kind: "loading", head: "Connecting", lines: wait === null ? [] : ["The api can't be reached; trying again."] };
    return { kind: "error", head: "Connection lost", lines: [`The numbers are those of ${clock(last?.timestamp)}; trying again.`] };
  }
  const status = last?.status;
  if (!status) return { kind: "loading", head: "Connecting", lines: [] };
  if (status.state !== "ok") {
    const kind = { unavailable: "error", degraded: "stale", stopped: "stale" }[status.state] ?? "empty";
    const head = HEADLINES[status.state];
    const lines = status.reasons.map((line) => `${line.charAt(0).toUpperCase()}${line.slice(1)}.`);
    return { kind, head, lines: lines.map((line) => (line.startsWith(`${head}: `) ? line.slice(head.length + 2) : line)) };
  }
  if (status.data_age_seconds !== null && status.data_age_seconds > STALE_SECONDS) {
    return { kind: "stale", head: `No data for ${seconds(status.data_age_seconds)}`, lines: ["No transaction was decided since then."] };
  }
  return { kind: "ok", head: "", lines: [] };
}

// Tabs

function open(name, focus = false) {
  current = NAMES.includes(name) ? name : "business";
  for (const one of NAMES) {
    const tab = $(`tab-${one}`);
    tab.setAttribute("aria-selected", String(one === current));
    tab.tabIndex = one === current ? 0 : -1;
    $(`view-${one}`).hidden = one !== current;
  }
  if (focus) $(`tab-${current}`).focus();
  document.title = `${words(current)} · Spearhead`;
  feed.want(made[current].sections);
  if (last) made[current].show(last);
}

function onTabKey(event) {
  const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -NAMES.length, End: NAMES.length };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const index = NAMES.indexOf(current) + steps[event.key];
  const next = Math.abs(steps[event.key]) === 1 ? (index + NAMES.length) % NAMES.length : Math.max(0, Math.min(NAMES.length - 1, index));
  location.hash = NAMES[next];
  open(NAMES[next], true);
}

// Theme

const THEMES = ["auto", "light", "dark"];

function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  localStorage.setItem("spearhead-theme", name);
  text($("theme"), `Theme: ${name}`);
  redraw();
}

// Feed

const feed = new Feed(onMessage, (state) => {
  connection = { ...state, ever: connection.ever || state.connected };
  trust();
});

function onMessage(message) {
  last = { ...last, ...message };
  document.body.classList.add("loaded");
  showVitals(message);
  made.pipeline.keep(message);
  made[current].show(message);
  const business = message.business;
  if (business) text($("source"), `${business.metadata.data_source ?? "No ledger"} · ${clock(message.timestamp)}`);
  trust();
}

async function seed() {
  try {
    const answer = await fetch("/api/history");
    if (answer.ok) made.pipeline.seed(await answer.json());
  } catch { /* the feed tells that the api can't be reached, and brings new samples when it can */ }
}

startTips();
for (const name of NAMES) {
  made[name] = new views[name]($(`view-${name}`));
  $(`tab-${name}`).addEventListener("click", () => { location.hash = name; open(name); });
  $(`tab-${name}`).addEventListener("keydown", onTabKey);
}
$("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(localStorage.getItem("spearhead-theme") ?? "auto") + 1) % THEMES.length]));
theme(THEMES.includes(localStorage.getItem("spearhead-theme")) ? localStorage.getItem("spearhead-theme") : "auto");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.addEventListener("hashchange", () => open(location.hash.slice(1)));
await seed();
open(location.hash.slice(1));
setInterval(trust, 1_000);
