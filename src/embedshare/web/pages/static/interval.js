// The interval between two samples of cumulative counters: differences, their sums, percentiles.

/** What answers calls, in rising order of importance: an interval shows the most important. */
const STANDINGS = ["server", "local", "fallback", "away"];

/** Counters of /embedding/stats, by the name of their increase in an interval. */
const COUNTERS = {
  calls: "total_requests",
  failed: "failed_requests",
  texts: "sequences",
  tokens: "tokens",
  padding: "padding_tokens",
};

/** Counters of this worker's HTTP requests, by the names of an interval. */
const HTTP_COUNTERS = { requests: "answered", errors: "failed", refused: "refused" };
const ALL = [...Object.keys(COUNTERS), ...Object.keys(HTTP_COUNTERS)];

/** The quantile `q`, interpolated within its bucket; null if nothing was counted.
 *  `counts` has one more than `bounds`: values over the last bound count as equal to it. */
export function quantile(bounds, counts, q) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return null;
  let left = q * total;
  for (let at = 0; at < bounds.length; at++) {
    if (counts[at] && left <= counts[at]) {
      const lower = at ? bounds[at - 1] : 0;
      return lower + (bounds[at] - lower) * (left / counts[at]);
    }
    left -= counts[at];
  }
  return bounds[bounds.length - 1];
}

/** The mean of a histogram; null if nothing was counted. */
export function mean(histogram) {
  const total = histogram.counts.reduce((sum, count) => sum + count, 0);
  return total ? histogram.sum / total : null;
}

/** What answers calls at the time of a sample of /dashboard/data. */
export function standing(sample) {
  if (!sample.server || ["refused", "closed"].includes(sample.worker.state)) return "away";
  return { "falling back": "fallback", local: "local" }[sample.worker.state] ?? "server";
}

/** The interval from sample `before` to `after`. `counted`: the seconds for which counters are known:
 *  0 where another process answers, or the same one anew, since then nobody knows what went before; `served`
 *  is the same for this worker's own requests, which go on while the model server is away. */
export function difference(before, after) {
  const interval = {
    from: before.time,
    to: after.time,
    counted: 0,
    served: 0,
    histograms: {},
    standing: standing(after),
    waiting: after.server?.waiting_tokens ?? null,
    active: after.server?.active_operations ?? null,
    shared: after.memory.shared_mb,
    unshared: after.memory.unshared_mb,
  };
  for (const name of ALL) interval[name] = 0;
  const http = before.http && before.http.since === after.http?.since ? added(HTTP_COUNTERS, before.http, after.http) : null;
  if (http) Object.assign(interval, http, { served: after.time - before.time });
  const [was, is] = [before.server, after.server];
  const continued = was && is && was.pid === is.pid && was.identity === is.identity && was.uptime <= is.uptime;
  if (!continued) return interval;
  const counts = added(COUNTERS, was, is);
  if (!counts) return interval;
  Object.assign(interval, counts);
  for (const [name, histogram] of Object.entries(is.histograms ?? {})) {
    const since = subtract(histogram, was.histograms?.[name]);
    if (since) interval.histograms[name] = since;
  }
  interval.counted = after.time - before.time;
  return interval;
}

/** Increases of the counters, by their names in an interval; null if one has restarted. */
function added(counters, was, is) {
  const found = Object.entries(counters).map(([name, key]) => [name, (is[key] ?? 0) - (was[key] ?? 0)]);
  return found.some(([, count]) => count < 0) ? null : Object.fromEntries(found);
}

/** Merges consecutive intervals. */
export function merge(intervals) {
  const merged = { ...intervals[intervals.length - 1], from: intervals[0].from, counted: 0, served: 0, histograms: {} };
  for (const name of ALL) merged[name] = 0;
  for (const one of intervals) {
    merged.counted += one.counted;
    merged.served += one.served;
    for (const name of ALL) merged[name] += one[name];
    for (const [name, histogram] of Object.entries(one.histograms)) {
      merged.histograms[name] = add(merged.histograms[name], histogram);
    }
    merged.waiting = most(merged.waiting, one.waiting);
    merged.active = most(merged.active, one.active);
    if (STANDINGS.indexOf(one.standing) > STANDINGS.indexOf(merged.standing)) merged.standing = one.standing;
  }
  return merged;
}

function subtract(histogram, earlier) {
  if (!earlier || String(earlier.bounds) !== String(histogram.bounds)) return null;
  const counts = histogram.counts.map((count, at) => count - earlier.counts[at]);
  if (counts.some((count) => count < 0)) return null;
  return { bounds: histogram.bounds, counts, sum: histogram.sum - earlier.sum };
}

function add(sum, histogram) {
  if (!sum || String(sum.bounds) !== String(histogram.bounds)) return histogram;
  const counts = sum.counts.map((count, at) => count + histogram.counts[at]);
  return { bounds: sum.bounds, counts, sum: sum.sum + histogram.sum };
}

function most(a, b) {
  return a === null || b === null ? (a ?? b) : Math.max(a, b);
}
