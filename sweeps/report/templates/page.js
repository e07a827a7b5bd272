"use strict";
// Draws the figures of a page from the specifications and data in it, once they come near the viewport; colour and
// filters act on all figures of single runs and on the rows of tables. Nothing is requested from a server.

const page = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);

// New rows for each figure, because Vega adds symbols to the objects that it is given.
function rowsOf(name) {
  const decoded = (values) => (values.codes ? values.codes.map((code) => values.levels[code]) : values);
  const columns = Object.entries(page.datasets[name]).map(([key, values]) => [key, decoded(values)]);
  const count = columns.length ? columns[0][1].length : 0;
  return Array.from({ length: count }, (_, i) => Object.fromEntries(columns.map(([key, values]) => [key, values[i]])));
}

const runs = page.datasets.runs ? rowsOf("runs") : [];
// The parameters that all figures of single runs share.
const shared = { colour_by: page.settings[0] || "", hidden: [] };

// Figures.

function theme() {
  const style = getComputedStyle(document.documentElement);
  const [ink, quiet, line] = ["--ink", "--quiet", "--line"].map((name) => style.getPropertyValue(name).trim());
  const labels = { labelColor: quiet, titleColor: quiet };
  const { axis, legend, header, title } = page.style;
  return {
    ...page.style,
    background: "transparent",
    axis: { ...axis, ...labels, gridColor: line, tickColor: line },
    legend: { ...legend, ...labels },
    header: { ...header, labelColor: ink, titleColor: ink, labelFontWeight: "bold" },
    title: { ...title, color: ink, subtitleColor: quiet, fontWeight: "bold" },
    text: { color: ink },
  };
}

const isDark = matchMedia("(prefers-color-scheme: dark)");
const figures = [...document.querySelectorAll("[data-figure]")].map(
  (node) => ({ node, name: node.dataset.figure, near: false, stale: true, view: null }));

// The value of a figure's parameter: that which all figures share, or the reader's choice, or the initial value.
function valueOf(figure, { name, value }) {
  if (name in shared) return shared[name];
  return figure.view ? figure.view.signal(name) : value;
}

async function draw(figure) {
  figure.stale = false;
  const specification = structuredClone(page.figures[figure.name]);
  for (const param of specification.params || []) param.value = valueOf(figure, param);
  const patch = (compiled) => {
    for (const set of compiled.data) if (page.datasets[set.name]) set.values = rowsOf(set.name);
    return compiled;
  };
  if (figure.view) figure.view.finalize();
  const actions = { export: true, source: false, compiled: false, editor: false };
  const options = { mode: "vega-lite", config: theme(), patch, actions, renderer: "svg", downloadFileName: figure.name };
  options.logLevel = 1; // errors: Vega warns of each panel without data
  options.tooltip = { theme: isDark.matches ? "dark" : "light" };
  figure.view = (await vegaEmbed(figure.node, specification, options)).view;
}

function bring(figure) {
  if (figure.near && figure.stale) draw(figure);
}

const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    bring(Object.assign(figures.find(({ node }) => node === target), { near: isIntersecting }));
  }
}, { rootMargin: "500px" });
for (const { node } of figures) observer.observe(node);

// Draws every figure; the promise resolves when all are drawn.
function drawAll() {
  return Promise.all(figures.map((figure) => (figure.stale ? draw(figure) : null)));
}

function share(name, value) {
  shared[name] = value;
  for (const { view, name: figure } of figures) {
    if (view && (page.figures[figure].params || []).some((param) => param.name === name)) view.signal(name, value).runAsync();
  }
}

isDark.addEventListener("change", () => {
  for (const figure of figures) bring(Object.assign(figure, { stale: true }));
});
addEventListener("beforeprint", drawAll);

// Colour and filters.

function levelsOf(setting) {
  const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  return [...new Set(runs.map((run) => run[setting]))].sort(order);
}

function applyFilters() {
  const off = [...document.querySelectorAll("#filters input")].filter(({ checked }) => !checked);
  const isHidden = (run) => off.some(({ dataset }) => String(run[dataset.setting]) === dataset.level);
  const hidden = runs.filter(isHidden).map(({ run }) => run);
  element("shown").textContent = `${runs.length - hidden.length} of ${runs.length} runs shown`;
  element("show-all").hidden = hidden.length === 0;
  for (const row of document.querySelectorAll("tr[data-run]")) row.hidden = hidden.includes(row.dataset.run);
  share("hidden", hidden);
}

function labelled(child, text) {
  const label = document.createElement("label");
  label.append(child, ` ${text}`);
  return label;
}

function makeFilter(setting) {
  const set = document.createElement("fieldset");
  const legend = document.createElement("legend");
  legend.textContent = setting;
  set.append(legend, ...levelsOf(setting).map((level) => {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
    Object.assign(box.dataset, { setting, level: String(level) });
    box.addEventListener("change", applyFilters);
    return labelled(box, level);
  }));
  return set;
}

if (element("colour")) {
  element("colour").replaceChildren(...page.settings.map((name) => new Option(name, name)));
  element("colour").addEventListener("change", ({ target }) => share("colour_by", target.value));
  element("filters").replaceChildren(...page.settings.map(makeFilter));
  element("show-all").addEventListener("click", () => {
    for (const box of document.querySelectorAll("#filters input")) box.checked = true;
    applyFilters();
  });
  applyFilters();
}
