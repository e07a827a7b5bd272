"use strict";
// What all figures share: the page's data, colours, which runs are shown, how a figure looks, and when it is drawn.
// Everything shown is in the page; nothing is asked for.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = Object.keys(data.runs);
// From low to high, legible on white and on near-black.
const RAMP = [[58, 110, 190], [28, 150, 140], [214, 150, 40], [205, 70, 85]];
// Plotly's name of a symbol and the character that stands for it in the legend.
const SYMBOLS = [["circle", "\u25cf"], ["square", "\u25a0"], ["diamond", "\u25c6"], ["triangle-up", "\u25b2"],
  ["x", "\u2716"], ["star", "\u2605"], ["cross", "\u271a"], ["triangle-down", "\u25bc"]];
const element = (id) => document.getElementById(id);

function ramp(share) {
  const place = share * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2);
  const mix = RAMP[low].map((c, i) => Math.round(c + (RAMP[low + 1][i] - c) * (place - low)));
  return `rgb(${mix.join(",")})`;
}

function fainter(colour, opacity) {
  return colour.replace("rgb(", "rgba(").replace(")", `, ${opacity})`);
}

// Plotly reads a few tags and its own %{fields} in its texts; a name is shown as it is written.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%/g, "&#37;");
}

// Settings: their levels in order, and the runs that the filters leave.

function byValue([, a], [, b]) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}

// The values that a setting takes, in order, each with its text, colour and symbol.
function levelsOf(setting) {
  if (!setting) return [{ text: "all runs", value: null, colour: ramp(0), symbol: SYMBOLS[0] }];
  const values = new Map(runs.map((run) => [data.runs[run].settings[setting][1], data.runs[run].settings[setting][0]]));
  const order = [...values].sort(byValue);
  return order.map(([text, value], i) => ({
    text,
    value,
    colour: ramp(order.length > 1 ? i / (order.length - 1) : 0),
    symbol: SYMBOLS[i % SYMBOLS.length],
  }));
}

function textOf(run, setting) {
  return data.runs[run] ? data.runs[run].settings[setting][1] : "";
}

function levelOf(run, { setting, levels }) {
  return (setting && levels.find((level) => level.text === textOf(run, setting.key))) || levels[0];
}

function chosenColour() {
  const key = element("colour") ? element("colour").value : "";
  const setting = data.settings.find((s) => s.key === key);
  return { setting, levels: levelsOf(setting && setting.key) };
}

// For each setting the texts of the levels that are filtered out.
const hidden = new Map(data.settings.map(({ key }) => [key, new Set()]));

function shown(run) {
  return !data.runs[run] || data.settings.every(({ key }) => !hidden.get(key).has(textOf(run, key)));
}

function describe(run) {
  const known = data.runs[run];
  if (!known) return plain(run);
  const lines = data.settings.map(({ key, name }) => `${plain(name)}: ${plain(known.settings[key][1])}`);
  if (known.diverged_at !== null) lines.push(`diverged at step ${known.diverged_at}`);
  return [`<b>${plain(run)}</b>`, ...lines].join("<br>");
}

// Final values of two columns, of the runs that are shown and have both.
function finalPoints(x, y) {
  const { run, values } = data.final;
  return run.map((name, i) => ({ run: name, x: values[x] ? values[x][i] : null, y: y(values, i) }))
    .filter((point) => point.x !== null && point.y !== null && shown(point.run));
}

// How figures look.

function layout(xTitle, yTitle) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), zeroline: false, linecolor: colour("--line"), automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--quiet") },
    hoverlabel: {
      bgcolor: colour("--raised"),
      bordercolor: colour("--line"),
      font: { family: getComputedStyle(document.body).fontFamily, color: colour("--ink") },
      align: "left",
    },
    xaxis: { ...axis, title: { text: plain(xTitle), standoff: 8 } },
    yaxis: { ...axis, title: { text: plain(yTitle), standoff: 8 } },
    margin: { l: 44, r: 10, t: 10, b: 40 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--accent") },
    showlegend: false,
    hovermode: "closest",
  };
}

// A legend within the figure, above it.
function withLegend(given) {
  return { ...given, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { ...given.margin, t: 34 } };
}

// Buttons are named one by one: plotly's own choice holds one that sends the figure to a server.
const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  plotlyServerURL: "",
};
const PANEL_CONFIG = { ...CONFIG, displayModeBar: false };

function pointsTrace(points, colouring) {
  const styles = points.map((point) => levelOf(point.run, colouring));
  return {
    x: points.map((point) => point.x),
    y: points.map((point) => point.y),
    text: points.map((point) => describe(point.run)),
    mode: "markers",
    marker: {
      color: styles.map((level) => level.colour),
      symbol: styles.map((level) => level.symbol[0]),
      size: 10,
      opacity: 0.9,
    },
    hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
  };
}

// When figures are drawn: once they come near the window, and again once something that they show has changed.

const figures = new Map();
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const figure = figures.get(target);
    if (figure) bring(Object.assign(figure, { near: isIntersecting }));
  }
}, { rootMargin: "500px" });

function bring(figure) {
  if (!figure.near || !figure.stale) return;
  figure.stale = false;
  figure.draw(figure.node);
}

// Has `draw(node)` called for the element whenever it has to be.
function addFigure(node, draw) {
  if (!node) return;
  figures.set(node, { node, draw, near: false, stale: true });
  observer.observe(node);
}

function forgetFigure(node) {
  observer.unobserve(node);
  figures.delete(node);
  Plotly.purge(node);
}

function redraw(...nodes) {
  for (const figure of figures.values()) {
    if (nodes.length && !nodes.includes(figure.node)) continue;
    figure.stale = true;
    bring(figure);
  }
}

function drawAll() {
  for (const figure of figures.values()) bring(Object.assign(figure, { near: true }));
}

// Has the figures of these ids drawn again when one of the selects changes.
function redrawOn(selects, ids) {
  for (const id of selects) {
    if (element(id)) element(id).addEventListener("change", () => redraw(...ids.map(element)));
  }
}
