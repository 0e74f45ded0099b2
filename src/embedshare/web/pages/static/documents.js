// The table of a session's documents.

import { UNKNOWN, number, size } from "./format.js";

const TONES = { ready: "good", failed: "bad", ingesting: "warn", sending: "warn", waiting: "plain" };
const NAMES = { ingesting: "reading" };

/** Fills the table's body; `remove(row)` is called for a row whose button is pressed. */
export function showDocuments(body, rows, remove) {
  body.replaceChildren(...rows.map((row) => {
    const line = document.createElement("tr");
    line.dataset.state = row.state;
    line.append(
      cell("Document", nameOf(row)),
      cell("State", stateOf(row)),
      cell("Chunks", number(row.chunks), "right"),
      cell("Size", size(row.size ?? row.bytes), "right"),
      cell("", button(row, remove), "right"),
    );
    return line;
  }));
}

function cell(label, shown, name = "") {
  const made = document.createElement("td");
  made.dataset.label = label;
  made.className = name;
  made.append(shown);
  return made;
}

function nameOf(row) {
  const shown = document.createElement("span");
  shown.append(row.filename);
  if (row.error) shown.append(Object.assign(document.createElement("span"), { className: "sub why", textContent: row.error }));
  if (row.state === "ingesting" || row.state === "sending") shown.append(progressOf(row));
  return shown;
}

/** How much of the file has been read; unknown while it is on its way to the session. */
function progressOf(row) {
  const [track, bar] = [document.createElement("span"), document.createElement("i")];
  const isKnown = row.state === "ingesting" && row.size > 0 && row.bytes < row.size;
  track.className = "progress";
  track.dataset.known = String(isKnown);
  track.setAttribute("role", "progressbar");
  track.setAttribute("aria-label", `Reading ${row.filename}`);
  if (isKnown) {
    bar.style.width = `${(100 * row.bytes) / row.size}%`;
    track.setAttribute("aria-valuenow", String(Math.round((100 * row.bytes) / row.size)));
  }
  track.append(bar);
  return track;
}

function stateOf(row) {
  const shown = document.createElement("span");
  shown.className = "state";
  shown.dataset.tone = TONES[row.state] ?? "plain";
  shown.append(document.createElement("i"), NAMES[row.state] ?? row.state ?? UNKNOWN);
  return shown;
}

function button(row, remove) {
  const made = document.createElement("button");
  const what = row.state === "failed" ? "Dismiss" : "Delete";
  Object.assign(made, { type: "button", className: "quiet", textContent: what });
  made.setAttribute("aria-label", `${what} ${row.filename}`);
  made.hidden = !["ready", "failed"].includes(row.state);
  made.addEventListener("click", () => remove(row));
  return made;
}
