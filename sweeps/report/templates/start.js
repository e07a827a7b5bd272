"use strict";
// The toolbar: colour and filters, which hold for every figure of single runs and for the table of results.

function drawLegends() {
  const { setting, levels } = chosenColour();
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

function applyFilters() {
  const left = runs.filter(shown).length;
  element("shown").textContent = `${left} of ${runs.length} runs shown`;
  element("show-all").hidden = left === runs.length;
  for (const row of document.querySelectorAll("tr[data-run]")) row.hidden = !shown(row.dataset.run);
  redraw();
}

function makeFilters() {
  element("filters").replaceChildren(...data.settings.map(({ key, name }) => {
    const set = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = name;
    set.append(legend, ...levelsOf(key).map(({ text }) => {
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
      box.dataset.setting = key;
      box.dataset.level = text;
      box.addEventListener("change", () => {
        hidden.get(key)[box.checked ? "delete" : "add"](text);
        applyFilters();
      });
      label.append(box, ` ${text}`);
      return label;
    }));
    return set;
  }));
}

if (element("colour")) {
  element("colour").replaceChildren(...data.settings.map(({ key, name }) => new Option(name, key)));
  element("colour").addEventListener("change", () => {
    drawLegends();
    redraw();
  });
  makeFilters();
  element("show-all").addEventListener("click", () => {
    for (const levels of hidden.values()) levels.clear();
    for (const box of document.querySelectorAll("#filters input")) box.checked = true;
    applyFilters();
  });
  applyFilters();
}

const onlyFinal = element("only-final");
if (onlyFinal) {
  const apply = () => element("table").classList.toggle("only-final", onlyFinal.checked);
  onlyFinal.addEventListener("change", apply);
  onlyFinal.checked = true;
  apply();
}

drawLegends();
redraw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
addEventListener("beforeprint", drawAll);
