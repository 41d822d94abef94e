/* Building and updating elements. Text is set as text, never as markup; styles through the DOM, as the CSP wants. */

/** An element: h("div.card", {id: "x", onclick: f, data: {tip: "…"}}, "text", child). */
export function h(spec, props = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name === "data") Object.assign(element.dataset, value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An SVG element. */
export function s(tag, props = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Set text only when it changed: a tooltip or selection on it survives. */
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

export function tip(element, value) {
  if (element.dataset.tip !== value) element.dataset.tip = value;
}

/** A panel with a heading and, behind an "i", what its numbers are and where they come from. */
export function panel(title, about, ...children) {
  const heading = h("h2", {}, title);
  const info = h("button.info", { type: "button", "aria-label": `About ${title}: ${about}`, data: { tip: about } }, "i");
  const note = h("span.note");
  const element = h("section.panel", { "aria-label": title }, h("div.panel-head", {}, heading, info, note), ...children);
  element.note = (value) => text(note, value);
  return element;
}

/**
 * A table that reuses its rows. A column is {label, tip, cell(row) -> text or element, numeric, className}.
 * Every cell answers a hover with its column's tip.
 */
export function table(caption, columns, empty = "Nothing yet") {
  const head = h("tr", {}, ...columns.map((column) =>
    h("th", { scope: "col", class: column.numeric ? "num" : "", data: column.tip ? { tip: column.tip } : {} }, column.label)));
  const body = h("tbody");
  const element = h("div.scroll", { tabindex: "0", role: "group", "aria-label": caption },
    h("table", {}, h("caption.hidden", {}, caption), h("thead", {}, head), body));
  const blank = h("p.blank", {}, empty);
  element.append(blank);
  element.show = (rows) => {
    blank.hidden = rows.length > 0;
    while (body.rows.length > rows.length) body.deleteRow(-1);
    rows.forEach((row, index) => {
      const line = body.rows[index] ?? addRow(body, columns);
      line.className = row.className ?? "";
      columns.forEach((column, position) => fill(line.cells[position], column.cell(row)));
    });
  };
  element.show([]);
  return element;
}

function addRow(body, columns) {
  const line = body.insertRow();
  for (const column of columns) {
    const cell = line.insertCell();
    if (column.numeric) cell.className = "num";
    else if (column.className) cell.className = column.className;
    if (column.tip) cell.dataset.tip = column.tip;
  }
  return line;
}

function fill(cell, value) {
  if (value instanceof Node) {
    if (!cell.firstChild?.isEqualNode?.(value)) cell.replaceChildren(value);
  } else if (cell.firstElementChild) cell.textContent = value;
  else text(cell, value);
}
