/* Numbers for people. What is not known is an en dash, never a zero. */

export const UNKNOWN = "–";
const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export const count = (value) => (known(value) ? grouped.format(value) : UNKNOWN);

/** 12,400 as it is, 1.24 M from a million on. */
export function short(value, digits = 2) {
  if (!known(value)) return UNKNOWN;
  for (const [size, unit] of [[1e12, " T"], [1e9, " B"], [1e6, " M"]]) {
    if (Math.abs(value) >= size) return (value / size).toFixed(digits) + unit;
  }
  return grouped.format(value);
}

export const money = (value) => (known(value)
  ? value.toLocaleString("en-US", { style: "currency", currency: "USD" }) : UNKNOWN);

export function shortMoney(value) {
  if (!known(value)) return UNKNOWN;
  return Math.abs(value) >= 1e6 ? `$${short(value)}` : `$${grouped.format(value)}`;
}

/** A fraction as a percentage with about three significant digits. */
export function percent(value) {
  if (!known(value)) return UNKNOWN;
  const share = value * 100;
  const rounded = Math.abs(Number(share.toPrecision(3)));
  const digits = share === 0 ? 0 : rounded < 0.1 ? 3 : rounded < 10 ? 2 : 1;
  return `${share.toFixed(digits)} %`;
}

export function milliseconds(value) {
  if (!known(value)) return UNKNOWN;
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return value >= 100 ? `${grouped.format(value)} ms` : `${value.toFixed(1)} ms`;
}

export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let size = value;
  let unit = 0;
  while (Math.abs(size) >= 1000 && unit < units.length - 1) { size /= 1000; unit += 1; }
  return `${size.toFixed(unit && size < 100 ? 1 : 0)} ${units[unit]}`;
}

export function seconds(value) {
  if (!known(value)) return UNKNOWN;
  if (value < 60) return `${Math.floor(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  if (value < 172_800) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86_400)} d ${Math.floor((value % 86_400) / 3600)} h`;
}

export const fixed = (value, digits = 3) => (known(value) ? value.toFixed(digits) : UNKNOWN);

/** grocery_pos as Grocery pos. */
export const words = (name) => {
  const spaced = name.replaceAll("_", " ");
  return spaced.charAt(0).toUpperCase() + spaced.slice(1);
};

/** A category's name: what ends in _pos was bought in a shop, in _net online. */
export const category = (name) => words(name.replace(/_pos$/, " (in store)").replace(/_net$/, " (online)"));

export const clock = (iso) => (iso ? new Date(iso).toLocaleTimeString("en-GB") : UNKNOWN);
