// The page: asks for samples, keeps them, and shows each figure in its place.

import { sparkline, timeChart } from "./charts.js";
import { UNKNOWN, clock, duration, memory, number, percent, short, shortMemory, span } from "./format.js";
import { History } from "./history.js";
import { mean, quantile, standing } from "./interval.js";
import { poll } from "./poll.js";
import { showCache, showFacts, showModels, showProcesses, showServices } from "./tables.js";

/** Large figures cover this many seconds: a single one would flicker. */
const NOW_S = 5;
const LEAST_WINDOW_S = 60;

const at = (id) => document.getElementById(id);
const history = new History();
/** Earlier samples: calls per second are counted from the oldest. */
let earlier = [];

const ANSWERS = {
  server: "The model server answers",
  local: "A local model answers",
  fallback: "Falling back: a local model answers",
  away: "Nothing answers",
};

const rate = (one, count) => (one?.counted ? one[count] / one.counted : null);
const httpRate = (one, count) => (one?.served ? one[count] / one.served : null);
const latency = (q) => (one) => percentile(one, "total_ms", q);
const padding = (one) => (one?.tokens ? one.padding / (one.tokens + one.padding) : null);
function percentile(one, name, q) {
  const histogram = one?.histograms[name];
  return histogram ? quantile(histogram.bounds, histogram.counts, q) : null;
}
function meanOf(one, name) {
  const histogram = one?.histograms[name];
  return histogram ? mean(histogram) : null;
}
/** A batch has at least one text, whatever interpolation says. */
const atLeastOne = (value) => (value === null ? null : Math.max(value, 1));
const milliseconds = (value) => duration(value).join(" ").trim();
const megabytes = (value) => memory(value).join(" ").trim();

/** Charts by the id of their element: for each line its value of an interval, and its format. */
const CHARTS = {
  throughput: {
    axes: [{ format: short, least: 4 }],
    series: [
      { name: "answered", color: "--accent", fill: 0.26, of: (one) => (one.counted ? rate(one, "calls") - rate(one, "failed") : null), format: number },
      { name: "failed", color: "--bad", fill: 0.2, quiet: true, of: (one) => rate(one, "failed"), format: number },
    ],
  },
  latency: {
    axes: [{ format: (value) => duration(value).map((part, i) => (i ? part : Number(part))).join(" "), log: true, size: 54 }],
    series: [
      { name: "p99", color: "--p99", of: latency(0.99), format: milliseconds },
      { name: "p90", color: "--p90", of: latency(0.9), format: milliseconds },
      { name: "p50", color: "--accent", width: 2.25, of: latency(0.5), format: milliseconds },
    ],
  },
  batches: {
    axes: [{ format: short, least: 4, whole: true }, { format: percent, most: 1, size: 46, splits: () => [0, 0.5, 1] }],
    series: [
      { name: "p90", color: "--p90", of: (one) => atLeastOne(percentile(one, "batch_sequences", 0.9)), format: number },
      { name: "mean", color: "--accent", width: 2.25, fill: 0.18, of: (one) => meanOf(one, "batch_sequences"), format: number },
      { name: "padding", color: "--calm", dash: [4, 4], width: 1.25, axis: 1, of: padding, format: percent },
    ],
  },
  queue: {
    axes: [{ format: short, least: 100, size: 48, whole: true }, { format: short, least: 4, size: 40, whole: true }],
    series: [
      { name: "queued tokens", color: "--accent", fill: 0.22, of: (one) => one.waiting, format: number },
      { name: "calls in flight", color: "--calm", dash: [4, 4], width: 1.25, axis: 1, of: (one) => one.active, format: number },
    ],
  },
  memory: {
    axes: [{ format: shortMemory, least: 100, size: 62, space: 24 }],
    series: [
      { name: "without sharing", color: "--calm", dash: [4, 4], of: (one) => one.unshared, format: megabytes },
      { name: "with sharing", color: "--accent", fill: 0.22, of: (one) => one.shared, format: megabytes },
    ],
  },
};

const SPARKS = {
  "requests-spark": ["--accent", (one) => httpRate(one, "requests")],
  "errors-spark": ["--bad", (one) => httpRate(one, "errors")],
  "calls-spark": ["--accent", (one) => rate(one, "calls")],
  "texts-spark": ["--accent", (one) => rate(one, "texts")],
  "p50-spark": ["--accent", latency(0.5)],
  "p99-spark": ["--p99", latency(0.99)],
  "waiting-spark": ["--accent", (one) => one.waiting],
  "saved-spark": ["--good", (one) => (one.shared === null ? null : one.unshared - one.shared)],
};

