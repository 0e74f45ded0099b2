// The page of sessions: creates and opens them, sends files, follows what becomes of these, and searches.

import { chunkCard } from "./chunks.js";
import { showDocuments } from "./documents.js";
import { number, span } from "./format.js";
import { keyed } from "./keyed.js";
import { foldLong } from "./results.js";
import { Uploads } from "./uploads.js";

const at = (id) => document.getElementById(id);
/** Between two looks at the documents: while files are read, and otherwise. */
const BUSY_MS = 500;
const IDLE_MS = 5000;
/** For which a button waits for the second click that deletes. */
const SURE_MS = 4000;

let opened = null;
let documents = [];
let drawn = "";
/** Failed uploads that are not shown any more. */
const dismissed = new Set();
/** The number of documents of the open session that the list shows. */
let listed = null;
let asked = 0;
let looks = 0;
const uploads = new Uploads(send, () => { draw(); look(); });

async function ask(path, { method = "GET", json, body } = {}, mayAsk = true) {
  const headers = { Accept: "application/json" };
  if (json) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await keyed(path, () => ({ method, headers, body: json ? JSON.stringify(json) : body?.(), cache: "no-store" }), mayAsk);
  } catch (error) {
    throw error.name === "KeyWanted" ? error : new Error("This worker does not answer. Is it running?");
  }
  if (answer.status === 204) return null;
  const said = await answer.json().catch(() => ({ error: `The worker answered ${answer.status} without JSON.` }));
  if (!answer.ok) throw Object.assign(new Error(said.error), { status: answer.status });
  return said;
}

const pathOf = (session, ...parts) => ["sessions", session, ...parts].map(encodeURIComponent).join("/");

/** Runs what the user asked for; its error is shown until the next one works. */
async function attempt(action) {
  try {
    await action();
    at("notice").hidden = true;
    return true;
  } catch (error) {
    at("notice").textContent = error.message;
    at("notice").hidden = false;
    return false;
  }
}

async function send(session, file) {
  const form = () => {
    const made = new FormData();
    made.append("file", file, file.name);
    return made;
  };
  await ask(pathOf(session, "files"), { method: "POST", body: form });
}

/** Tokens of a chunk, of a model that reads as many. */
const DEFAULT_CHUNK = 512;

async function showModels() {
  const { models } = await ask("models");
  at("model").replaceChildren(...models.map((model) => {
    const option = new Option(model.dimension ? `${model.name}, ${model.dimension} dimensions` : model.name, model.name);
    option.selected = model.default;
    option.dataset.chunk = Math.min(DEFAULT_CHUNK, model.max_tokens || DEFAULT_CHUNK);
    return option;
  }));
  showChunk();
}

/** The chunk size without a choice: that of the chosen model. */
function showChunk() {
  at("chunk-size").placeholder = at("model").selectedOptions[0]?.dataset.chunk ?? DEFAULT_CHUNK;
}

async function showList() {
  const { sessions } = await ask("sessions");
  at("list-card").hidden = !sessions.length;
  listed = sessions.find((one) => one.session_id === opened)?.documents ?? null;
  at("list-about").textContent = count(sessions.length, "session");
  at("list").replaceChildren(...sessions.map((session) => {
    const [entry, button, below] = ["li", "button", "span"].map((tag) => document.createElement(tag));
    button.type = "button";
    button.textContent = session.session_id;
    if (session.session_id === opened) button.setAttribute("aria-current", "true");
    below.className = "sub";
    below.textContent = [session.model, session.sparse_model !== null && "hybrid", count(session.documents, "document")].filter(Boolean).join(" · ");
    button.append(below);
    button.addEventListener("click", () => { location.hash = session.session_id; });
    entry.append(button);
    return entry;
  }));
}

/** Opens the session of the address, if it has one. */
async function open() {
  const wanted = decodeURIComponent(location.hash.slice(1)) || null;
  if (wanted !== opened) clear();
  opened = wanted;
  at("chosen").hidden = at("none").hidden = true;
  await attempt(async () => {
    try {
      if (opened) await showOpened();
    } catch (error) {
      opened = null; // it is gone, or another caller's
      throw error;
    } finally {
      await showList();
    }
  });
  at("chosen").hidden = !opened;
  at("none").hidden = Boolean(opened);
  document.body.dataset.phase = opened ? "open" : "none";
  if (opened) look();
}

function clear() {
  documents = [];
  asked += 1; // the answer to an earlier query is not shown
  at("results").replaceChildren();
  at("status").textContent = "\u00a0";
  at("query").value = "";
  draw();
}

async function showOpened() {
  const session = await ask(pathOf(opened));
  at("title").textContent = session.session_id;
  const left_s = session.expires_at === null ? null : session.expires_at - Date.now() / 1000;
  at("about").textContent = [
    session.model || "default model",
    `${number(session.dimension)} dimensions`,
    `chunks of ${number(session.chunk_size)} tokens, ${number(session.chunk_overlap)} shared`,
    left_s !== null && `kept for ${span(Math.max(left_s, 0))} without use`,
  ].filter(Boolean).join(" · ");
}

