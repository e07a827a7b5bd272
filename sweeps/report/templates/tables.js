"use strict";
// Sorts the tables of a page by the buttons in their headers, can hide all but final rows, and saves tables as CSV.

// Numbers by value, text by locale, missing values last in either direction.
function sortBy(table, column, ascending) {
  const value = (row) => {
    const cell = row.cells[column];
    return cell.dataset.value !== undefined ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, value: value(row) }));
  rows.sort((a, b) => {
    if (a.value === "" || b.value === "") return (a.value === "") - (b.value === "");
    const order = typeof a.value === "number" && typeof b.value === "number"
      ? a.value - b.value : String(a.value).localeCompare(String(b.value));
    return ascending ? order : -order;
  });
  table.tBodies[0].append(...rows.map(({ row }) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(table, head.cellIndex, ascending);
    });
  }
}

// What an estimate has beside its value; each becomes a column of its own.
const BESIDE = ["low", "high", "p", "q"];

// The visible rows, in their order, in the format of RFC 4180; numbers with all their digits.
function csvOf(table) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  const value = (cell) => (cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent.trim());
  const all = [...table.tBodies[0].rows];
  const beside = [...table.tHead.rows[0].cells].map((_, i) => BESIDE.filter(
    (name) => all.some((row) => row.cells[i].dataset[name] !== undefined)));
  const heads = [...table.tHead.rows[0].cells].flatMap((head, i) => [
    head.textContent.trim(), ...beside[i].map((name) => `${head.textContent.trim()} ${name}`)]);
  const rows = all.filter((row) => getComputedStyle(row).display !== "none");
  const lines = [heads, ...rows.map((row) => [...row.cells].flatMap((cell, i) => [
    value(cell), ...beside[i].map((name) => cell.dataset[name] || "")]))];
  return lines.map((line) => line.map(quoted).join(",") + "\r\n").join("");
}

for (const button of document.querySelectorAll("button[data-table]")) {
  button.addEventListener("click", () => {
    const name = button.dataset.table;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csvOf(document.getElementById(name))], { type: "text/csv" }));
    link.download = `${name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

for (const table of document.querySelectorAll("table:has(tr.not-final)")) {
  const label = document.createElement("label");
  const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
  label.append(box, " final rows only ");
  document.querySelector(`button[data-table="${table.id}"]`).before(label);
  const apply = () => table.classList.toggle("only-final", box.checked);
  box.addEventListener("change", apply);
  apply();
}
