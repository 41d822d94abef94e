/* Line charts (uPlot) in the page's colours and type, and small bar charts. */

import uPlot from "/static/vendor/uplot/uPlot.esm.js";
import { h, s, tip } from "./dom.js";

const charts = new Set();
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rem = () => parseFloat(getComputedStyle(document.documentElement).fontSize);

/**
 * A line chart. series: [{label, color: "--c1", format}], x "time" or "number".
 * show([xs, ys, …]) draws; label(text) tells screen readers what it shows.
 */
export function lines(title, series, { x = "time", xLabel = "Time", height = 13, format = String, xFormat = hours, yRange } = {}) {
  const frame = h("div.chart");
  const blank = h("p.blank", {}, "No data yet");
  const element = h("figure", { role: "img", "aria-label": title }, frame, blank);
  let plot = null;
  let shown = null;

  const make = () => {
    plot?.destroy();
    const font = `${0.72 * rem()}px ${style("--font")}`;
    const axis = { stroke: style("--muted"), font, grid: { stroke: style("--grid"), width: 1 }, ticks: { show: false } };
    plot = new uPlot({
      width: Math.max(120, frame.clientWidth), height: height * rem(), padding: [0.5 * rem(), 1.6 * rem(), 0, 0],
      cursor: { points: { size: 6 }, drag: { x: false, y: false } },
      scales: { x: { time: x === "time", range: x === "time" ? moments : undefined }, y: yRange ? { range: yRange } : { range: (_, low, high) => [Math.min(0, low), high > 0 ? high * 1.08 : 1] } },
      axes: [
        { ...axis, grid: { show: false }, size: 1.8 * rem(), space: 5.5 * rem(), values: (_, ticks) => once(ticks.map((tick) => xFormat(tick, ticks[1] - ticks[0] < 60))) },
        { ...axis, size: 4 * rem(), values: (_, ticks) => once(ticks.map(format)) },
      ],
      series: [
        { label: xLabel, value: (_, v) => (v === null || v === undefined ? "–" : xFormat(v, true)) },
        ...series.map((one) => ({
          label: one.label, stroke: style(one.color), width: 1.6, spanGaps: false, dash: one.dash, points: { show: one.points ?? false, size: 6 },
          value: (_, v) => (v === null || v === undefined ? "–" : (one.format ?? format)(v)),
        })),
      ],
    }, shown, frame);
  };

  const observer = new ResizeObserver(() => {
    if (plot && frame.clientWidth) plot.setSize({ width: frame.clientWidth, height: height * rem() });
    else if (shown && frame.clientWidth) make();
  });
  observer.observe(frame);
  charts.add(() => { if (plot) make(); });
  element.show = (data) => {
    const some = data[0].length > 0 && data.slice(1).some((column) => column.some((value) => value !== null));
    blank.hidden = some;
    frame.hidden = !some;
    if (!some) return;
    shown = data;
    if (plot) plot.setData(data);
    else if (frame.clientWidth) make();
    if (plot && !(plot.cursor.left >= 0)) plot.setLegend({ idx: data[0].length - 1 }); // the newest, unless one is pointed at
  };
  element.label = (value) => element.setAttribute("aria-label", `${title}. ${value}`);
  return element;
}

/** From the first moment to the last; about a single one a minute, where uPlot would show a day. */
function moments(plot, low, high) {
  const [first, last] = [plot.data[0][0], plot.data[0].at(-1)];
  return last - first < 1 ? [first - 30, last + 30] : [low, high];
}

/** Labels of an axis, a repeated one left out: a scale from 0 to 1 has no whole numbers between. */
const once = (labels) => labels.map((label, index) => (label === labels[index - 1] ? "" : label));

function hours(seconds, exact = false) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB", exact ? {} : { hour: "2-digit", minute: "2-digit" });
}

/** Draw all charts anew: colours or sizes have changed. */
export function redraw() {
  for (const again of charts) again();
}

/** Vertical bars. show([{label, value, height 0..1, hot, tip}]); marker: 0..1 along the axis, with a label. */
export function bars(title, { ticks = [] } = {}) {
  const plot = h("div.bars");
  const marker = h("div.marker", { hidden: true }, h("span"));
  const scale = h("div.bar-ticks", {}, ...ticks.map((label) => h("span", {}, label)));
  const blank = h("p.blank", {}, "No data yet");
  const element = h("figure", { role: "img", "aria-label": title }, h("div.bar-frame", {}, plot, marker), scale, blank);
  element.show = (rows) => {
    blank.hidden = rows.length > 0;
    while (plot.children.length > rows.length) plot.lastChild.remove();
    rows.forEach((row, index) => {
      const bar = plot.children[index] ?? plot.appendChild(h("div.bar", {}, h("i")));
      bar.classList.toggle("hot", Boolean(row.hot));
      bar.firstChild.style.height = `${Math.max(row.value > 0 ? 1.5 : 0, row.height * 100)}%`;
      tip(bar, row.tip);
    });
  };
  element.mark = (position, label) => {
    marker.hidden = position === null;
    if (position === null) return;
    marker.style.left = `${position * 100}%`;
    marker.firstChild.textContent = label;
  };
  element.label = (value) => element.setAttribute("aria-label", `${title}. ${value}`);
  return element;
}

/** A sparkline that keeps its own last values. */
export function spark(limit = 120) {
  const line = s("polyline", { points: "" });
  const element = s("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" }, line);
  let values = [];
  element.push = (value) => {
    if (!Number.isFinite(value)) return;
    values = [...values, value].slice(-limit);
    if (values.length < 2) return;
    const low = Math.min(...values);
    const span = Math.max(...values) - low;
    line.setAttribute("points", values.map((v, i) =>
      `${(i / (values.length - 1) * 100).toFixed(2)},${(span ? 22 - (v - low) / span * 20 : 12).toFixed(2)}`).join(" "));
  };
  element.clear = () => { values = []; line.setAttribute("points", ""); };
  return element;
}

/** A horizontal share bar for table cells. */
export function share(value, hot = false) {
  return h("div.share", { "aria-hidden": "true" }, h(hot ? "i.hot" : "i", { style: { width: `${Math.max(0, Math.min(100, value))}%` } }));
}