let pointedAt = null;
let points = [];
for (const [id, chart] of Object.entries(CHARTS)) {
  chart.drawn = timeChart(at(id), chart.series, chart.axes, point);
  chart.values = at(`${id}-legend`) ? chart.series.map((one) => legendEntry(at(`${id}-legend`), one)) : [];
}
const sparks = Object.entries(SPARKS).map(([id, [color, of]]) => [sparkline(at(id), color), of]);

function legendEntry(list, one) {
  const [entry, mark, value] = ["li", "i", "b"].map((tag) => document.createElement(tag));
  mark.style.background = `var(${one.color})`;
  entry.append(mark, one.name, " ", value);
  list.append(entry);
  return value;
}

function point(index) {
  if (index === pointedAt) return;
  pointedAt = index;
  showLegends();
}

/** Values at the pointed time, else the current ones. */
function showLegends() {
  const one = points[pointedAt] ?? history.recent(NOW_S);
  for (const chart of Object.values(CHARTS)) {
    chart.values.forEach((value, i) => {
      value.textContent = one ? chart.series[i].format(chart.series[i].of(one)) : UNKNOWN;
    });
  }
}

function range() {
  const chosen = document.querySelector("input[name=range]:checked").value;
  return chosen === "all" ? Math.max(history.length, LEAST_WINDOW_S) : Number(chosen);
}

function draw() {
  if (document.hidden || !history.last) return;
  const seconds = range();
  points = history.points(seconds);
  const times = points.map((one) => one.to);
  const window = [history.last.time - seconds, history.last.time];
  const shaded = bands();
  for (const chart of Object.values(CHARTS)) {
    chart.drawn.draw(times, chart.series.map(column), window, shaded);
  }
  for (const [spark, of] of sparks) spark.draw(times, [points.map((each) => of(each) ?? null)], window);
  showLegends();
}

/** A line's values; a quiet line shows nothing while all its values are zero. */
function column(one) {
  const values = points.map((each) => one.of(each) ?? null);
  return one.quiet && !values.some(Boolean) ? values.fill(null) : values;
}

/** Stretches in which the server did not answer. */
function bands() {
  const found = [];
  for (const one of history.intervals) {
    const last = found[found.length - 1];
    if (one.standing !== "fallback" && one.standing !== "away") continue;
    if (last && last.standing === one.standing && last.to >= one.from - 0.01) last.to = one.to;
    else found.push({ from: one.from, to: one.to, standing: one.standing });
  }
  return found;
}

function showNow(sample) {
  const now = history.recent(NOW_S);
  const [calls, failed] = [rate(now, "calls"), rate(now, "failed")];
  const [errors, refused] = [httpRate(now, "errors"), httpRate(now, "refused")];
  at("requests").textContent = number(httpRate(now, "requests"));
  at("errors").textContent = number(errors);
  at("errors-note").textContent = refused ? `5xx; ${number(refused)}/s are 4xx` : "of these requests: 5xx";
  at("errors-note").classList.toggle("bad", Boolean(errors));
  at("calls").textContent = number(calls);
  at("calls-note").textContent = failed ? `${number(failed)} failed per second` : "all workers, coalesced";
  at("calls-note").classList.toggle("bad", Boolean(failed));
  at("texts").textContent = number(rate(now, "texts"));
  at("texts-note").textContent = now?.counted ? `${short(rate(now, "tokens"))} tokens/s` : "\u00a0";
  for (const [id, q] of [["p50", 0.5], ["p99", 0.99]]) {
    [at(id).textContent, at(`${id}-unit`).textContent] = duration(latency(q)(now));
  }
  at("waiting").textContent = number(sample.server?.waiting_tokens);
  const active = sample.server?.active_operations;
  at("waiting-note").textContent = active === undefined ? "\u00a0" : `${active} ${active === 1 ? "call" : "calls"} in flight`;
}

function showMemory(sample) {
  const { shared_mb: shared, unshared_mb: unshared, model_mb: model, processes } = sample.memory;
  const known = shared !== null && unshared !== null;
  const count = `${processes} ${processes === 1 ? "process" : "processes"}`;
  const saved = known ? unshared - shared : null;
  [at("saved").textContent, at("saved-unit").textContent] = memory(saved);
  const times = known && unshared > shared ? `${(unshared / shared).toFixed(1)}x less, ` : "";
  at("saved-note").textContent = known ? `${times}${count}` : "nothing is shared at the moment";
  at("shared-name").textContent = known ? `${count} and one model server` : "with sharing";
  at("unshared-name").textContent = known ? `${count}, a model in each` : "without sharing";
  at("shared").textContent = megabytes(shared);
  at("unshared").textContent = megabytes(unshared);
  const alone = known ? unshared - model * processes : 0;
  const most = Math.max(shared ?? 0, unshared ?? 0) || 1;
  const parts = { "shared-track": [alone, known ? shared - alone : 0], "unshared-track": [alone, known ? unshared - alone : 0] };
  for (const [track, sizes] of Object.entries(parts)) {
    [...at(track).children].forEach((part, i) => { part.style.width = `${(sizes[i] / most) * 100}%`; });
  }
}

