/* One tooltip for the page: whatever is hovered or focused inside an element with data-tip shows that text. */

import { h } from "./dom.js";

const bubble = h("div.tip", { role: "tooltip", id: "tip", hidden: true });
let owner = null;

export function start() {
  document.body.append(bubble);
  document.addEventListener("pointerover", (event) => show(event.target.closest?.("[data-tip]")));
  document.addEventListener("focusin", (event) => show(event.target.closest?.("[data-tip]")));
  document.addEventListener("focusout", hide);
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest("[data-tip]")) hide(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("scroll", hide, true);
}

function show(element) {
  if (element === owner) return;
  hide();
  if (!element?.dataset.tip) return;
  owner = element;
  bubble.textContent = element.dataset.tip;
  bubble.hidden = false;
  if (!element.matches(".info")) element.setAttribute("aria-describedby", "tip");
  const target = element.getBoundingClientRect();
  const size = bubble.getBoundingClientRect();
  const left = Math.min(Math.max(8, target.left), document.documentElement.clientWidth - size.width - 8);
  const below = target.bottom + 6;
  const top = below + size.height > window.innerHeight ? target.top - size.height - 6 : below;
  bubble.style.left = `${left}px`;
  bubble.style.top = `${Math.max(4, top)}px`;
}

function hide() {
  owner?.removeAttribute("aria-describedby");
  owner = null;
  bubble.hidden = true;
}
