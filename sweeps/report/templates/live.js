"use strict";
// Asks for the sweep's numbers every few seconds and shows them, until everything is trained and evaluated.

const SECONDS = 5;
const FIRST_METRIC = "unembedding/effective_rank_percent";
const element = (id) => document.getElementById(id);
const style = JSON.parse(element("style").textContent);
const isDark = matchMedia("(prefers-color-scheme: dark)");
let latest = null;
let timer = 0;

function theme() {
  const css = getComputedStyle(document.documentElement);
  const [ink, quiet, line] = ["--ink", "--quiet", "--line"].map((name) => css.getPropertyValue(name).trim());
  const labels = { labelColor: quiet, titleColor: quiet };
  return { ...style, background: "transparent", axis: { ...style.axis, ...labels, gridColor: line, tickColor: line },
           legend: { ...style.legend, ...labels }, title: { ...style.title, color: ink } };
}

function draw(id, metric, title) {
  const setting = element("colour").value;
  const values = latest.curves.filter((point) => point.metric === metric)
    .map((point) => ({ ...point, colour: setting ? String(latest.settings[point.run][setting]) : point.run }));
  const specification = {
    data: { values }, mark: { type: "line", tooltip: true }, width: "container", height: 240,
    encoding: {
      x: { field: "step", type: "quantitative" },
      y: { field: "value", type: "quantitative", title, scale: { zero: false } },
      color: { field: "colour", type: "nominal", title: setting || null, legend: setting ? {} : null },
      detail: { field: "run" },
      tooltip: [{ field: "run" }, { field: "step" }, { field: "value" }],
    },
  };
  return vegaEmbed(element(id), specification, { mode: "vega-lite", config: theme(), actions: false, renderer: "svg", logLevel: 1 });
}

function fill(select, names, first) {
  if (select.options.length === names.length) return;
  const chosen = select.value || first;
  select.replaceChildren(...names.map((name) => new Option(name || "run", name)));
  if (names.includes(chosen)) select.value = chosen;
}

function cell(content) {
  const made = document.createElement("td");
  made.append(content);
  return made;
}

function rowOf(run) {
  const bar = Object.assign(document.createElement("div"), { className: "bar" });
  bar.append(document.createElement("div"));
  bar.firstChild.style.width = `${run.total ? (100 * run.step) / run.total : 100}%`;
  const row = document.createElement("tr");
  const loss = run.loss === null ? "" : run.loss.toFixed(3);
  const cells = [run.run_id, run.state + (run.reason ? `: ${run.reason}` : ""), `${run.step} of ${run.total}`, bar,
                 loss, run.left, run.checkpoints];
  row.append(...cells.map(cell));
  return row;
}

function summary() {
  const count = {};
  for (const { state } of latest.runs) count[state] = (count[state] || 0) + 1;
  const states = Object.entries(count).map(([state, number]) => `${number} ${state}`).join(", ");
  element("summary").textContent = `${latest.runs.length} runs: ${states}.`;
  if (!latest.has_report) return;
  const link = Object.assign(document.createElement("a"), { href: "/report/index.html", textContent: "The report" });
  element("summary").append(" ", link, latest.finished ? " is finished." : " shows an earlier state.");
}

async function show() {
  summary();
  const settings = Object.keys(latest.settings[latest.runs[0].run_id]);
  fill(element("colour"), ["", ...settings], settings.find((name) => !name.endsWith("seed")) || "");
  fill(element("metric"), latest.metrics, FIRST_METRIC);
  element("runs").replaceChildren(...latest.runs.map(rowOf));
  element("lines").replaceChildren(...latest.lines.map((line) =>
    Object.assign(document.createElement("p"), { className: "note", textContent: line })));
  await draw("loss", "loss", "training loss, nats per token");
  if (element("metric").value) await draw("geometry", element("metric").value, element("metric").value);
}

async function ask() {
  clearTimeout(timer);
  try {
    const metric = element("metric").value || FIRST_METRIC;
    const answer = await fetch(`/live.json?metric=${encodeURIComponent(metric)}`);
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    latest = await answer.json();
    await show();
  } catch (error) {
    element("summary").textContent = `No answer (${error.message}); is olmo-jax serve still running?`;
  }
  if (!latest || !latest.finished) timer = setTimeout(ask, 1000 * SECONDS);
}

element("metric").addEventListener("change", ask);
element("colour").addEventListener("change", show);
isDark.addEventListener("change", show);
ask();
