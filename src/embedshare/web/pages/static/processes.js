// The table of processes and the list of the model's facts.

import { UNKNOWN, memory, number, span } from "./format.js";

/** What a state says of its process; others are neither good nor bad. */
const TONES = {
  good: ["serving", "connected", "running", "ready"],
  warn: ["falling back", "connecting", "starting", "stopping", "waiting", "backing off"],
  bad: ["refused", "failed", "gave up", "given up", "stopped", "closed", "ended"],
};

/** Fills the table's body; calls per second are those since the sample before. */
export function showProcesses(body, sample, before) {
  const rows = sample.processes.map((process) => {
    const cells = [
      ["Process", process.name],
      ["State", stateOf(process.state)],
      ["PID", process.pid ?? UNKNOWN],
      ["Port", process.port ?? UNKNOWN],
      ["Uptime", span(process.uptime_s)],
      ["Restarts", process.restarts ?? UNKNOWN],
      ["Memory", memory(process.memory_mb).join(" ").trim()],
      ["Calls/s", number(rate(process, sample, before))],
    ];
    const row = document.createElement("tr");
    for (const [at, [label, shown]] of cells.entries()) {
      const cell = document.createElement("td");
      cell.dataset.label = label;
      if (at > 1) cell.className = "right";
      cell.append(shown);
      row.append(cell);
    }
    return row;
  });
  body.replaceChildren(...rows);
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

function stateOf(state) {
  if (!state) return UNKNOWN;
  const shown = document.createElement("span");
  shown.className = "state";
  shown.dataset.tone = Object.keys(TONES).find((tone) => TONES[tone].includes(state)) ?? "plain";
  shown.append(document.createElement("i"), state);
  return shown;
}

function rate(process, sample, before) {
  const earlier = before?.processes.find((one) => one.pid === process.pid && one.name === process.name);
  const seconds = before ? sample.time - before.time : 0;
  const known = earlier && seconds > 0 && process.calls !== null && earlier.calls !== null;
  return known && process.calls >= earlier.calls ? (process.calls - earlier.calls) / seconds : null;
}
