// Tables that sort by a click on a heading, the filter of the claims with its addresses, and code
// that folds. No library.
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

// All words of the field, the verdict that is pressed, and a paper. They stand in the address, as in
// #verdict=reversed&paper=04&words=bias, and are read from it.
function makeFilter(tools) {
  const papers = Array.from(document.querySelectorAll(`#${tools.dataset.claims} details`));
  const rows = papers.flatMap((paper) => Array.from(paper.querySelectorAll("tbody tr")));
  const field = tools.querySelector("input");
  const chips = Array.from(tools.querySelectorAll("button"));
  const count = tools.querySelector(".report-count");
  let paper = "";

  const pressed = () => chips.find((chip) => chip.getAttribute("aria-pressed") === "true");
  const press = (verdict) => chips.forEach((chip) => {
    chip.setAttribute("aria-pressed", String(chip.dataset.verdict === verdict));
  });

  function show() {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const verdict = pressed()?.dataset.verdict;
    rows.forEach((row) => {
      const of = row.dataset.paper.toLowerCase();
      const text = `${row.textContent} ${of}`.toLowerCase();
      const asked = (!verdict || verdict === row.dataset.verdict) && of.includes(paper.toLowerCase());
      row.hidden = !(asked && words.every((word) => text.includes(word)));
    });
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = shown === rows.length ? `${shown} claims` : `${shown} of ${rows.length} claims`;
    const filtered = Boolean(verdict || words.length || paper);
    papers.forEach((each) => {
      const matches = Boolean(each.querySelector("tbody tr:not([hidden])"));
      each.hidden = !matches;
      if (filtered !== each.classList.contains("report-filtered")) each.open = filtered;
      each.classList.toggle("report-filtered", filtered);
    });
  }

  function write() {
    const asked = new URLSearchParams();
    if (pressed()) asked.set("verdict", pressed().dataset.verdict);
    if (paper) asked.set("paper", paper);
    if (field.value.trim()) asked.set("words", field.value.trim());
    history.replaceState(null, "", `#${asked}`);
  }

  // an address without "=" is that of a place on the page, such as a claim, which is unfolded
  function read() {
    const hash = decodeURIComponent(location.hash.slice(1).replace(/\+/g, " "));
    if (!hash.includes("=")) {
      const place = hash && document.getElementById(hash);
      const folded = place && place.closest("details");
      if (folded) {
        folded.open = true;
        place.scrollIntoView({ block: "center" });
      }
      return;
    }
    const asked = new URLSearchParams(hash);
    press(asked.get("verdict") ?? "");
    paper = asked.get("paper") ?? "";
    field.value = asked.get("words") ?? "";
    show();
    tools.scrollIntoView();
  }

  field.addEventListener("input", () => { paper = ""; show(); write(); });
  chips.forEach((chip) => chip.addEventListener("click", () => {
    press(chip === pressed() ? "" : chip.dataset.verdict);
    paper = "";
    show();
    write();
  }));
  window.addEventListener("hashchange", read);
  read();
}

// what was chosen for all pages; a browser may forbid to keep it
const kept = {
  get: () => { try { return localStorage.getItem("crat-code"); } catch { return null; } },
  set: (value) => { try { localStorage.setItem("crat-code", value); } catch { /* not kept */ } },
};

// a button above each cell of code, and one below the title for all of them, which is remembered
function makeFolding(cells) {
  const button = (words, act) => {
    const made = document.createElement("button");
    made.type = "button";
    made.className = "report-fold";
    made.addEventListener("click", act);
    made.textContent = words;
    return made;
  };
  const fold = (cell, folded) => {
    cell.classList.toggle("report-folded", folded);
    const own = cell.querySelector(":scope > .report-fold");
    own.textContent = folded ? "show code" : "hide code";
    own.setAttribute("aria-expanded", String(!folded));
  };
  cells.forEach((cell) => {
    cell.prepend(button("", () => fold(cell, !cell.classList.contains("report-folded"))));
  });
  const foldAll = (folded) => {
    cells.forEach((cell) => fold(cell, folded));
    all.textContent = folded ? "show code" : "hide code";
    all.setAttribute("aria-pressed", String(folded));
  };
  const all = button("", () => {
    const folded = all.getAttribute("aria-pressed") !== "true";
    foldAll(folded);
    kept.set(folded ? "hidden" : "shown");
  });
  all.classList.add("report-fold-all");
  document.querySelector("article h1")?.after(all);
  foldAll(kept.get() === "hidden");
}

// for print: the longest line of each block of code, by which it is set smaller, and nothing folded
function preparePrint() {
  document.querySelectorAll("article pre").forEach((block) => {
    const longest = Math.max(...block.textContent.split("\n").map((line) => line.length), 80);
    block.style.setProperty("--columns", longest);
  });
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = Array.from(document.querySelectorAll("article details:not([open])"));
    closed.forEach((each) => { each.open = true; });
  });
  window.addEventListener("afterprint", () => closed.forEach((each) => { each.open = false; }));
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  document.querySelectorAll(".report-tools").forEach(makeFilter);
  const cells = Array.from(document.querySelectorAll("article .cell"))
    .filter((cell) => cell.querySelector(":scope > .cell_input"));
  if (cells.length) makeFolding(cells);
  preparePrint();
});
