/* The Control tab. The token stays in this browser tab: it is sent with orders and stored nowhere else. */

import { h, panel, text } from "./dom.js";
import { count, words } from "./format.js";

const KEY = "spearhead-token";

export class Control {
  sections = "";

  constructor(root) {
    this.token = h("input", { type: "password", id: "token", autocomplete: "off", spellcheck: false, value: sessionStorage.getItem(KEY) ?? "" });
    this.token.addEventListener("input", () => sessionStorage.setItem(KEY, this.token.value));
    this.now = h("dl.facts");
    this.rate = h("input", { type: "text", id: "rate", inputmode: "numeric", placeholder: "50000 or max", autocomplete: "off", required: true });
    this.outcome = h("p.outcome", { role: "status", "aria-live": "polite" });
    this.closed = h("p.pattern.alert", { hidden: true }, "Control is closed: no API_TOKEN is configured. Set it and restart the api.");
    this.start = h("button.primary", { type: "button", onclick: () => this.#order("start") }, "Start");
    this.stop = h("button", { type: "button", onclick: () => this.#order("stop") }, "Stop");
    const rate = h("form.row", { onsubmit: (event) => { event.preventDefault(); this.#throttle(this.rate.value.trim()); } },
      h("label", { for: "rate" }, "Rows a second"), this.rate, h("button.primary", { type: "submit" }, "Set rate"),
      h("button", { type: "button", onclick: () => this.#throttle("max") }, "Flat out"));
    this.priorities = ["inference", "balanced", "training"].map((name) => h("input", { type: "radio", name: "priority", id: `priority-${name}`, value: name, onchange: () => this.#order("priority", { priority: name }) }));
    const priority = h("fieldset.choice", {}, h("legend", {}, "Who has the right of way when cores are short"),
      ...this.priorities.map((input) => h("label", { for: input.id }, input, h("span", {}, words(input.value)))));
    this.dialog = h("dialog", { "aria-labelledby": "reset-title" }, h("form", { method: "dialog" },
      h("h2", { id: "reset-title" }, "Reset everything?"),
      h("p", {}, "Totals, charts, signals, queues and the history of every card are forgotten. Models stay. This can't be undone."),
      h("div.row", {}, h("button", { value: "no" }, "Keep"), h("button.danger", { value: "yes" }, "Reset"))));
    this.dialog.addEventListener("close", () => { if (this.dialog.returnValue === "yes") this.#order("reset"); this.dialog.returnValue = ""; });
    const reset = h("button.danger", { type: "button", onclick: () => this.dialog.showModal() }, "Reset…");
    const span = (element, columns) => { element.classList.add(`w${columns}`); return element; };
    root.append(this.closed, h("div.grid", {},
      span(panel("In force", "The orders that the stages obey within a second. Source: control/ on the volume.", this.now), 6),
      span(panel("Token", "The API_TOKEN of the api's settings. It is kept for this browser tab only.", h("div.row", {}, h("label", { for: "token" }, "Token"), this.token)), 6),
      span(panel("Run", "Stop idles the stages and loses nothing. Each order is written to logs/audit.jsonl.", h("div.row", {}, this.start, this.stop, reset)), 6),
      span(panel("Rate", "Rows a second of the generator or replay; a number of 0 or more, or max.", rate), 6),
      span(panel("Priority", "With inference, training uses fewer cores and waits while features wait.", priority), 6),
      span(panel("Outcome", "What became of the last order.", this.outcome), 6)), this.dialog);
    this.#say("No order given yet.", "");
  }

  show({ system_config: config, status }) {
    if (!config) return;
    this.closed.hidden = config.control_enabled;
    const rows = [
      ["State", config.running === null ? "unknown" : config.running ? "Working" : "Stopped"],
      ["Rate", config.generation_rate === "max" ? "flat out" : `${count(config.generation_rate)} rows/s`],
      ["Priority", config.system_priority ? words(config.system_priority) : "unknown"],
      ["Epoch", status.epoch === null ? "unknown" : String(status.epoch)],
    ];
    this.now.replaceChildren(...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    for (const input of this.priorities) {
      if (!this.busy) input.checked = input.value === config.system_priority;
    }
    this.stop.disabled = config.running === false;
    this.start.disabled = config.running === true;
  }

  #throttle(rate) {
    this.#order("throttle", { rate: rate === "" || Number.isNaN(Number(rate)) ? rate : Number(rate) });
  }

  async #order(path, body) {
    this.busy = true;
    try {
      const answer = await fetch(`/api/control/${path}`, {
        method: "POST",
        headers: { Authorization: `Bearer ${this.token.value}`, ...(body ? { "Content-Type": "application/json" } : {}) },
        body: body ? JSON.stringify(body) : undefined,
      });
      const said = await answer.json();
      const detail = said.error ?? said.message ?? Object.entries(body ?? {}).map(([name, value]) => `${name} ${value}`).join(", ");
      this.#say(`${words(path)}: ${typeof detail === "string" ? detail : answer.statusText}.`, answer.ok ? "good" : "bad");
    } catch {
      this.#say(`${words(path)}: the api can't be reached.`, "bad");
    } finally {
      this.busy = false;
    }
  }

  #say(line, kind) {
    text(this.outcome, line);
    this.outcome.className = `outcome ${kind}`;
  }
}
