"use strict";
// Figures over final rows: loss against geometry, either by a setting, the matrix of correlations, effects of what is
// done to trained models, saturation.

function drawScatter(node) {
  const [x, y] = [element("x").value, element("y").value];
  const points = finalPoints(x, (values, i) => values[y][i]);
  Plotly.react(node, [pointsTrace(points, chosenColour())], layout(x, y), CONFIG);
}

// Mean and range of runs at each value of a setting, a line a level of the colour.
function drawBySetting(node, column) {
  const key = element("setting").value;
  const { name } = data.settings.find((setting) => setting.key === key);
  const colouring = chosenColour();
  const given = (colouring.setting || {}).key === key ? { setting: undefined, levels: levelsOf() } : colouring;
  const at = levelsOf(key);
  const numeric = at.every(({ value }) => typeof value === "number");
  const lines = given.levels.map((level) => {
    const of = at.map(({ text }) => data.final.run
      .map((run, i) => ({ run, y: data.final.values[column][i] }))
      .filter(({ run, y }) => y !== null && shown(run) && textOf(run, key) === text && levelOf(run, given) === level)
      .map(({ y }) => y));
    const there = at.map((_, i) => i).filter((i) => of[i].length);
    const mean = there.map((i) => of[i].reduce((sum, y) => sum + y, 0) / of[i].length);
    return {
      x: there.map((i) => (numeric ? at[i].value : plain(at[i].text))),
      y: mean,
      error_y: {
        type: "data",
        symmetric: false,
        array: there.map((i, j) => Math.max(...of[i]) - mean[j]),
        arrayminus: there.map((i, j) => mean[j] - Math.min(...of[i])),
        thickness: 1,
        width: 3,
      },
      text: there.map((i) => `${of[i].length} run${of[i].length === 1 ? "" : "s"}`),
      mode: "lines+markers",
      line: { color: level.colour, width: 1.6 },
      marker: { symbol: level.symbol[0], size: 8 },
      hovertemplate: `${plain(level.text)}<br>${plain(name)} %{x}: %{y:.4g}, mean of %{text}<extra></extra>`,
    };
  }).filter(({ x }) => x.length);
  const look = layout(name, column);
  const values = at.map(({ value }) => value);
  if (numeric && Math.min(...values) > 0 && Math.max(...values) >= 8 * Math.min(...values)) {
    look.xaxis = { ...look.xaxis, type: "log", tickvals: values, ticktext: at.map(({ text }) => text) };
  } else if (!numeric) {
    look.xaxis.type = "category";
  }
  Plotly.react(node, lines, look, CONFIG);
}

// The matrix of correlations.

function makeMatrixTargets() {
  const choice = element("matrix-of");
  if (!choice) return;
  const targets = [...new Set(data.matrix.metrics.map((metric) => metric.slice(0, metric.lastIndexOf("/"))))];
  const names = new Map(data.targets.map(({ key, name }) => [key, name]));
  choice.replaceChildren(...targets.map((target) => new Option(names.get(target) || target, target)));
}

function drawMatrix(node, method, title) {
  const { metrics, names, targets, methods } = data.matrix;
  const of = element("matrix-of").value;
  const rows = metrics.map((metric, i) => ({ metric, i })).filter(({ metric }) => metric.startsWith(`${of}/`)).reverse();
  const at = (name) => rows.map(({ i }) => methods[method][name][i]);
  const [estimate, low, high, q] = ["estimate", "low", "high", "q_value"].map(at);
  const two = (x) => (x === null ? "?" : x.toFixed(2));
  const told = estimate.map((row, i) => row.map((r, j) => [
    `${plain(names[rows[i].metric])}<br>${plain(targets[j])}<br>${title}: ${two(r)}`,
    low[i][j] === null ? "" : `<br>95 % interval ${two(low[i][j])} to ${two(high[i][j])}`.replace("%", "&#37;"),
    q[i][j] === null ? "" : `<br>q ${q[i][j].toPrecision(2)}`,
  ].join("")));
  const look = layout("", "");
  look.xaxis = { ...look.xaxis, tickangle: -45, type: "category" };
  look.yaxis = { ...look.yaxis, type: "category" };
  look.title = { text: title, font: { size: 13 }, y: 0.98 };
  look.margin = { ...look.margin, t: 30 };
  Plotly.react(node, [{
    type: "heatmap",
    z: estimate,
    x: targets.map(plain),
    y: rows.map(({ metric }) => plain(metric.slice(of.length + 1).replace(/_/g, " "))),
    zmin: -1,
    zmax: 1,
    colorscale: [[0, "rgb(40,100,180)"], [0.5, "rgb(238,238,238)"], [1, "rgb(200,90,30)"]],
    text: q.map((row) => row.map((value) => (value !== null && value < 0.05 ? "\u2022" : ""))),
    texttemplate: "%{text}",
    customdata: told,
    hovertemplate: "%{customdata}<extra></extra>",
    xgap: 1,
    ygap: 1,
    colorbar: { thickness: 10, tickvals: [-1, 0, 1], outlinewidth: 0 },
  }], look, CONFIG);
}

