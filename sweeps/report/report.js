"use strict";
// Draws the figures and sorts the tables of the report. Everything it shows is in the page; it asks for nothing.

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

// Plotly reads a few tags and its own %{fields} in its texts; a name is shown as it is written.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%/g, "&#37;");
}

// The values that a setting takes, in order, each with its text, colour and symbol.
function levelsOf(setting) {
  if (!setting) return [{ text: "all runs", colour: ramp(0), symbol: SYMBOLS[0] }];
  const values = new Map(runs.map((run) => [data.runs[run].settings[setting][1], data.runs[run].settings[setting][0]]));
  const order = [...values].sort(([, a], [, b]) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  return order.map(([text], i) => ({
    text,
    colour: ramp(order.length > 1 ? i / (order.length - 1) : 0),
    symbol: SYMBOLS[i % SYMBOLS.length],
  }));
}

function levelOf(run, setting, levels) {
  const known = data.runs[run];
  return (setting && known && levels.find((level) => level.text === known.settings[setting][1])) || levels[0];
}

function describe(run) {
  const known = data.runs[run];
  if (!known) return plain(run);
  const lines = data.settings.map(({ key, name }) => `${plain(name)}: ${plain(known.settings[key][1])}`);
  if (known.diverged_at !== null) lines.push(`diverged at step ${known.diverged_at}`);
  return [`<b>${plain(run)}</b>`, ...lines].join("<br>");
}

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

// Buttons are named one by one: plotly's own choice holds one that sends the figure to a server.
const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  plotlyServerURL: "",
};
const PANEL_CONFIG = { ...CONFIG, displayModeBar: false };

function drawLegend(setting, levels) {
  for (const list of document.querySelectorAll(".legend")) {
    list.replaceChildren(...levels.map((level) => {
      const item = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.textContent = level.symbol[1];
      swatch.style.color = level.colour;
      item.append(swatch, setting ? `${setting.name} ${level.text}` : level.text);
      return item;
    }));
  }
}

function chosenTarget() {
  return element("target") && data.targets.find(({ key }) => key === element("target").value);
}

function panelsOf(target) {
  return [data.training_loss, ...(target ? target.panels : [])];
}

// A curve's spread up and down as a closed outline; a gap in either leaves its point out.
function band(x, { value, spread }, colour) {
  const there = x.map((_, i) => i).filter((i) => value[i] !== null && spread[i] !== null);
  const back = [...there].reverse();
  return {
    x: [...there, ...back].map((i) => x[i]),
    y: [...there.map((i) => value[i] + spread[i]), ...back.map((i) => value[i] - spread[i])],
    mode: "lines",
    line: { width: 0 },
    fill: "toself",
    fillcolor: colour.replace("rgb(", "rgba(").replace(")", ", 0.13)"),
    hoverinfo: "skip",
  };
}

function drawPanels(setting, levels) {
  if (!element("panels")) return;
  const against = element("against").value;
  for (const key of panelsOf(chosenTarget()).map((panel) => panel.key)) {
    const [bands, lines] = [[], []];
    for (const run of Object.keys(data.curves).filter((name) => data.curves[name][key])) {
      const curve = data.curves[run][key];
      const x = data.at[curve.at][against === "step" ? "step" : "tokens"];
      const { colour } = levelOf(run, setting, levels);
      if (curve.spread) bands.push(band(x, curve, colour));
      lines.push({
        x,
        y: curve.value,
        text: (curve.spread || []).map((spread) => (spread === null ? "" : ` \u00b1 ${spread.toPrecision(2)}`)),
        mode: curve.value.length > 40 ? "lines" : "lines+markers",
        line: { color: colour, width: 1.4 },
        marker: { size: 4 },
        hovertemplate: `${describe(run)}<br>${against} %{x:,}: %{y:.4g}${curve.spread ? "%{text}" : ""}<extra></extra>`,
      });
    }
    const panel = element(`figure-${key}`);
    panel.closest("figure").hidden = lines.length === 0;
    const traces = [...bands, ...lines];
    if (lines.length) Plotly.react(panel, traces, layout(against === "step" ? "steps" : "tokens", ""), PANEL_CONFIG);
  }
}

function drawScatter(setting, levels) {
  if (!element("figure-scatter")) return;
  const [x, y] = [element("x").value, element("y").value];
  const there = data.final.run.map((run, i) => ({ run, x: data.final.values[x][i], y: data.final.values[y][i] }))
    .filter((point) => point.x !== null && point.y !== null);
  const styles = there.map((point) => levelOf(point.run, setting, levels));
  const trace = {
    x: there.map((point) => point.x),
    y: there.map((point) => point.y),
    text: there.map((point) => describe(point.run)),
    mode: "markers",
    marker: {
      color: styles.map((level) => level.colour),
      symbol: styles.map((level) => level.symbol[0]),
      size: 11,
      opacity: 0.9,
    },
    hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
  };
  Plotly.react(element("figure-scatter"), [trace], layout(x, y), CONFIG);
}

function draw() {
  const chosen = element("colour") ? element("colour").value : data.settings.length ? data.settings[0].key : "";
  const setting = data.settings.find(({ key }) => key === chosen);
  const levels = levelsOf(setting && setting.key);
  drawLegend(setting, levels);
  drawPanels(setting && setting.key, levels);
  drawScatter(setting && setting.key, levels);
}

function makePanels() {
  if (!element("panels")) return;
  for (const drawn of document.querySelectorAll("#panels .js-plotly-plot")) Plotly.purge(drawn);
  const target = chosenTarget();
  element("counts").textContent = target ? target.note : "";
  element("panels").replaceChildren(...panelsOf(target).map(({ key, name }) => {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const panel = document.createElement("div");
    caption.textContent = name;
    panel.id = `figure-${key}`;
    figure.append(caption, panel);
    return figure;
  }));
}

function makeColours() {
  if (!element("colour")) return;
  const options = data.settings.map(({ key, name }) => new Option(name, key));
  element("colour").replaceChildren(...(options.length ? options : [new Option("nothing varies", "")]));
}

const onlyFinal = element("only-final");
if (onlyFinal) {
  const apply = () => element("table").classList.toggle("only-final", onlyFinal.checked);
  onlyFinal.addEventListener("change", apply);
  onlyFinal.checked = true;
  apply();
}

makeColours();
makePanels();
if (element("target")) element("target").addEventListener("change", makePanels);
for (const id of ["target", "colour", "against", "x", "y"]) {
  if (element(id)) element(id).addEventListener("change", draw);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
