// The explorer's elements: what its parts are made of, and the choice that they show.
"use strict";

window.CRAT_EXPLORER.elements = (() => {
  const model = window.CRAT_EXPLORER;
  const now = { choice: undefined, view: undefined }; // the choice, and its numbers

  const SVG = ["svg", "g", "rect", "line", "circle", "text"];

  function h(tag, attributes = {}, ...children) {
    const made = SVG.includes(tag)
      ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "onclick") made.addEventListener("click", value);
      else if (value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== ""));
    return made;
  }

  // key: by which the focus finds the button again when the page is drawn anew
  function button(key, attributes, ...children) {
    return h("button", { type: "button", "data-key": key, ...attributes }, ...children);
  }

  const cell = (attributes, text) => h("td", { class: "number", ...attributes }, text);
  const column = (...children) => h("th", { scope: "col" }, ...children);
  const row = (...children) => h("th", { scope: "row" }, ...children);
  const note = (text) => h("p", { class: "x-note" }, text);
  const mark = (side) => h("span", { class: `x-mark x-${side}`, "aria-hidden": "true" });

  // changes the address, and with it the page
  function go(changes) {
    const next = { ...model.partsOf(now.choice), ...changes };
    if ("class" in changes && !("cell" in changes)) next.cell = "";
    location.hash = model.address(next);
  }

  const percent = (share) => (Number.isNaN(share) ? "–" : (100 * share).toFixed(1));
  const interval = (share, [low, high]) => `${percent(share)} [${percent(low)}, ${percent(high)}]`;
  const signed = (value, digits) => value.toFixed(digits).replace("-", "−");

  // a difference in points; one that rounds to 0 has no sign
  function points(value) {
    if (Number.isNaN(value)) return "–";
    const rounded = Math.round(1000 * value) / 10;
    return `${rounded > 0 ? "+" : ""}${signed(rounded || 0, 1)}`;
  }

  // the button that gives a table; names: of what it is about, for the file
  function csvButton(names, head, rows) {
    const quoted = (value) => `"${String(value).replace(/"/g, '""')}"`;
    const field = (value) => (/[",\n]/.test(String(value)) ? quoted(value) : value);
    const text = `${[head, ...rows].map((values) => values.map(field).join(",")).join("\n")}\n`;
    const { set, attack } = now.choice;
    const name = [set.name, attack, ...names].join("-").replace(/[^\w-]+/g, "_");
    const save = () => {
      const place = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      h("a", { href: place, download: `${name}.csv` }).click();
      setTimeout(() => URL.revokeObjectURL(place), 1000);
    };
    const words = { class: "x-csv", "aria-label": `CSV: ${name}`, "data-csv": text };
    return button(`csv-${name}`, { ...words, onclick: save }, "CSV");
  }

  return {
    ...{ now, go, h, button, cell, column, row, note, mark },
    ...{ percent, interval, signed, points, csvButton },
  };
})();
