// Samples since the page was opened, bounded: older ones are merged.

import { difference, merge } from "./interval.js";

/** Intervals older than `age` seconds are merged into ones of about `span` seconds. */
const TIERS = [
  { age: 86_400, span: 300 },
  { age: 3_600, span: 30 },
  { age: 900, span: 5 },
];
const THIN_EVERY = 60;
/** The most points of a chart, about. */
const POINTS = 300;
const SPANS = [1, 2, 3, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];

export class History {
  constructor() {
    this.intervals = [];
    this.last = null;
    this.added = 0;
  }

  /** Adds a sample of /dashboard/data, later than those before. */
  add(sample) {
    if (this.last && sample.time <= this.last.time) return;
    if (this.last) this.intervals.push(difference(this.last, sample));
    this.last = sample;
    this.added += 1;
    if (this.added % THIN_EVERY === 0) this.thin();
  }

  /** Seconds from the first sample to the last. */
  get length() {
    return this.intervals.length ? this.last.time - this.intervals[0].from : 0;
  }

  /** The last `seconds` as one interval, or null before the first. */
  recent(seconds) {
    const after = (this.last?.time ?? 0) - seconds - 0.5;
    const recent = this.intervals.filter((one) => one.from >= after);
    return recent.length ? merge(recent) : this.intervals.length ? this.intervals[this.intervals.length - 1] : null;
  }

  /** The last `seconds`, as at most about 300 intervals, oldest first. */
  points(seconds) {
    const after = (this.last?.time ?? 0) - seconds;
    const span = SPANS.find((one) => seconds / one <= POINTS) ?? SPANS[SPANS.length - 1];
    return grouped(this.intervals.filter((one) => one.to >= after), () => span);
  }

  thin() {
    const spanOf = (one) => TIERS.find((tier) => this.last.time - one.to > tier.age)?.span ?? 1;
    this.intervals = grouped(this.intervals, spanOf);
  }
}

/** Merges neighbours that end in the same cell of a time grid. */
function grouped(intervals, spanOf) {
  const groups = [];
  let cell = null;
  for (const one of intervals) {
    const span = spanOf(one);
    const its = span > 1 ? `${span}:${Math.floor(one.to / span)}` : null;
    if (its !== null && its === cell) groups[groups.length - 1].push(one);
    else groups.push([one]);
    cell = its;
  }
  return groups.map((group) => (group.length > 1 ? merge(group) : group[0]));
}
