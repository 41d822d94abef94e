/* /openapi.json for people: every operation with its parameters, answers, fields and a real example. */

import { h } from "./dom.js";

const main = document.getElementById("main");

function resolve(document, schema) {
  return schema?.$ref ? document.components.schemas[schema.$ref.split("/").at(-1)] : schema;
}

/** What a schema is, in a few words. */
function kind(document, schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map((one) => kind(document, one)).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${kind(document, schema.items)}`;
  return schema.type ?? "any";
}

function fields(document, schema) {
  const properties = resolve(document, schema)?.properties;
  if (!properties) return null;
  const rows = Object.entries(properties).map(([name, one]) =>
    h("tr", {}, h("td", {}, h("code", {}, name)), h("td", {}, kind(document, one)), h("td.prose", {}, one.description ?? "")));
  return h("div.scroll", { tabindex: "0", role: "group", "aria-label": "Fields" }, h("table", {},
    h("thead", {}, h("tr", {}, ...["Field", "Type", "Meaning"].map((label) => h("th", { scope: "col" }, label)))), h("tbody", {}, ...rows)));
}

function operation(document, path, method, one) {
  const body = one.requestBody && Object.values(one.requestBody.content)[0]?.schema;
  const answers = Object.entries(one.responses).map(([status, answer]) => {
    const content = Object.values(answer.content ?? {})[0];
    return h("li", {}, h("code", {}, status), ` ${answer.description ?? ""}`, content?.schema ? ` · ${kind(document, content.schema)}` : "");
  });
  const good = Object.values(one.responses["200"]?.content ?? one.responses["202"]?.content ?? {})[0];
  const parameters = (one.parameters ?? []).map((each) => h("li", {}, h("code", {}, each.name), ` ${each.in}, ${kind(document, each.schema)}${each.required ? ", required" : ""}. ${each.description ?? ""}`));
  return h("section.panel", {},
    h("div.panel-head", {}, h("h2", {}, h("span.state", {}, method.toUpperCase()), " ", h("code", {}, path)), h("span.note", {}, one.security ? "needs the token" : "")),
    h("p", {}, one.description ?? one.summary ?? ""),
    parameters.length ? h("ul.list", {}, ...parameters) : null,
    body ? h("details", {}, h("summary", {}, "Body"), fields(document, body) ?? kind(document, body)) : null,
    h("ul.list", {}, ...answers),
    good?.schema && fields(document, good.schema) ? h("details", {}, h("summary", {}, "Fields of the answer"), fields(document, good.schema)) : null,
    good?.example ? h("details", {}, h("summary", {}, "Example"), h("pre", { tabindex: "0" }, JSON.stringify(good.example, null, 2))) : null);
}

try {
  const answer = await fetch("/openapi.json");
  const description = await answer.json();
  const sections = Object.entries(description.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, one]) => operation(description, path, method, one)));
  main.replaceChildren(h("p.lead", {}, description.info.description), h("div.docs", {}, ...sections));
} catch {
  document.getElementById("wait").textContent = "The description can't be read: is the api up?";
}
