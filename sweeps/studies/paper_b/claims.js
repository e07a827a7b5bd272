"use strict";
// Experiments on local dimension: bands over seeds, violins before and after, change points, points and neighbours.

function bandTraces(bands) {
  return bands.flatMap((band, i) => {
    const colour = ramp(bands.length > 1 ? i / (bands.length - 1) : 0);
    const around = {
      x: [...band.steps, ...[...band.steps].reverse()],
      y: [...band.high, ...[...band.low].reverse()],
      fill: "toself",
      fillcolor: fainter(colour, 0.18),
      line: { width: 0 },
      mode: "lines",
      hoverinfo: "skip",
      showlegend: false,
    };
    const line = {
      x: band.steps,
      y: band.mean,
      name: `${plain(band.name)} (${band.runs})`,
      mode: "lines",
      line: { color: colour, width: 2 },
      hovertemplate: "%{fullData.name}<br>step %{x}: %{y:.3f}<extra></extra>",
    };
    return band.runs > 1 ? [around, line] : [line];
  });
}

function drawClaimPanel(node, panel) {
  const look = layout(panel.across, "");
  Plotly.react(node, bandTraces(panel.bands), panel.bands.length > 1 ? withLegend(look) : look, PANEL_CONFIG);
}

function drawViolins(node, violins) {
  const times = ["before", "after"];
  const traces = times.map((when, i) => {
    const of = violins.filter((v) => v.when === when);
    return {
      type: "violin",
      name: when,
      x: of.flatMap((v) => v.values.map(() => plain(v.text))),
      y: of.flatMap((v) => v.values),
      side: i ? "positive" : "negative",
      scalegroup: "all",
      points: false,
      meanline: { visible: true },
      line: { color: ramp(i) },
      hoverinfo: "y+name",
    };
  });
  const look = withLegend(layout("text", "local dimension around a point"));
  look.violinmode = "overlay";
  Plotly.react(node, traces, look, CONFIG);
}

function drawLeads(node, leads) {
  const places = leads.run.map((run, i) => i).filter((i) => shown(leads.run[i]));
  const all = places.flatMap((i) => [leads.metric[i], leads.outcome[i]]);
  const ends = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
  const grey = "rgb(130,130,140)";
  const line = { x: ends, y: ends, mode: "lines", line: { color: grey, dash: "dot", width: 1 }, hoverinfo: "skip" };
  const points = {
    x: places.map((i) => leads.metric[i]),
    y: places.map((i) => leads.outcome[i]),
    text: places.map((i) => describe(leads.run[i])),
    mode: "markers",
    marker: { size: 9, color: ramp(0) },
    hovertemplate: "%{text}<br>metric at %{x}, outcome at %{y}<extra></extra>",
  };
  Plotly.react(node, [line, points], layout("step at which local dimension changes", "step of the outcome"), CONFIG);
}

function drawSensitivity(node) {
  const keys = [...new Set(data.sensitivity.map(({ of, points }) => `${of}, ${points} points`))];
  const traces = keys.map((key, i) => {
    const rows = data.sensitivity.filter(({ of, points }) => `${of}, ${points} points` === key);
    return {
      x: rows.map(({ neighbors }) => neighbors),
      y: rows.map(({ mean }) => mean),
      error_y: {
        type: "data",
        symmetric: false,
        array: rows.map(({ high, mean }) => high - mean),
        arrayminus: rows.map(({ low, mean }) => mean - low),
        thickness: 1,
        width: 3,
      },
      name: plain(key),
      mode: "lines+markers",
      line: { color: ramp(keys.length > 1 ? i / (keys.length - 1) : 0) },
    };
  });
  const look = withLegend(layout("neighbours", "mean local dimension"));
  look.xaxis.type = "log";
  Plotly.react(node, traces, look, CONFIG);
}

data.claims.forEach((claim, i) => {
  const place = element(`claim-${i}-panels`);
  if (place) {
    for (const panel of claim.panels) {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      caption.textContent = panel.title;
      const node = document.createElement("div");
      node.id = `claim-${i}-panel-${place.childElementCount}`;
      figure.append(caption, node);
      place.append(figure);
      addFigure(node, () => drawClaimPanel(node, panel));
    }
  }
  addFigure(element(`claim-${i}-violins`), (node) => drawViolins(node, claim.violins));
  addFigure(element(`claim-${i}-leads`), (node) => drawLeads(node, claim.leads));
});
addFigure(element("figure-sensitivity"), drawSensitivity);
