"use strict";
// Draws the differences of a comparison of sweeps, a row a column of the table; base.js says how figures look.

const KINDS = {
  loss: { colour: ramp(1), symbol: SYMBOLS[0] },
  metric: { colour: ramp(0), symbol: SYMBOLS[2] },
};

// Rows lie at their places, since plotly would make one category of two names that it reads alike.
function differenceTrace(rows, kind) {
  const { colour, symbol } = KINDS[kind];
  const drawn = rows.map((row, place) => ({ ...row, place })).filter((row) => row.kind === kind);
  return {
    x: drawn.map((row) => row.value),
    y: drawn.map((row) => row.place),
    error_x: {
      type: "data",
      symmetric: false,
      array: drawn.map((row) => (row.high === null ? 0 : row.high - row.value)),
      arrayminus: drawn.map((row) => (row.low === null ? 0 : row.value - row.low)),
      color: colour,
      thickness: 1.4,
      width: 3,
    },
    text: drawn.map((row) => `<b>${plain(row.column)}</b><br>${plain(row.text)}`),
    mode: "markers",
    marker: { color: colour, size: 9, symbol: drawn.map((row) => (row.sure ? symbol[0] : `${symbol[0]}-open`)) },
    hovertemplate: "%{text}<br>%{x:.2f} standard deviations<extra></extra>",
  };
}

function drawDifferences(node, { rows, unit, range }) {
  const look = layout(`difference ${unit}`, "");
  const quiet = getComputedStyle(document.documentElement).getPropertyValue("--quiet").trim();
  Object.assign(look.xaxis, { range, zeroline: true, zerolinecolor: quiet, zerolinewidth: 1.5 });
  Object.assign(look.yaxis, {
    tickvals: rows.map((_, place) => place),
    ticktext: rows.map((row) => plain(row.column)),
    range: [rows.length - 0.5, -0.5],
  });
  Plotly.react(node, Object.keys(KINDS).map((kind) => differenceTrace(rows, kind)), look, CONFIG);
}

for (const mark of document.querySelectorAll("[data-kind]")) {
  const { colour, symbol } = KINDS[mark.dataset.kind];
  mark.style.color = colour;
  mark.textContent = symbol[1];
}
data.figures.forEach((figure, i) => addFigure(element(`figure-${i}`), (node) => drawDifferences(node, figure)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
