// Charts over time, drawn by uPlot in the colours of the page's theme.

/* global uPlot */
import { clock } from "./format.js";

const FONT = "11px Inter, system-ui, sans-serif";
/** Steps of an axis that counts things. */
const WHOLE = [1, 2, 5].flatMap((one) => [one, one * 10, one * 100, one * 1e3, one * 1e4, one * 1e5, one * 1e6]).sort((a, b) => a - b);
/** All charts, which are drawn again after a change of theme or width. */
const charts = new Set();

/** A chart in `host` with axes. `series`: [{name, color, fill?, dash?, axis?}], colours as CSS variables;
 *  `axes`: [{format, log?, least?, most?, whole?, splits?, size?, space?}], the first on the left and a second on the right.
 *  Returns {draw(times, columns, window, bands)}; `onCursor(index or null)` is called with the pointed index. */
export function timeChart(host, series, axes, onCursor) {
  const state = { window: [0, 1], bands: [] };
  const plot = new uPlot(
    {
      ...size(host),
      padding: [10, axes.length > 1 ? 0 : 8, 0, 0],
      legend: { show: false },
      cursor: {
        y: false,
        drag: { x: false, y: false },
        sync: { key: "page" },
        points: { size: 8, width: 2, stroke: () => color("--card"), fill: (u, at) => color(series[at - 1].color) },
      },
      scales: Object.fromEntries([["x", { range: () => state.window }], ...axes.map(scale)]),
      axes: [timeAxis(), ...axes.map(valueAxis)],
      series: [{}, ...series.map(line)],
      hooks: {
        drawClear: [(u) => shade(u, state.bands)],
        setCursor: [(u) => onCursor(u.cursor.idx ?? null)],
      },
    },
    [[], ...series.map(() => [])],
    host,
  );
  return keep(host, plot, state);
}

/** A line without axes, for a tile. */
export function sparkline(host, name) {
  const state = { window: [0, 1], bands: [] };
  const plot = new uPlot(
    {
      ...size(host),
      padding: [3, 0, 1, 0],
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { range: (u, first) => [Math.max(first ?? 0, state.window[0]), state.window[1]] }, y0: scale({ least: 0.01 }, 0)[1] },
      axes: [{ show: false }, { show: false, scale: "y0" }],
      series: [{}, line({ color: name, fill: 0.16 })],
    },
    [[], []],
    host,
  );
  return keep(host, plot, state);
}

function keep(host, plot, state) {
  charts.add(plot);
  new ResizeObserver(() => plot.setSize(size(host))).observe(host);
  return {
    draw(times, columns, window, bands = []) {
      Object.assign(state, { window, bands });
      plot.setData([times, ...columns]);
    },
  };
}

function size(host) {
  return { width: Math.max(host.clientWidth, 40), height: Math.max(host.clientHeight, 24) };
}

function scale(axis, at) {
  const { log = false, least = 1, most = null } = axis;
  if (log) return [`y${at}`, { distr: 3, range: (u, low, high) => decades(low, high) }];
  const range = (u, low, high) => [0, most ?? Math.max((high ?? 0) * 1.15, least)];
  return [`y${at}`, { range }];
}

/** The range between round figures, so that the axis does not move with each point. */
function decades(low, high) {
  const round = [1, 2, 5];
  const down = (value) => {
    const power = 10 ** Math.floor(Math.log10(value));
    return power * Math.max(...round.filter((one) => one * power <= value * 1.0001));
  };
  const up = (value) => {
    const power = 10 ** Math.floor(Math.log10(value));
    return power * (round.find((one) => one * power >= value) ?? 10);
  };
  return low > 0 ? [down(low / 1.2), up(high * 1.2)] : [1, 100];
}

function timeAxis() {
  return {
    ...quiet(),
    grid: { show: false },
    size: 26,
    space: 110,
    values: (u, times) => times.map((time) => clock(time, u.scales.x.max - u.scales.x.min < 1200)),
  };
}

function valueAxis(axis, at) {
  return {
    ...quiet(),
    scale: `y${at}`,
    side: at ? 1 : 3,
    size: axis.size ?? 44,
    space: axis.space ?? 36,
    gap: 8,
    grid: { show: at === 0, stroke: () => color("--grid"), width: 1 },
    ...(axis.splits ? { splits: axis.splits } : {}),
    ...(axis.whole ? { incrs: WHOLE } : {}),
    ...(axis.log ? { splits: (u, i, low, high) => rounds(low, high), filter: (u, values) => values } : {}),
    values: (u, values) => values.map((value) => (value === null ? "" : axis.format(value))),
  };
}

/** 1, 2, 5, 10, … from `low` to `high`, or only 1, 10, … where those are too many. */
function rounds(low, high) {
  const all = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const one of [1, 2, 5]) all.push(one * 10 ** power);
  }
  const within = all.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  const few = within.filter((value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-6);
  return within.length > 6 ? few : within;
}

function quiet() {
  return { stroke: () => color("--muted"), font: FONT, ticks: { show: false } };
}

function line(one) {
  return {
    scale: `y${one.axis ?? 0}`,
    stroke: () => color(one.color),
    width: one.width ?? 1.75,
    dash: one.dash,
    paths: uPlot.paths.spline(),
    points: { show: true, size: 3, filter: alone, fill: () => color(one.color) },
    fill: one.fill ? (u) => fade(u, color(one.color), one.fill) : undefined,
  };
}

/** Points without a neighbour, which no line would show. */
function alone(u, at) {
  const values = u.data[at];
  const known = (index) => values[index] !== null && values[index] !== undefined;
  const found = [];
  for (let index = 0; index < values.length; index++) {
    if (known(index) && !known(index - 1) && !known(index + 1)) found.push(index);
  }
  return found;
}

function fade(u, stroke, most) {
  const gradient = u.ctx.createLinearGradient(0, u.bbox.top, 0, u.bbox.top + u.bbox.height);
  gradient.addColorStop(0, transparent(stroke, most));
  gradient.addColorStop(1, transparent(stroke, 0));
  return gradient;
}

/** Shades the times in which the server did not answer, behind the lines. */
function shade(u, bands) {
  const { left, top, width, height } = u.bbox;
  u.ctx.save();
  u.ctx.beginPath();
  u.ctx.rect(left, top, width, height);
  u.ctx.clip();
  for (const band of bands) {
    const [from, to] = [u.valToPos(band.from, "x", true), u.valToPos(band.to, "x", true)];
    const shown = color(band.standing === "away" ? "--bad" : "--warn");
    u.ctx.fillStyle = transparent(shown, 0.1);
    u.ctx.fillRect(from, top, to - from, height);
    u.ctx.fillStyle = shown;
    u.ctx.fillRect(from, top, to - from, 2 * devicePixelRatio);
  }
  u.ctx.restore();
}

let styles = getComputedStyle(document.documentElement);
function color(name) {
  return styles.getPropertyValue(name).trim();
}

/** A colour of the theme, #rrggbb, with an opacity. */
function transparent(hex, opacity) {
  return hex + Math.round(opacity * 255).toString(16).padStart(2, "0");
}

addEventListener("themechange", () => {
  styles = getComputedStyle(document.documentElement);
  for (const plot of charts) plot.redraw(false);
});
