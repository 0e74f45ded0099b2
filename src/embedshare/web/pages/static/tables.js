// The tables of models and processes, and the list of the model's facts.

import { UNKNOWN, duration, memory, number, percent, span } from "./format.js";

/** Colours of states; any other state is neutral. */
const TONES = {
  good: ["serving", "connected", "running", "ready", "asked"],
  warn: ["falling back", "connecting", "starting", "stopping", "waiting", "backing off", "loading", "unloading", "probing"],
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

/** Fills the body of the table of remote services. */
export function showServices(body, sample, before) {
  fill(body, sample.services.map((service) => [
    ["Service", named({ id: service.model, name: service.provider })],
    ["State", stateOf(...askedOf(service))],
    ["Requests/s", number(rate(counted(service), counted(before?.services.find((one) => one.model === service.model)), sample, before))],
    ["Failed", number(service.failed)],
    ["Median", duration(service.p50_ms).join(" ").trim()],
    ["Failovers", number(service.failovers)],
    ["Tokens", number(service.tokens)],
    ["Cost", costOf(service)],
  ]));
}

const counted = (service) => service && { calls: service.answered + service.failed };

/** Whether a service is asked, and why not. */
function askedOf({ state, retry_after_s, error }) {
  if (state === "closed") return ["asked", null];
  return [state === "open" ? `not asked for ${span(retry_after_s)}` : "probing", error];
}

function costOf({ month_cost, month_budget }) {
  if (!month_cost && month_budget === null) return UNKNOWN;
  return month_budget === null ? month_cost.toFixed(4) : `${month_cost.toFixed(4)} of ${number(month_budget)}`;
}

/** Fills the bar of the texts by where their vectors came from, and its legend. */
export function showCache(track, legend, cache) {
  const shares = [
    ...Object.entries(cache.hits_by_level ?? { memory: cache.hits }).map(([level, count]) => [`found in ${LEVELS[level] ?? level}`, count, level]),
    ["computed for another call", cache.joined, "joined"],
    ["computed", cache.misses, "computed"],
  ].filter(([, count]) => count);
  const whole = shares.reduce((sum, [, count]) => sum + count, 0);
  track.replaceChildren(...shares.map(([, count, name]) => {
    const part = Object.assign(document.createElement("i"), { className: `part ${name}` });
    part.style.width = `${(100 * count) / whole}%`;
    return part;
  }));
  legend.replaceChildren(...shares.map(([label, count, name]) => {
    const [entry, mark, value] = ["li", "i", "b"].map((tag) => document.createElement(tag));
    mark.className = `part ${name}`;
    value.textContent = `${number(count)} (${percent(count / whole)})`;
    entry.append(mark, label, " ", value);
    return entry;
  }));
}

/** The names of the cache's levels. */
const LEVELS = { memory: "memory", redis: "Redis", database: "the database" };

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

function stateOf(state, title) {
  if (!state) return UNKNOWN;
  const shown = document.createElement("span");
  if (title) shown.title = title;
  shown.className = "state";
  const isAway = state.startsWith("not asked");
  shown.dataset.tone = Object.keys(TONES).find((tone) => TONES[tone].includes(state)) ?? (isAway ? "bad" : "plain");
  shown.append(document.createElement("i"), state);
  return shown;
}

/** Calls per second since the earlier count; null if a count is unknown or has begun again. */
function rate(one, earlier, sample, before) {
  const seconds = before ? sample.time - before.time : 0;
  const known = earlier && seconds > 0 && one.calls !== null && earlier.calls !== null;
  return known && one.calls >= earlier.calls ? (one.calls - earlier.calls) / seconds : null;
}
