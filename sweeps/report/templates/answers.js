"use strict";
// Figures of the answers over all finished runs: shares of variance, predictions.

const VARIANCE_COLUMNS = 16;
const IMPORTANT = 14;
// Rows of predictions that hold a difference of two R2.
const GAIN = "geometry's gain";

function settingName(key) {
  return key.startsWith("config.") ? key.slice(key.lastIndexOf(".") + 1).replace(/_/g, " ") : key;
}

function drawVariance(node) {
  const columns = [...new Set(data.variance.filter(({ share }) => share !== null).map(({ column }) => column))];
  const drawn = [...data.primary.filter((c) => columns.includes(c)), ...columns.filter((c) => !data.primary.includes(c))]
    .slice(0, VARIANCE_COLUMNS).reverse();
  const settings = [...new Set(data.variance.map(({ setting }) => setting))];
  const own = settings.filter((setting) => setting !== "rest" && setting !== "seed");
  const colour = (setting) => ({ seed: "rgb(130,130,140)", rest: "rgba(130,130,140,0.35)" }[setting]
    || ramp(own.length > 1 ? own.indexOf(setting) / (own.length - 1) : 0));
  const bars = settings.map((setting) => {
    const of = new Map(data.variance.filter((row) => row.setting === setting).map((row) => [row.column, row]));
    const rows = drawn.map((column) => of.get(column) || { share: null, low: null, high: null });
    return {
      type: "bar",
      orientation: "h",
      name: plain(settingName(setting)),
      y: drawn.map(plain),
      x: rows.map(({ share }) => share),
      marker: { color: colour(setting) },
      customdata: rows.map(({ low, high }) => (low === null ? "" : ` (${low.toFixed(2)} to ${high.toFixed(2)})`)),
      hovertemplate: "%{y}<br>%{fullData.name}: %{x:.2f}%{customdata}<extra></extra>",
    };
  });
  const look = withLegend(layout("share of variance", ""));
  look.barmode = "stack";
  look.xaxis.range = [0, 1];
  Plotly.react(node, bars, look, CONFIG);
}

// Points with intervals, a colour a set of features.
function intervals(rows, features, x) {
  return features.map((name, i) => {
    const of = rows.filter((row) => row.features === name && row.r2 !== null);
    return {
      name: plain(name),
      x: of.map(x),
      y: of.map(({ r2 }) => r2),
      error_y: {
        type: "data",
        symmetric: false,
        array: of.map(({ r2, high }) => (high === null ? 0 : high - r2)),
        arrayminus: of.map(({ r2, low }) => (low === null ? 0 : r2 - low)),
        thickness: 1.2,
        width: 4,
      },
      mode: "markers",
      marker: { color: ramp(features.length > 1 ? i / (features.length - 1) : 0), symbol: SYMBOLS[i][0], size: 10 },
      hovertemplate: "%{x}<br>%{fullData.name}: R2 %{y:.3f}<extra></extra>",
    };
  }).filter(({ x: there }) => there.length);
}

function featuresOf(rows) {
  return [...new Set(rows.map(({ features }) => features))].filter((features) => features !== GAIN);
}

function drawIntervals(node, rows, x, title) {
  const look = withLegend(layout(title, "R2 out of fold"));
  look.xaxis.type = "category";
  look.scattermode = "group";
  Plotly.react(node, intervals(rows, featuresOf(rows), x), look, CONFIG);
}

function drawPrediction(node) {
  const rows = data.prediction.filter(({ target }) => target === element("predicted").value);
  drawIntervals(node, rows, ({ model }) => plain(model), "from the end of training");
}

function drawEarly(node) {
  drawIntervals(node, data.early, ({ share }) => `${Math.round(100 * share)} %`, `of training done; final ${data.early[0] ? data.early[0].target : "loss"}`);
}

function drawImportance(node) {
  const rows = data.importance.filter(({ target, importance }) => target === element("predicted").value && importance !== null);
  const models = [...new Set(rows.map(({ model }) => model))];
  const features = [...new Set(rows.map(({ feature }) => feature))]
    .map((feature) => ({ feature, most: Math.max(...rows.filter((row) => row.feature === feature).map((row) => row.importance)) }))
    .sort((a, b) => a.most - b.most).slice(-IMPORTANT).map(({ feature }) => feature);
  const bars = models.map((model, i) => {
    const of = new Map(rows.filter((row) => row.model === model).map((row) => [row.feature, row]));
    return {
      type: "bar",
      orientation: "h",
      name: plain(model),
      y: features.map((feature) => plain(settingName(feature))),
      x: features.map((feature) => (of.get(feature) || { importance: null }).importance),
      marker: { color: ramp(models.length > 1 ? i / (models.length - 1) : 0) },
      hovertemplate: "%{y}: %{x:.3f}<extra></extra>",
    };
  });
  Plotly.react(node, bars, withLegend(layout("R2 lost when shuffled", "")), CONFIG);
}

function makePredicted() {
  if (!element("predicted")) return;
  const targets = [...new Set(data.prediction.map(({ target }) => target))];
  element("predicted").replaceChildren(...targets.map((target) => new Option(target, target)));
}

makePredicted();
addFigure(element("figure-variance"), drawVariance);
addFigure(element("figure-prediction"), drawPrediction);
addFigure(element("figure-early"), drawEarly);
addFigure(element("figure-importance"), drawImportance);
redrawOn(["predicted"], ["figure-prediction", "figure-importance"]);
