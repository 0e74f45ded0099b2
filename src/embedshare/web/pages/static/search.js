// The search page: sends a question and shows the answer or the error.

import { duration } from "./format.js";
import { keyed } from "./keyed.js";
import { card, foldLong, skeletons } from "./results.js";

const at = (id) => document.getElementById(id);
/** The stages of a search, in their order. */
const STAGES = { engine_s: "Search engine", fetch_s: "Pages", rank_s: "Embedding, ranking" };
const TICK_MS = 100;
const BONES = 3;

let running = null;

function phase(name) {
  document.body.dataset.phase = name;
  at("go").textContent = name === "searching" ? "Stop" : "Search";
  at("found").hidden = name !== "searching" && name !== "found";
  at("results").setAttribute("aria-busy", String(name === "searching"));
  at("steps").hidden = true;
  at("blank").hidden = name !== "nothing";
  at("notice").hidden = name !== "failed";
}

async function search(query) {
  running?.abort();
  const mine = (running = new AbortController());
  const began = performance.now();
  const seconds = () => ((performance.now() - began) / 1000).toFixed(1);
  at("results").replaceChildren(...skeletons(BONES));
  at("status").textContent = "Searching";
  phase("searching");
  const ticking = setInterval(() => { at("status").textContent = `Searching, ${seconds()} s`; }, TICK_MS);
  try {
    const answer = await ask(query, mine.signal);
    if (running === mine) show(answer, query, seconds());
  } catch (error) {
    if (running === mine) fail(error);
  } finally {
    clearInterval(ticking);
    if (running === mine) running = null;
  }
}

async function ask(query, signal) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ query }), signal };
  let answer;
  try {
    answer = await keyed("search", () => options);
  } catch (error) {
    throw ["AbortError", "KeyWanted"].includes(error.name) ? error : new Error("This worker does not answer. Is it running?");
  }
  const said = await answer.json().catch(() => ({ error: `The worker answered ${answer.status} without JSON.` }));
  if (!answer.ok) throw new Error(said.error);
  return said;
}

function show(answer, query, seconds) {
  const pages = grouped(answer.passages);
  if (!pages.length) {
    at("blank-title").textContent = "Nothing found";
    at("blank-text").textContent = reason(answer);
    at("status").textContent = `No passage in ${seconds} s`;
    phase("nothing");
    return;
  }
  at("results").replaceChildren(...pages.map((page) => card(page, query)));
  at("status").replaceChildren(bold(count(answer.passages.length, "passage")), " from ", bold(count(pages.length, "page")), ` in ${seconds} s, nearest first`);
  showTimes(answer.timings);
  at("context").textContent = answer.context;
  at("context-about").textContent = count(answer.context.length, "character");
  phase("found");
  foldLong(at("results"));
}

/** Why nothing was found: the search's own reason, if it gave one. */
function reason(answer) {
  return answer.context || "No page had a readable passage. Try other words.";
}

function fail(error) {
  if (error.name === "AbortError") {
    at("status").textContent = "Stopped";
    phase("stopped");
    return;
  }
  at("status").textContent = "\u00a0";
  phase("failed");
  at("notice").textContent = error.message;
}

/** Passages by page, in the order of each page's best one. */
function grouped(passages) {
  const pages = new Map();
  for (const passage of passages) {
    if (!pages.has(passage.url)) pages.set(passage.url, []);
    pages.get(passage.url).push(passage);
  }
  return [...pages.values()];
}

function showTimes(timings) {
  const stages = Object.entries(STAGES).map(([stage, name]) => [name, timings[stage]]);
  const total = stages.reduce((sum, [, seconds]) => sum + seconds, 0) || 1;
  const mark = (i) => Object.assign(document.createElement("i"), { className: `stage-${i + 1}` });
  at("total").textContent = inWords(timings.total_s);
  at("stages").replaceChildren(...stages.map(([, seconds], i) => {
    const part = mark(i);
    part.style.flexGrow = String(seconds / total);
    return part;
  }));
  at("timings").replaceChildren(...stages.flatMap(([name, seconds], i) => {
    const [term, value] = [document.createElement("dt"), document.createElement("dd")];
    term.append(mark(i), name);
    value.textContent = inWords(seconds);
    return [term, value];
  }));
}

function inWords(seconds) {
  return duration(seconds * 1000).join(" ");
}

function bold(text) {
  return Object.assign(document.createElement("b"), { textContent: text });
}

function count(number, what) {
  return `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
}

/** Moves the focus from the field through the titles of the results, and back. */
function step(by) {
  const stops = [at("query"), ...document.querySelectorAll(".result h2 a")];
  const now = stops.indexOf(document.activeElement);
  const next = stops[Math.min(Math.max(now + by, 0), stops.length - 1)];
  next.focus();
  next.closest(".result")?.scrollIntoView({ block: "nearest" });
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = at("query").value.trim();
  if (running) running.abort();
  else if (query) search(query);
});

at("query").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !running) return;
  event.preventDefault(); // another question in place of the one under way
  const query = at("query").value.trim();
  if (query) search(query);
});

at("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(at("context").textContent);
    at("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(at("context")); // without the right to copy: selected, to be copied
    at("copy").textContent = "Selected";
  }
  setTimeout(() => { at("copy").textContent = "Copy"; }, 1500);
});

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = document.activeElement === at("query");
  if (event.key === "/" && !typing) {
    at("query").focus();
    at("query").select();
  } else if (event.key === "Escape") {
    if (running) running.abort();
    else if (typing) at("query").value = "";
    else at("query").focus();
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    if (document.activeElement === at("context")) return;
    step(event.key === "ArrowDown" ? 1 : -1);
  } else {
    return;
  }
  event.preventDefault();
});
