// Tables that sort by a click on a heading, and the filter of the claims. No library.
"use strict";

// what a cell is sorted by: its data-key where it has one (a number, or nothing), else its words
function key(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.key ?? cell.textContent.trim().toLowerCase();
  const number = Number(text);
  return text !== "" && Number.isFinite(number) ? number : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return (String(a) > String(b)) - (String(a) < String(b));
}

// rows without a value stay at the end in both directions
function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => ({ row, key: key(row, column) }));
  rows.sort((a, b) => (a.key === "") - (b.key === "") || direction * compare(a.key, b.key));
  body.append(...rows.map(({ row }) => row));
}

function makeSortable(table) {
  const headings = Array.from(table.tHead.rows[0].cells);
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.scope = "col";
    button.addEventListener("click", () => {
      // numbers of the leaderboard are read from the largest down, so that is the first click
      const first = table.dataset.first === "descending" && column > 0 ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = heading.getAttribute("aria-sort") === first ? other : first;
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      sortBy(table, column, order === "ascending" ? 1 : -1);
    });
  });
}

// all words of the field, and the verdict that is pressed
function makeFilter(tools) {
  const rows = Array.from(document.getElementById(tools.dataset.table).tBodies[0].rows);
  const field = tools.querySelector("input");
  const chips = Array.from(tools.querySelectorAll("button"));
  const count = tools.querySelector(".report-count");
  const show = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const pressed = chips.find((chip) => chip.getAttribute("aria-pressed") === "true");
    rows.forEach((row) => {
      const text = `${row.textContent} ${row.dataset.notebook}`.toLowerCase();
      const asked = !pressed || pressed.dataset.verdict === row.dataset.verdict;
      row.hidden = !(asked && words.every((word) => text.includes(word)));
    });
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = shown === rows.length ? `${shown} claims` : `${shown} of ${rows.length} claims`;
  };
  field.addEventListener("input", show);
  chips.forEach((chip) => chip.addEventListener("click", () => {
    const on = chip.getAttribute("aria-pressed") !== "true";
    chips.forEach((each) => each.setAttribute("aria-pressed", String(on && each === chip)));
    show();
  }));
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  document.querySelectorAll(".report-tools").forEach(makeFilter);
});
