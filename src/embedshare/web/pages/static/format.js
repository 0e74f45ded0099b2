// Figures as people read them. An unknown one is a dash.

export const UNKNOWN = "–";

/** 0.42, 7.3, 184, 12,400. */
export function number(value) {
  if (value === null || value === undefined) return UNKNOWN;
  const digits = value === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString("en", { maximumFractionDigits: Number.isInteger(value) ? 0 : digits });
}

/** 950, 12.4k, 3.1M: for axes and small places. */
export function short(value) {
  if (value === null || value === undefined) return UNKNOWN;
  return value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 }).replace("K", "k");
}

/** Milliseconds as [figure, unit]; an unknown time has no unit. */
export function duration(ms) {
  if (ms === null || ms === undefined) return [UNKNOWN, ""];
  if (ms >= 10_000) return [(ms / 1000).toFixed(1), "s"];
  if (ms >= 1000) return [(ms / 1000).toFixed(2), "s"];
  return [ms >= 100 ? ms.toFixed(0) : ms >= 10 ? ms.toFixed(1) : ms.toFixed(2), "ms"];
}

/** Megabytes as [figure, unit]; an unknown size has no unit. */
export function memory(mb) {
  if (mb === null || mb === undefined) return [UNKNOWN, ""];
  return Math.abs(mb) >= 1000 ? [(mb / 1000).toFixed(2), "GB"] : [mb.toFixed(0), "MB"];
}

/** Bytes as 840 B, 12.4 kB, 3.1 MB. */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return UNKNOWN;
  const units = ["B", "kB", "MB", "GB"];
  const at = Math.min(Math.max(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), 0), units.length - 1);
  return `${number(bytes / 1000 ** at)} ${units[at]}`;
}

/** Megabytes on an axis: 0, 250 MB, 1.5 GB. */
export function shortMemory(mb) {
  if (!mb) return "0";
  return mb >= 1000 ? `${short(mb / 1000)} GB` : `${short(mb)} MB`;
}

/** A share of 1 in per cent. */
export function percent(share) {
  if (share === null || share === undefined) return UNKNOWN;
  return `${(share * 100).toFixed(share && share < 0.1 ? 1 : 0)}%`;
}

/** Seconds as 12 s, 3 min 20 s, 4 h 5 min, 2 d 3 h. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return UNKNOWN;
  const units = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = units.findIndex(([size]) => seconds >= size);
  if (at === -1) return "0 s";
  const [size, name] = units[at];
  const first = `${Math.floor(seconds / size)} ${name}`;
  const next = units[at + 1];
  const rest = next ? Math.floor((seconds % size) / next[0]) : 0;
  return rest ? `${first} ${rest} ${next[1]}` : first;
}

/** A time of day, in this browser's zone. */
export function clock(seconds, withSeconds = true) {
  const parts = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (withSeconds) parts.second = "2-digit";
  return new Date(seconds * 1000).toLocaleTimeString("en", parts);
}
