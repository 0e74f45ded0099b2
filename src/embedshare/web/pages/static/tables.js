// The tables of models and processes, and the list of the model's facts.

import { UNKNOWN, memory, number, percent, span } from "./format.js";

/** Colours of states; any other state is neutral. */
const TONES = {
  good: ["serving", "connected", "running", "ready"],
  warn: ["falling back", "connecting", "starting", "stopping", "waiting", "backing off", "loading", "unloading"],
  bad: ["refused", "failed", "gave up", "given up", "stopped", "closed", "ended"],
};

/** Fills the body of the table of processes; calls per second are those since the sample before. */
export function showProcesses(body, sample, before) {
  const same = (one, other) => one.pid === other.pid && one.name === other.name;
  fill(body, sample.processes.map((process) => [
    ["Process", process.name],
    ["State", stateOf(process.state)],
    ["PID", process.pid ?? UNKNOWN],
    ["Port", process.port ?? UNKNOWN],
    ["Uptime", span(process.uptime_s)],
    ["Restarts", process.restarts ?? UNKNOWN],
    ["Memory", memory(process.memory_mb).join(" ").trim()],
    ["Calls/s", number(rate(process, before?.processes.find((one) => same(one, process)), sample, before))],
  ]));
}

/** Fills the body of the table of models. */
export function showModels(body, sample, before) {
  fill(body, sample.models.map((model) => [
    ["Model", named(model)],
    ["State", stateOf(model.state, model.error)],
    ["Calls/s", number(rate(model, before?.models.find((one) => one.id === model.id), sample, before))],
    ["In flight", number(model.active)],
    ["Last call", model.idle_s === null ? UNKNOWN : `${span(model.idle_s)} ago`],
    ["Loads", number(model.loads)],
    ["Memory", memory(model.memory_mb).join(" ").trim()],
  ]));
}

/** Rows of cells, each with its column's name, which narrow screens show beside it. */
function fill(body, rows) {
  body.replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    for (const [at, [label, shown]] of cells.entries()) {
      const cell = document.createElement("td");
      cell.dataset.label = label;
      if (at > 1) cell.className = "right";
      cell.append(shown);
      row.append(cell);
    }
    return row;
  }));
}

/** A model's id, and below it its name, if that is another, and its marks. */
function named(model) {
  const shown = document.createElement("span");
  shown.append(model.id);
  const marks = [model.name !== model.id && model.name, model.default && "default", model.pinned && "pinned"];
  const below = Object.assign(document.createElement("span"), { className: "sub" });
  below.textContent = marks.filter(Boolean).join(" · ");
  if (below.textContent) shown.append(below);
  return shown;
}

/** Fills a <dl> with what is known of the model. */
export function showFacts(list, server) {
  const facts = [
    ["Name", server?.model],
    ["Identity", server?.identity?.slice(0, 12)],
    ["Device", server?.device],
    ["Precision", server?.dtype],
    ["Runtime", server?.runtime],
    ["Dimensions", server?.dimension],
    ["Up for", server && span(server.uptime)],
    ["Indexes", server?.indexes?.count && `${server.indexes.count}, ${memory(server.indexes.bytes / 1e6).join(" ")}`],
    ["Cached vectors", server?.cache?.limit_bytes && `${number(server.cache.entries)}, ${memory(server.cache.bytes / 1e6).join(" ")}`],
    ["Found in the cache", server?.cache?.limit_bytes && percent(cachedShare(server.cache))],
    ["Swaps", server?.swaps || null],
    ["GPU memory", server?.gpu_memory_mb && memory(server.gpu_memory_mb).join(" ")],
  ];
  const known = facts.filter(([, value]) => value !== null && value !== undefined && value !== "");
  list.replaceChildren(
    ...known.flatMap(([name, value]) => {
      const [term, description] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      description.textContent = value;
      return [term, description];
    }),
  );
}

/** The share of texts whose vectors were cached or being computed already. */
function cachedShare({ hits, joined, misses }) {
  return hits + joined + misses ? (hits + joined) / (hits + joined + misses) : null;
}

function stateOf(state, title) {
  if (!state) return UNKNOWN;
  const shown = document.createElement("span");
  if (title) shown.title = title;
  shown.className = "state";
  shown.dataset.tone = Object.keys(TONES).find((tone) => TONES[tone].includes(state)) ?? "plain";
  shown.append(document.createElement("i"), state);
  return shown;
}

/** Calls per second since the earlier count; null if a count is unknown or has begun again. */
function rate(one, earlier, sample, before) {
  const seconds = before ? sample.time - before.time : 0;
  const known = earlier && seconds > 0 && one.calls !== null && earlier.calls !== null;
  return known && one.calls >= earlier.calls ? (one.calls - earlier.calls) / seconds : null;
}
