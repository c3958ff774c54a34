// The explorer's classes: the picture of both runs, and the table of its numbers.
"use strict";

window.CRAT_EXPLORER.classes = (() => {
  const model = window.CRAT_EXPLORER;
  const { SIDES, SIDE_WORDS, PAIRS } = model;
  const { now, h, button, cell, column, row, note, go, csvButton } = model.elements;
  const { percent, interval, points } = model.elements;

  function shares(side, k) {
    const n = now.view.sizes[k];
    const [clean, robust] = [now.view[side].cleanRight[k], now.view[side].robustRight[k]];
    return {
      clean: clean / n,
      cleanInterval: model.wilson(clean, n),
      robust: robust / n,
      robustInterval: model.wilson(robust, n),
    };
  }

  const difference = (k) => shares("b", k).robust - shares("a", k).robust;

  function sentence(k) {
    const parts = SIDES.map((side) => {
      const s = shares(side, k);
      const attacked = interval(s.robust, s.robustInterval);
      const words = `clean ${percent(s.clean)}, under ${now.choice.attack} ${attacked} percent`;
      return `${now.choice[side].key}: ${words}`;
    });
    return `${now.choice.set.classes[k]}: ${parts.join("; ")}`;
  }

  const openClass = (k) => go({ class: k === now.choice.class ? "" : now.choice.set.classes[k] });

  function dot(side, kind, x, y, worst) {
    const shape = { class: `x-dot x-${side} x-${kind}${worst ? " x-worst" : ""}` };
    if (side === "a") return h("circle", { ...shape, cx: x, cy: y, r: 5.5 });
    return h("rect", { ...shape, x: x - 5, y: y - 5, width: 10, height: 10 });
  }

  // the places of the picture's parts
  function layout(width) {
    const wide = width > 480;
    const [left, right] = wide ? [120, width - 84] : [88, width - 16];
    const top = wide ? 22 : 4;
    const step = 46;
    const bottom = top + step * now.choice.set.classes.length;
    return { width, wide, top, step, bottom, x: (share) => left + share * (right - left) };
  }

  function axis({ width, wide, top, bottom, x }) {
    const words = (place, y, anchor, text) =>
      h("text", { class: "x-tick", x: place, y, "text-anchor": anchor }, text);
    const ticks = [0, 25, 50, 75, 100].flatMap((tick) => {
      const place = x(tick / 100);
      const line = { class: "x-grid", x1: place, x2: place, y1: top, y2: bottom };
      return [h("line", line), words(place, bottom + 17, "middle", String(tick))];
    });
    const title = words(x(0.5), bottom + 35, "middle", "right, % of the class");
    return [...ticks, title, wide ? words(width - 2, 14, "end", "right − left") : ""];
  }

  function classRow({ width, wide, top, step, x }, k) {
    const y = top + step * k;
    const middle = y + step / 2 + 5;
    const pressed = String(k === now.choice.class);
    const group = h(
      "g",
      {
        class: "x-class",
        role: "button",
        tabindex: "0",
        "data-key": `class-${k}`,
        "aria-pressed": pressed,
        "aria-label": sentence(k),
        onclick: () => openClass(k),
      },
      h("rect", { class: "x-row", x: 0, y: y + 1, width, height: step - 2, rx: 4 }),
      h("text", { x: 6, y: middle }, now.choice.set.classes[k]),
    );
    group.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      openClass(k);
    });
    SIDES.forEach((side, place) => {
      const s = shares(side, k);
      const line = y + 15 + 17 * place;
      const draw = (kind, share, [low, high], worst) => {
        const whisker = { class: `x-whisker x-${side} x-${kind}`, y1: line, y2: line };
        group.append(h("line", { ...whisker, x1: x(low), x2: x(high) }));
        group.append(dot(side, kind, x(share), line, worst));
      };
      draw("clean", s.clean, s.cleanInterval, false);
      draw("attacked", s.robust, s.robustInterval, now.view[side].worst === k);
    });
    const end = { x: width - 6, y: middle, "text-anchor": "end" };
    if (wide) group.append(h("text", end, points(difference(k))));
    return group;
  }

  function picture(width) {
    const places = layout(width);
    const words = "Accuracy of each class in both runs, 95 % intervals; each class is a button";
    const size = { width, height: places.bottom + 40 };
    const present = now.choice.set.classes.map((_, k) => k).filter((k) => now.view.sizes[k]);
    const rows = present.map((k) => classRow(places, k));
    return h("svg", { ...size, role: "group", "aria-label": words }, ...axis(places), ...rows);
  }

  function legend() {
    const swatch = (side, kind, worst) => {
      const size = { width: 16, height: 16, "aria-hidden": "true" };
      return h("svg", size, dot(side, kind, 8, 8, worst));
    };
    const entry = (words, ...swatches) => h("span", {}, ...swatches, words);
    const both = (side) => [swatch(side, "clean"), swatch(side, "attacked")];
    const worst = SIDES.map((side) => swatch(side, "attacked", true));
    return h(
      "p",
      { class: "x-legend" },
      entry(`left: ${now.choice.a.key}`, ...both("a")),
      entry(`right: ${now.choice.b.key}`, ...both("b")),
      entry(`light: clean; dark: ${now.choice.attack}`),
      entry("worst class of its run", ...worst),
    );
  }

  // a cell of the table that also holds its exact numbers
  function valued(share, [low, high]) {
    const exact = { "data-value": share, "data-low": low, "data-high": high };
    return cell(exact, interval(share, [low, high]));
  }

  // the number of images that only one run withstands, which opens them
  function onlyCell(k, pair, count) {
    const name = now.choice.set.classes[k];
    if (!count) return cell({}, "0");
    const words = `${name}: ${count} images in which ${PAIRS[pair]}`;
    const open = () => go({ class: name, cell: pair });
    const attributes = { class: "x-name", "aria-label": words, onclick: open };
    return cell({}, button(`${pair}-${k}`, attributes, String(count)));
  }

  // a class's row of the table, and its values for the CSV
  function tableRow(k) {
    const name = now.choice.set.classes[k];
    const open = { class: "x-name", onclick: () => openClass(k) };
    const cells = [row(button(`name-${k}`, open, name)), cell({}, String(now.view.sizes[k]))];
    const values = [name, now.view.sizes[k]];
    for (const side of SIDES) {
      const s = shares(side, k);
      const robust = valued(s.robust, s.robustInterval);
      if (now.view[side].worst === k) robust.classList.add("x-worst-cell");
      cells.push(valued(s.clean, s.cleanInterval), robust);
      values.push(s.clean, ...s.cleanInterval, s.robust, ...s.robustInterval);
    }
    for (const pair of ["a-only", "b-only"]) {
      const count = model.imagesOf(now.view, k, pair).length;
      cells.push(onlyCell(k, pair, count));
      values.push(count);
    }
    cells.push(cell({}, points(difference(k))));
    const opened = k === now.choice.class ? "x-open" : undefined;
    return { row: h("tr", { class: opened }, ...cells), values };
  }

  // a row over all classes; of: of the classes' shares
  function totalRow(words, of) {
    const over = (side, name) => {
      const all = now.view.sizes.map((n, k) => now.view[side][name][k] / n);
      return of(all.filter((share) => !Number.isNaN(share)));
    };
    const values = SIDES.flatMap((side) => [over(side, "cleanRight"), over(side, "robustRight")]);
    const cells = values.map((value) => cell({ "data-value": value }, percent(value)));
    const last = cell({}, points(values[3] - values[1]));
    return h("tr", {}, row(words), h("td"), ...cells, h("td"), h("td"), last);
  }

  function classTable() {
    const { set, attack } = now.choice;
    const rows = set.classes.map((_, k) => k).filter((k) => now.view.sizes[k]).map(tableRow);
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const foot = [
      totalRow("mean of classes", mean),
      totalRow("worst class", (values) => Math.min(...values)),
    ];
    const shown = SIDES.flatMap((side) => ["clean", attack].map((under) => [side, under]));
    const title = { a: "Left", b: "Right" };
    const measured = shown.map(([side, under]) => `${title[side]}: ${under}`);
    const headings = ["Class", "Images", ...measured, "Only left", "Only right", "Right − left"];
    const bounds = shown.flatMap(([side, under]) =>
      ["", " low", " high"].map((end) => `${SIDE_WORDS[side]} ${under}${end}`),
    );
    const head = ["class", "images", ...bounds, "only left withstands", "only right withstands"];
    const caption =
      "Right in %, with Wilson’s 95 % interval. " +
      `Left: ${now.choice.a.key}; right: ${now.choice.b.key}. ` +
      "Only left: images that only the left run withstands.";
    const region = { tabindex: "0", role: "region", "aria-label": caption };
    return h(
      "section",
      { "aria-label": "The numbers" },
      h("h2", {}, "The numbers"),
      note(caption),
      h(
        "div",
        { class: "x-scroll", ...region },
        h(
          "table",
          { id: "x-classes", class: "report-table" },
          h("thead", {}, h("tr", {}, ...headings.map((words) => column(words)))),
          h("tbody", {}, ...rows.map((each) => each.row)),
          h("tfoot", {}, ...foot),
        ),
      ),
      csvButton(["classes"], head, rows.map((each) => each.values)),
    );
  }

  return { legend, picture, classTable };
})();
