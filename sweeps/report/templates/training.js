"use strict";
// Figures over training: a panel a metric, and spectra.

function chosenTarget() {
  return element("target") && data.targets.find(({ key }) => key === element("target").value);
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
    fillcolor: fainter(colour, 0.13),
    hoverinfo: "skip",
  };
}

function drawPanel(node, key) {
  const against = element("against").value === "step" ? "step" : "tokens";
  const colouring = chosenColour();
  const [bands, lines] = [[], []];
  for (const run of Object.keys(data.curves).filter((name) => data.curves[name][key] && shown(name))) {
    const curve = data.curves[run][key];
    const x = data.at[curve.at][against];
    const { colour } = levelOf(run, colouring);
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
  const title = against === "step" ? "steps" : "tokens";
  Plotly.react(node, [...bands, ...lines], layout(title, ""), PANEL_CONFIG);
}

function panelsOf(target) {
  const has = ({ key }) => Object.values(data.curves).some((curve) => curve[key]);
  return [data.training_loss, ...(target ? target.panels : [])].filter(has);
}

function makePanels() {
  if (!element("panels")) return;
  for (const old of element("panels").querySelectorAll("figure > div")) forgetFigure(old);
  const target = chosenTarget();
  element("counts").textContent = target ? target.note : "";
  const panels = panelsOf(target).map(({ key, name }) => {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const panel = document.createElement("div");
    caption.textContent = name;
    panel.id = `figure-${key}`;
    figure.append(caption, panel);
    return { key, figure, panel };
  });
  element("panels").replaceChildren(...panels.map(({ figure }) => figure));
  for (const { key, panel } of panels) addFigure(panel, (node) => drawPanel(node, key));
}

// Spectra: of one run by step, or of all runs at their last.

function makeSpectrumRuns() {
  const choice = element("spectrum-run");
  if (!choice) return;
  const { runs: measured } = data.spectra[element("spectrum-of").value];
  const before = choice.value;
  choice.replaceChildren(new Option("all, at their last step", ""), ...Object.keys(measured).map((run) => new Option(run, run)));
  choice.value = before in measured ? before : Object.keys(measured)[0] || "";
}

// Smaller than this share of the largest is rounding, and has no place on a log axis.
const ROUNDING = 1e-5;

function spectrumLine({ places, steps, values }, i, colour, name) {
  return {
    x: places,
    y: values[i].map((value) => (value > ROUNDING * values[i][0] ? value : null)),
    mode: "lines+markers",
    marker: { size: 4 },
    line: { color: colour, width: 1.4 },
    hovertemplate: `${name}<br>step ${steps[i].toLocaleString()}, place %{x}: %{y:.4g}<extra></extra>`,
  };
}

function drawSpectra(node) {
  const { runs: measured } = data.spectra[element("spectrum-of").value];
  const run = element("spectrum-run").value;
  const colouring = chosenColour();
  const one = measured[run];
  const lines = one
    ? one.steps.map((_, i) => spectrumLine(one, i, ramp(one.steps.length > 1 ? i / (one.steps.length - 1) : 1), plain(run)))
    : Object.keys(measured).filter(shown).map((name) => spectrumLine(
      measured[name], measured[name].steps.length - 1, levelOf(name, colouring).colour, describe(name)));
  const given = layout("place in the spectrum", "singular value");
  const places = [...new Set(Object.values(measured).flatMap((of) => of.places))];
  given.xaxis = { ...given.xaxis, type: "log", tickvals: places, ticktext: places.map(String) };
  given.yaxis = { ...given.yaxis, type: "log", exponentformat: "power", dtick: 1 };
  Plotly.react(node, lines, given, CONFIG);
}

if (element("target")) element("target").addEventListener("change", makePanels);
if (element("against")) element("against").addEventListener("change", () => redraw(...document.querySelectorAll("#panels figure > div")));
makePanels();
makeSpectrumRuns();
if (element("spectrum-of")) element("spectrum-of").addEventListener("change", makeSpectrumRuns);
addFigure(element("figure-spectra"), drawSpectra);
redrawOn(["spectrum-of", "spectrum-run"], ["figure-spectra"]);