// What is done to trained models.

function effectOf(key) {
  const effect = data.effects.find((one) => one.key === key);
  return (values, i) => {
    const [after, before] = [values[key], effect.less === null ? null : values[effect.less]];
    if (!after || after[i] === null) return null;
    if (effect.less !== null && (!before || before[i] === null)) return null;
    return effect.less === null ? after[i] : after[i] - before[i];
  };
}

function drawEffect(node) {
  const [key, metric] = [element("effect").value, element("effect-metric").value];
  const points = finalPoints(metric, effectOf(key));
  const { name } = data.effects.find((one) => one.key === key);
  Plotly.react(node, [pointsTrace(points, chosenColour())], layout(metric, name), CONFIG);
}

function drawBits(node) {
  const colouring = chosenColour();
  const methods = [...new Set(data.effects.filter(({ bits }) => bits).map(({ method }) => method))];
  const lines = methods.flatMap((method, m) => {
    const steps = data.effects.filter((one) => one.method === method).sort((a, b) => a.bits - b.bits);
    return data.final.run.map((run, i) => {
      const rises = steps.map(({ key }) => effectOf(key)(data.final.values, i));
      return {
        x: steps.map(({ bits }) => bits),
        y: rises,
        mode: "lines+markers",
        line: { color: levelOf(run, colouring).colour, width: 1.2, dash: ["solid", "dot", "dash", "dashdot"][m % 4] },
        marker: { size: 5 },
        visible: shown(run) && rises.some((rise) => rise !== null),
        hovertemplate: `${describe(run)}<br>${plain(method)}, %{x} bits: %{y:.4g}<extra></extra>`,
      };
    });
  });
  const look = layout(`bits (${methods.map((m, i) => `${m}: ${["solid", "dotted", "dashed", "dash-dotted"][i % 4]}`).join(", ")})`,
    "rise of in-domain loss");
  Plotly.react(node, lines, look, CONFIG);
}

function drawSaturation(node) {
  const points = data.saturation
    .filter(({ run_id: run, rise, rank_percent: rank }) => rise !== null && rank !== null && shown(run))
    .map((row) => ({ run: row.run_id, x: row.rank_percent, y: row.rise, error: row.standard_error }));
  const trace = pointsTrace(points, chosenColour());
  trace.error_y = { type: "data", array: points.map(({ error }) => 2 * (error || 0)), thickness: 1, width: 2 };
  const look = layout("effective rank of the unembedding at the end, % of D", "rise of loss after its best");
  if (data.median_rank !== null) {
    const across = { x0: data.median_rank, x1: data.median_rank, yref: "paper", y0: 0, y1: 1 };
    look.shapes = [{ type: "line", ...across, line: { color: look.font.color, width: 1, dash: "dot" } }];
  }
  Plotly.react(node, [trace], look, CONFIG);
}

makeMatrixTargets();
addFigure(element("figure-scatter"), drawScatter);
redrawOn(["x", "y"], ["figure-scatter"]);
addFigure(element("figure-setting-metric"), (node) => drawBySetting(node, element("setting-metric").value));
addFigure(element("figure-setting-loss"), (node) => drawBySetting(node, element("setting-loss").value));
redrawOn(["setting", "setting-metric"], ["figure-setting-metric"]);
redrawOn(["setting", "setting-loss"], ["figure-setting-loss"]);
addFigure(element("figure-matrix-raw"), (node) => drawMatrix(node, "raw", "raw"));
addFigure(element("figure-matrix-partial"), (node) => drawMatrix(node, element("matrix-form").value, "partial"));
redrawOn(["matrix-of"], ["figure-matrix-raw", "figure-matrix-partial"]);
redrawOn(["matrix-form"], ["figure-matrix-partial"]);
addFigure(element("figure-effect"), drawEffect);
addFigure(element("figure-bits"), drawBits);
redrawOn(["effect", "effect-metric"], ["figure-effect"]);
addFigure(element("figure-saturation"), drawSaturation);