/** Of a failed upload; another one of the same file has another. */
function idOf(row) {
  return JSON.stringify([row.document_id, row.created_at, row.state]);
}

function draw() {
  const rows = uploads.rows(opened, documents).filter((one) => !dismissed.has(idOf(one)));
  if (JSON.stringify(rows) === drawn) return; // what is focused stays so
  drawn = JSON.stringify(rows);
  at("documents-section").hidden = !rows.length;
  showDocuments(at("documents"), rows, deleteDocument);
}

function ready() {
  return documents.filter((one) => one.state === "ready").length;
}

/** Looks at the documents again and again while this session is open and the page can be seen. */
async function look() {
  const mine = (looks += 1);
  const session = opened;
  let failed = false;
  while (mine === looks && session === opened && session) {
    let isBusy = uploads.isBusy(session);
    if (!document.hidden || isBusy) {
      try {
        const answer = await ask(pathOf(session, "files"), {}, false);
        if (mine !== looks || session !== opened) return;
        documents = answer.documents;
        isBusy ||= documents.some((one) => one.state === "ingesting");
        draw();
        if (failed) at("notice").hidden = true;
        failed = false;
        if (ready() !== listed) await showList();
      } catch (error) {
        failed = true;
        isBusy = false;
        if (mine === looks) await attempt(() => { throw error; });
      }
    }
    await new Promise((resume) => setTimeout(resume, isBusy ? BUSY_MS : IDLE_MS));
  }
}

async function deleteDocument(row) {
  if (row.state === "failed") {
    if (row.document_id) dismissed.add(idOf(row));
    uploads.forget(opened, row.filename);
    draw();
    return;
  }
  await attempt(() => ask(pathOf(opened, "files", row.document_id), { method: "DELETE" }));
  uploads.forget(opened, row.filename);
  await attempt(showList);
  look();
}

async function search(query) {
  const mine = (asked += 1);
  const began = performance.now();
  document.body.dataset.phase = "searching";
  at("results").setAttribute("aria-busy", "true");
  at("status").textContent = "Searching";
  let found = null;
  const worked = await attempt(async () => {
    found = await ask(pathOf(opened, "search"), { method: "POST", json: { query } });
  });
  if (mine !== asked) return;
  document.body.dataset.phase = worked ? "found" : "failed";
  at("results").setAttribute("aria-busy", "false");
  at("status").textContent = "\u00a0";
  if (!worked) return;
  const names = new Map(documents.map((one) => [one.document_id, one.filename]));
  at("results").replaceChildren(...found.results.map((one) => chunkCard(one, names.get(one.document) ?? one.document, query)));
  foldLong(at("results"));
  const seconds = ((performance.now() - began) / 1000).toFixed(2);
  at("status").textContent = found.results.length ? `${count(found.results.length, "chunk")} in ${seconds} s, best first` : "No chunk was found. Are there documents?";
}

function count(number, what) {
  return `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
}

at("model").addEventListener("change", showChunk);
at("create").addEventListener("submit", async (event) => {
  event.preventDefault();
  const json = { model: at("model").value || null };
  if (at("name").value) json.session_id = at("name").value;
  if (at("chunk-size").value) json.chunk_size = Number(at("chunk-size").value);
  if (at("chunk-overlap").value) json.chunk_overlap = Number(at("chunk-overlap").value);
  at("make").disabled = true;
  await attempt(async () => {
    const made = await ask("sessions", { method: "POST", json });
    at("name").value = "";
    location.hash = made.session_id;
  });
  at("make").disabled = false;
});

at("delete").addEventListener("click", async () => {
  const button = at("delete");
  if (button.dataset.sure !== "true") {
    button.dataset.sure = "true";
    button.textContent = "Delete it and its documents?";
    setTimeout(unsure, SURE_MS);
    return;
  }
  unsure();
  if (await attempt(() => ask(pathOf(opened), { method: "DELETE" }))) location.hash = "";
});

function unsure() {
  at("delete").dataset.sure = "false";
  at("delete").textContent = "Delete session";
}

function add(files) {
  uploads.add(opened, [...files]);
}

at("files").addEventListener("change", () => {
  add(at("files").files);
  at("files").value = ""; // the same file can be chosen again
});

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  at("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").dataset.over = String(kind === "dragenter" || kind === "dragover");
    if (kind === "drop") add(event.dataTransfer.files);
  });
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = at("query").value.trim();
  if (query) search(query);
});

addEventListener("keydown", (event) => {
  const isTyping = ["INPUT", "SELECT"].includes(document.activeElement?.tagName);
  if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  at("query").focus();
});

addEventListener("hashchange", open);
if (await attempt(showModels)) await open();