function showAnswering(sample) {
  const { server, worker } = sample;
  const who = standing(sample);
  at("pill").dataset.standing = who;
  if (at("pill-text").textContent !== ANSWERS[who]) at("pill-text").textContent = ANSWERS[who];
  const title = sample.models.length ? `${sample.models.length} models` : server?.model;
  if (title) at("model").textContent = title;
  document.title = `${title ?? "embedshare"} · embedshare`;
  const facts = server ? [[server.runtime, server.dtype].filter(Boolean).join(" "), server.device && `on ${server.device}`] : [];
  const clients = server?.callers?.length;
  at("summary").textContent = [
    facts.filter(Boolean).join(" "),
    server && `up for ${span(server.uptime)}`,
    clients && `${clients} ${clients === 1 ? "process" : "processes"} connected`,
    worker.fallbacks && `fell back ${worker.fallbacks === 1 ? "once" : `${worker.fallbacks} times`}`,
  ].filter(Boolean).join(" · ") || "\u00a0";
  const reason = sample.error ?? (who === "fallback" ? "The model server does not answer. Until it is back, this worker answers from a local model of the same vector space." : null);
  at("notice").hidden = !reason;
  at("notice").dataset.standing = who;
  if (reason && at("notice").textContent !== reason) at("notice").textContent = reason;
}

/** The table of models, if there are several. */
function showServed(sample) {
  at("models-section").hidden = !sample.models.length;
  at("facts-title").textContent = sample.models.length ? "Default model" : "Model";
  const loaded = sample.models.filter((one) => one.state === "ready").length;
  at("models-about").textContent = `${loaded} loaded`;
  showModels(at("models"), sample, earlier[0]);
  at("services-section").hidden = !sample.services.length;
  const asked = sample.services.filter((one) => one.state === "closed").length;
  at("services-about").textContent = `${asked} of ${sample.services.length} asked`;
  showServices(at("services"), sample, earlier[0]);
}

/** Where the vectors of texts came from, once the cache has been used. */
function showCached(cache) {
  const isUsed = Boolean(cache?.limit_bytes && cache.hits + cache.misses + cache.joined);
  at("cache-section").hidden = !isUsed;
  if (!isUsed) return;
  at("cache-about").textContent = `${number(cache.entries)} in memory, ${megabytes(cache.bytes / 1e6)} of ${megabytes(cache.limit_bytes / 1e6)}`;
  showCache(at("cache-track"), at("cache-legend"), cache);
}

function onSample(sample) {
  history.add(sample);
  earlier = [...earlier.filter((one) => sample.time - one.time <= NOW_S + 0.5), sample];
  at("live").dataset.on = "true";
  if (at("live-text").textContent !== "live") at("live-text").textContent = "live";
  at("clock").textContent = clock(sample.time);
  document.body.dataset.stale = "false";
  showAnswering(sample);
  showNow(sample);
  showMemory(sample);
  showProcesses(at("processes"), sample, earlier[0]);
  at("processes-about").textContent = `${sample.processes.length} known to this worker`;
  showServed(sample);
  showCached(sample.server?.cache);
  if (sample.server) showFacts(at("facts"), sample.server);
  const empty = !history.intervals.some((one) => one.calls || one.standing === "away");
  at("empty").hidden = !empty;
  at("throughput").classList.toggle("unseen-plot", empty);
  draw();
}

function onLost(error, wait) {
  at("live").dataset.on = "false";
  at("live-text").textContent = "disconnected, trying again";
  at("clock").textContent = "";
  document.body.dataset.stale = "true";
  at("notice").hidden = false;
  at("notice").dataset.standing = "away";
  at("notice").textContent = `This worker does not answer (${error.message}). Trying again in ${span(wait / 1000)}.`;
}

const example = `curl -s ${location.origin}/embed -H 'Content-Type: application/json' -d '{"texts": ["one model, many workers"]}'`;
at("example").textContent = example;
for (const choice of document.querySelectorAll("input[name=range]")) choice.addEventListener("change", draw);
document.addEventListener("visibilitychange", draw);
poll("dashboard/data", onSample, onLost);
