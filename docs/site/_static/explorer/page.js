// Two runs side by side. The choice is the page's address; everything is drawn from it.
// Numbers: numbers.js (crat/batch/explorer.py). No library.
"use strict";

(() => {
  const Z = 1.959963984540054; // of 95 %
  const SIDES = ["a", "b"];
  const SIDE_WORDS = { a: "left", b: "right" };
  const PAIRS = {
    both: "both withstand",
    "a-only": "only left withstands",
    "b-only": "only right withstands",
    neither: "neither withstands",
  };
  const FIRST = 24; // images shown before "more" is pressed
  const sets = window.CRAT_NUMBERS || {};
  const decoded = {}; // data set -> its arrays, one Uint8Array
  let root, choice, shownImages;

  // --- statistics ---

  // Wilson's score interval, as crat.analysis.metrics.wilson
  function wilson(k, n) {
    if (!n) return [NaN, NaN];
    const centre = (k + Z * Z / 2) / (n + Z * Z);
    const half = Z / (n + Z * Z) * Math.sqrt(k * (n - k) / n + Z * Z / 4);
    return [Math.max(0, centre - half), Math.min(1, centre + half)];
  }

  async function decode(name) {
    if (decoded[name]) return;
    const packed = Uint8Array.from(atob(sets[name].arrays), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    decoded[name] = new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // the answers of a run under an attack: prediction(i), margin(i), right(i)
  function answers(set, run, attack) {
    const { at, n, largest } = run.outcomes[attack];
    const all = decoded[set.name];
    const codes = all.subarray(at, at + n);
    const levels = new Int8Array(all.buffer, at + n, n);
    return {
      prediction: (i) => (codes[i] ? codes[i] - 1 : all[i]),
      right: (i) => codes[i] === 0,
      margin: (i) => Math.sign(levels[i]) * (levels[i] / set.levels) ** 2 * largest,
    };
  }

  // everything that the page shows of a choice
  function compute() {
    const { set, attack } = choice;
    const n = Math.min(...SIDES.flatMap((s) =>
      [choice[s].outcomes.clean.n, choice[s].outcomes[attack].n]));
    const labels = decoded[set.name];
    const view = { n, sizes: set.classes.map(() => 0), images: set.classes.map(() => []) };
    for (let i = 0; i < n; i += 1) {
      view.images[labels[i]].push(i);
      view.sizes[labels[i]] += 1;
    }
    for (const side of SIDES) {
      const clean = answers(set, choice[side], "clean");
      const attacked = answers(set, choice[side], attack);
      const robust = (i) => clean.right(i) && attacked.right(i);
      const count = (test) => view.images.map((own) => own.filter(test).length);
      view[side] = { clean, attacked, robust, cleanRight: count(clean.right), robustRight: count(robust) };
      const shares = view[side].robustRight.map((k, j) => k / view.sizes[j]);
      const present = shares.filter((share) => !Number.isNaN(share));
      view[side].worst = shares.indexOf(Math.min(...present));
    }
    return view;
  }

  // the images of a class in a cell, in the order in which they are shown
  function imagesOf(view, k, cell) {
    const own = view.images[k];
    const { a, b } = view;
    const gain = (i) => b.attacked.margin(i) - a.attacked.margin(i);
    if (cell in PAIRS) {
      const wanted = { both: [true, true], "a-only": [true, false], "b-only": [false, true], neither: [false, false] }[cell];
      const found = own.filter((i) => a.robust(i) === wanted[0] && b.robust(i) === wanted[1]);
      const sign = cell === "a-only" ? 1 : -1;
      return found.sort((i, j) => sign * (gain(i) - gain(j)));
    }
    const [side, answer] = cell.split(":");
    const { attacked } = view[side];
    const found = own.filter((i) => attacked.prediction(i) === Number(answer));
    return found.sort((i, j) => attacked.margin(i) - attacked.margin(j));
  }

  // --- the address ---

  function parse(hash) {
    const asked = {};
    for (const part of hash.replace(/^#/, "").split("&")) {
      const at = part.indexOf("=");
      if (at < 1) continue;
      try {
        asked[part.slice(0, at)] = decodeURIComponent(part.slice(at + 1));
      } catch {
        asked[part.slice(0, at)] = part.slice(at + 1);
      }
    }
    return asked;
  }

  function address(asked) {
    const escaped = (text) => encodeURIComponent(text)
      .replace(/%(2B|2F|3A|28|29|2C)/g, decodeURIComponent);
    return "#" + ["data", "attack", "a", "b", "class", "cell"]
      .filter((name) => asked[name] !== undefined && asked[name] !== "")
      .map((name) => `${name}=${escaped(String(asked[name]))}`).join("&");
  }

  function classNamed(set, text) {
    const named = set.classes.findIndex((name) => name.toLowerCase() === text.toLowerCase());
    if (named >= 0) return named;
    return /^\d+$/.test(text) && Number(text) < set.classes.length ? Number(text) : -1;
  }

  // a cell in its inner form ("a:4"), or ""
  function cellNamed(set, text) {
    if (text in PAIRS) return text;
    const [, side, answer] = /^([ab]):(.+)$/.exec(text) || [];
    const k = side ? classNamed(set, answer) : -1;
    return k >= 0 ? `${side}:${k}` : "";
  }

  // the run that is asked for, else the nearest that the attack judged; taken: the other side's
  function resolveRun(set, attack, asked, fallback, said, taken) {
    const judged = set.runs.filter((run) => run.outcomes[attack]);
    const free = judged.filter((run) => run !== taken);
    const usual = free.find((run) => run.key === fallback) || free[0] || taken;
    if (!asked) return usual;
    const is = (run) => run.key === asked || run.run === asked || (asked.length > 7 && run.run.endsWith(asked));
    const found = set.runs.find(is);
    if (found && found.outcomes[attack]) return found;
    const shown = (found && free.find((run) => run.method === found.method)) || usual;
    said.push(`${asked} ${found ? `has no published outcomes under ${attack}` : "is not here"}; shown is ${shown.key}`);
    return shown;
  }

  function resolve(asked) {
    const said = [];
    const names = Object.keys(sets);
    let name = names[0];
    if (asked.data !== undefined) {
      if (names.includes(asked.data)) name = asked.data;
      else said.push(`there is no data set ${asked.data}; shown is ${name}`);
    }
    const set = Object.assign(sets[name], { name });
    let attack = set.attacks[0];
    if (asked.attack !== undefined) {
      if (set.attacks.includes(asked.attack)) attack = asked.attack;
      else said.push(`there is no attack ${asked.attack} on ${name}; shown is ${attack}`);
    }
    const found = { set, attack, class: -1, cell: "", said };
    found.a = resolveRun(set, attack, asked.a, set.default[0], said);
    found.b = resolveRun(set, attack, asked.b, set.default[1], said, found.a);
    if (asked.class !== undefined) {
      found.class = classNamed(set, asked.class);
      if (found.class < 0) said.push(`there is no class ${asked.class}; none is open`);
    }
    if (asked.cell !== undefined && found.class >= 0) {
      found.cell = cellNamed(set, asked.cell);
      if (!found.cell) said.push(`there is no cell ${asked.cell}; none is open`);
    }
    return found;
  }

  function asked() {
    const { set, attack, a, b, cell } = choice;
    const named = { data: set.name, attack, a: a.key, b: b.key };
    if (choice.class < 0) return named;
    named.class = set.classes[choice.class];
    if (cell) named.cell = cell in PAIRS ? cell : `${cell[0]}:${set.classes[Number(cell.slice(2))]}`;
    return named;
  }

  function go(changes) {
    const next = { ...asked(), ...changes };
    if (!("cell" in changes) && "class" in changes) delete next.cell;
    location.hash = address(next);
  }

  // --- elements ---

  function h(tag, attributes = {}, ...children) {
    const svg = ["svg", "g", "rect", "line", "circle", "text", "title"].includes(tag);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "onclick") made.addEventListener("click", value);
      else if (value !== undefined && value !== false) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== undefined && child !== ""));
    return made;
  }

  const percent = (share) => (Number.isNaN(share) ? "–" : (100 * share).toFixed(1));
  const signed = (value, digits) => value.toFixed(digits).replace("-", "−");
  // a difference in points; one that rounds to 0 has no sign
  function points(value) {
    if (Number.isNaN(value)) return "–";
    const rounded = Math.round(1000 * value) / 10;
    return `${rounded > 0 ? "+" : ""}${signed(rounded || 0, 1)}`;
  }

  function keyed(element, name) {
    element.dataset.key = name;
    return element;
  }

  function csvButton(name, head, rows) {
    const field = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replace(/"/g, '""')}"` : value);
    const text = [head, ...rows].map((row) => row.map(field).join(",")).join("\n") + "\n";
    const button = h("button", { type: "button", class: "x-csv", "aria-label": `CSV: ${name}` }, "CSV");
    button.dataset.csv = text;
    button.addEventListener("click", () => {
      const place = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      h("a", { href: place, download: `${name}.csv` }).click();
      setTimeout(() => URL.revokeObjectURL(place), 1000);
    });
    return button;
  }

  // --- the menus ---

  function menu(name, label, options, value, changed) {
    const select = keyed(h("select", { "aria-label": label.long || label }), name);
    for (const [key, words] of options) {
      select.append(h("option", { value: key, selected: key === value ? "" : undefined }, words));
    }
    select.addEventListener("change", () => changed(select.value));
    return h("label", {}, h("span", {}, label.short || label), select);
  }

  // a run that has the wanted fields, as many of them as possible, in this order
  function nearest(runs, wanted) {
    let left = runs;
    for (const [name, value] of wanted) {
      const kept = left.filter((run) => String(run[name]) === String(value));
      if (kept.length) left = kept;
    }
    return left[0];
  }

  function sideMenus(side) {
    const { set, attack } = choice;
    const run = choice[side];
    const judged = set.runs.filter((each) => each.outcomes[attack]);
    const distinct = (name, runs) => [...new Set(runs.map((each) => each[name]))].map((v) => [String(v), String(v)]);
    const ofMethod = judged.filter((each) => each.method === run.method);
    const ofAverage = ofMethod.filter((each) => each.average === run.average);
    const change = (name) => (value) => {
      const wanted = ["method", "average", "seed"].map((field) => [field, field === name ? value : run[field]]);
      go({ [side]: nearest(judged, wanted).key });
    };
    const label = (short) => ({ short, long: `${short} of the ${SIDE_WORDS[side]} run` });
    return h("fieldset", { class: `x-side x-${side}` },
      h("legend", {}, h("span", { class: "x-mark", "aria-hidden": "true" }), `${side === "a" ? "Left" : "Right"} run`),
      menu(`${side}-method`, label("Method"), distinct("method", judged), run.method, change("method")),
      menu(`${side}-average`, label("Weight average"), distinct("average", ofMethod), run.average, change("average")),
      menu(`${side}-seed`, label("Seed"), distinct("seed", ofAverage), String(run.seed), change("seed")));
  }

  function menus() {
    const { set, attack } = choice;
    const pairs = (names) => names.map((name) => [name, name]);
    const swap = keyed(h("button", {
      type: "button", class: "x-swap", onclick: () => go({ a: choice.b.key, b: choice.a.key }),
    }, "⇄ Swap sides"), "swap");
    return h("div", { class: "x-menus" },
      h("div", { class: "x-common" },
        menu("data", "Data set", pairs(Object.keys(sets)), set.name, (name) => go({ data: name, a: "", b: "", attack: "", class: "", cell: "" })),
        menu("attack", "Attack", pairs(set.attacks), attack, (name) => go({ attack: name })), swap),
      sideMenus("a"), sideMenus("b"));
  }

  function notes(view) {
    const { set, attack, a, b } = choice;
    const lines = [];
    if (view.n < set.n) lines.push(`Both runs on the first ${view.n.toLocaleString("en")} of ${set.n.toLocaleString("en")} test images: no more were judged under ${attack}.`);
    const rough = SIDES.filter((side) => choice[side].outcomes[attack].dtype !== "float32");
    if (rough.length) lines.push(`Examples of the ${rough.map((s) => SIDE_WORDS[s]).join(" and the ")} run were searched in ${choice[rough[0]].outcomes[attack].dtype} and judged in float32.`);
    if (a === b) lines.push("Both sides show the same run.");
    return lines;
  }

  // --- the classes: picture and table ---

  function shares(view, side, k) {
    const n = view.sizes[k];
    const { cleanRight, robustRight } = view[side];
    return {
      clean: cleanRight[k] / n, cleanInterval: wilson(cleanRight[k], n),
      robust: robustRight[k] / n, robustInterval: wilson(robustRight[k], n),
    };
  }

  const interval = (share, [low, high]) => `${percent(share)} [${percent(low)}, ${percent(high)}]`;

  function sentence(view, k) {
    const { set, attack } = choice;
    const parts = SIDES.map((side) => {
      const s = shares(view, side, k);
      return `${choice[side].key}: clean ${percent(s.clean)}, under ${attack} ${interval(s.robust, s.robustInterval)} percent`;
    });
    return `${set.classes[k]}: ${parts.join("; ")}`;
  }

  function openClass(k) {
    go({ class: k === choice.class ? "" : choice.set.classes[k] });
  }

  function mark(side, kind, x, y, worst) {
    const shape = { class: `x-dot x-${side} x-${kind}${worst ? " x-worst" : ""}` };
    return side === "a" ? h("circle", { ...shape, cx: x, cy: y, r: 5.5 })
      : h("rect", { ...shape, x: x - 5, y: y - 5, width: 10, height: 10 });
  }

  function picture(view, width) {
    const { set } = choice;
    const wide = width > 480;
    const left = wide ? 120 : 88;
    const right = width - (wide ? 84 : 16);
    const top = wide ? 22 : 4;
    const step = 46;
    const bottom = top + step * set.classes.length;
    const x = (share) => left + share * (right - left);
    const svg = h("svg", { width, height: bottom + 40, role: "group", "aria-label": "Accuracy of each class in both runs, with 95 % intervals; each class is a button" });
    for (const tick of [0, 25, 50, 75, 100]) {
      svg.append(h("line", { class: "x-grid", x1: x(tick / 100), x2: x(tick / 100), y1: top, y2: bottom }),
        h("text", { class: "x-tick", x: x(tick / 100), y: bottom + 17, "text-anchor": "middle" }, String(tick)));
    }
    svg.append(h("text", { class: "x-tick", x: x(0.5), y: bottom + 35, "text-anchor": "middle" }, "right, % of the class"));
    if (wide) svg.append(h("text", { class: "x-tick", x: width - 2, y: 14, "text-anchor": "end" }, "right − left"));
    set.classes.forEach((name, k) => {
      if (!view.sizes[k]) return;
      const y = top + step * k;
      const group = keyed(h("g", {
        class: "x-class", role: "button", tabindex: "0", "aria-pressed": String(k === choice.class),
        "aria-label": sentence(view, k), onclick: () => openClass(k),
      }, h("rect", { class: "x-row", x: 0, y: y + 1, width, height: step - 2, rx: 4 }),
      h("text", { x: 6, y: y + step / 2 + 5 }, name)), `class-${k}`);
      group.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        openClass(k);
      });
      SIDES.forEach((side, place) => {
        const s = shares(view, side, k);
        const line = y + 15 + 17 * place;
        for (const [kind, share, [low, high]] of [["clean", s.clean, s.cleanInterval], ["attacked", s.robust, s.robustInterval]]) {
          group.append(h("line", { class: `x-whisker x-${side} x-${kind}`, x1: x(low), x2: x(high), y1: line, y2: line }),
            mark(side, kind, x(share), line, kind === "attacked" && view[side].worst === k));
        }
      });
      if (wide) {
        const difference = shares(view, "b", k).robust - shares(view, "a", k).robust;
        group.append(h("text", { x: width - 6, y: y + step / 2 + 5, "text-anchor": "end" }, points(difference)));
      }
      svg.append(group);
    });
    return svg;
  }

  function legend() {
    const swatch = (side, kind, worst) => h("svg", { width: 16, height: 16, "aria-hidden": "true" }, mark(side, kind, 8, 8, worst));
    const entry = (swatches, words) => h("span", {}, ...swatches, words);
    return h("p", { class: "x-legend" },
      entry([swatch("a", "clean"), swatch("a", "attacked")], `left: ${choice.a.key}`),
      entry([swatch("b", "clean"), swatch("b", "attacked")], `right: ${choice.b.key}`),
      entry([], `light: clean; dark: ${choice.attack}`),
      entry([swatch("a", "attacked", true), swatch("b", "attacked", true)], "worst class of its run"));
  }

  // a cell that holds its exact numbers, for tests and other scripts
  function valued(share, [low, high]) {
    return h("td", { class: "number", "data-value": share, "data-low": low, "data-high": high }, interval(share, [low, high]));
  }

  function classTable(view) {
    const { set, attack } = choice;
    const head = ["class", "images", "left clean", "left clean low", "left clean high", `left ${attack}`, `left ${attack} low`, `left ${attack} high`,
      "right clean", "right clean low", "right clean high", `right ${attack}`, `right ${attack} low`, `right ${attack} high`, "only left withstands", "only right withstands"];
    const rows = [];
    const body = h("tbody");
    set.classes.forEach((name, k) => {
      if (!view.sizes[k]) return;
      const row = h("tr", { class: k === choice.class ? "x-open" : undefined },
        h("th", { scope: "row" }, keyed(h("button", { type: "button", class: "x-name", onclick: () => openClass(k) }, name), `name-${k}`)),
        h("td", { class: "number" }, String(view.sizes[k])));
      const values = [name, view.sizes[k]];
      for (const side of SIDES) {
        const s = shares(view, side, k);
        const robust = valued(s.robust, s.robustInterval);
        if (view[side].worst === k) robust.classList.add("x-worst-cell");
        row.append(valued(s.clean, s.cleanInterval), robust);
        values.push(s.clean, ...s.cleanInterval, s.robust, ...s.robustInterval);
      }
      for (const cell of ["a-only", "b-only"]) {
        const count = imagesOf(view, k, cell).length;
        const words = `${name}: ${count} images in which ${PAIRS[cell]}`;
        const open = () => go({ class: name, cell });
        const button = h("button", { type: "button", class: "x-name", "aria-label": words, onclick: open }, String(count));
        row.append(h("td", { class: "number" }, count ? keyed(button, `${cell}-${k}`) : "0"));
        values.push(count);
      }
      row.append(h("td", { class: "number" }, points(shares(view, "b", k).robust - shares(view, "a", k).robust)));
      rows.push(values);
      body.append(row);
    });
    const foot = h("tfoot");
    for (const [words, of] of [["mean of classes", (v) => v.reduce((s, e) => s + e, 0) / v.length], ["worst class", (v) => Math.min(...v)]]) {
      const over = (side, name) => of(view.sizes.map((n, k) => view[side][name][k] / n).filter((v) => !Number.isNaN(v)));
      const values = SIDES.flatMap((side) => [over(side, "cleanRight"), over(side, "robustRight")]);
      foot.append(h("tr", {}, h("th", { scope: "row" }, words), h("td"), ...values.map((v) => h("td", { class: "number", "data-value": v }, percent(v))),
        h("td"), h("td"), h("td", { class: "number" }, points(values[3] - values[1]))));
    }
    const headings = ["Class", "Images", `Left: clean`, `Left: ${attack}`, `Right: clean`, `Right: ${attack}`, "Only left", "Only right", "Right − left"];
    const name = `${set.name}-${attack}-classes`.replace(/[^\w-]+/g, "_");
    return h("div", {},
      h("div", { class: "x-scroll", tabindex: "0", role: "region", "aria-label": "Table of the classes" },
        h("table", { id: "x-classes", class: "report-table" },
          h("caption", {}, `Right in %, with Wilson’s 95 % interval. Left: ${choice.a.key}; right: ${choice.b.key}. Only left: images that only the left run withstands.`),
          h("thead", {}, h("tr", {}, ...headings.map((words) => h("th", { scope: "col" }, words)))), body, foot)),
      csvButton(name, head, rows));
  }

  // --- one class: where its images go ---

  function cellButton(cell, n, words, ...children) {
    const button = keyed(h("button", {
      type: "button", "aria-pressed": String(cell === choice.cell), "aria-label": words, disabled: n ? undefined : "",
      onclick: () => go({ class: choice.set.classes[choice.class], cell: cell === choice.cell ? "" : asked_cell(cell) }),
    }, ...children), `cell-${cell}`);
    button.dataset.cell = cell;
    return button;
  }

  const asked_cell = (cell) => (cell in PAIRS ? cell : `${cell[0]}:${choice.set.classes[Number(cell.slice(2))]}`);

  function pairButtons(view, k) {
    const n = view.sizes[k];
    return h("div", { class: "x-pairs", role: "group", "aria-label": "Images by which run withstands" },
      ...Object.entries(PAIRS).map(([cell, words]) => {
        const count = imagesOf(view, k, cell).length;
        return cellButton(cell, count, `${words}: ${count} of ${n} images`, h("b", {}, String(count)), ` ${words}`);
      }));
  }

  function rowOfConfusion(view, k) {
    const { set, attack } = choice;
    const n = view.sizes[k];
    const counts = Object.fromEntries(SIDES.map((side) => {
      const row = set.classes.map(() => 0);
      for (const i of view.images[k]) row[view[side].attacked.prediction(i)] += 1;
      return [side, row];
    }));
    const most = Math.max(...counts.a, ...counts.b);
    const others = set.classes.map((_, j) => j).filter((j) => j !== k && counts.a[j] + counts.b[j] > 0);
    others.sort((i, j) => counts.a[j] + counts.b[j] - counts.a[i] - counts.b[i]);
    const never = set.classes.filter((_, j) => j !== k && counts.a[j] + counts.b[j] === 0);
    const body = h("tbody", {}, ...[k, ...others].map((j) => h("tr", {},
      h("th", { scope: "row" }, set.classes[j], j === k ? h("small", {}, " right") : ""),
      ...SIDES.map((side) => {
        const count = counts[side][j];
        const words = `${count} of ${n} images of ${set.classes[k]} are ${set.classes[j]} to ${choice[side].key} under ${attack}`;
        const bar = h("span", { class: `x-bar x-${side}${j === k ? "" : " x-wrong"}`, style: `width: ${(100 * count / most).toFixed(2)}%` });
        return h("td", { "data-value": count }, cellButton(`${side}:${j}`, count, words,
          h("span", { class: "x-track" }, bar), h("span", { class: "x-count" }, h("b", {}, String(count)), ` ${percent(count / n)}`)));
      }))));
    const name = `${set.name}-${attack}-${set.classes[k]}`.replace(/[^\w-]+/g, "_");
    const lucky = SIDES.map((side) => counts[side][k] - view[side].robustRight[k]);
    return h("div", {},
      h("table", { id: "x-row", class: "report-table" },
        h("caption", {}, `Answers to the ${n} images of ${set.classes[k]} under ${attack}: number, and % of the class.`),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Answer"),
          ...SIDES.map((side) => h("th", { scope: "col" }, h("span", { class: `x-mark x-${side}`, "aria-hidden": "true" }), choice[side].key)))), body),
      lucky[0] + lucky[1] ? h("p", { class: "x-note" }, `Right under the attack but wrong on the clean image, so not counted as withstood: ${lucky[0]} left, ${lucky[1]} right.`) : "",
      never.length ? h("p", { class: "x-note" }, `Never the answer: ${never.join(", ")}.`) : "",
      csvButton(name, ["answer", choice.a.key, choice.b.key], set.classes.map((words, j) => [words, counts.a[j], counts.b[j]])));
  }

  function classPanel(view) {
    const k = choice.class;
    const { set, attack } = choice;
    const close = keyed(h("button", { type: "button", class: "x-close", onclick: () => go({ class: "" }) }, "Close"), "close-class");
    return h("section", { id: "x-class", "aria-label": `Images of ${set.classes[k]}` },
      h("h2", {}, `Where ${set.classes[k]} goes under ${attack}`, close),
      h("p", { class: "x-note" }, "A click on a number shows these images. To withstand is to be right on the clean image and under the attack."),
      pairButtons(view, k), rowOfConfusion(view, k));
  }

  // --- one cell: its images ---

  function cellWords(view, cell, n) {
    const { set, attack } = choice;
    const own = set.classes[choice.class];
    const images = n === 1 ? "1 image" : `${n} images`;
    if (cell in PAIRS) {
      const who = { both: "both runs withstand", "a-only": `only ${choice.a.key} withstands`, "b-only": `only ${choice.b.key} withstands`, neither: "neither run withstands" };
      return `${images} of ${own} in which ${who[cell]} ${attack}`;
    }
    return `${images} of ${own} that ${n === 1 ? "is" : "are"} ${set.classes[Number(cell.slice(2))]} to ${choice[cell[0]].key} under ${attack}`;
  }

  function orderWords(cell) {
    if (cell === "a-only" || cell === "b-only") return "The largest difference of margins is first.";
    if (cell in PAIRS) return "Those that the right run’s margin favours most are first.";
    return `The lowest margin of the ${SIDE_WORDS[cell[0]]} run is first.`;
  }

  function thumbnail(place, k, words) {
    const sprite = choice.set.images[k];
    if (!sprite || place >= sprite.images) return h("span", { class: "x-pic x-none", role: "img", "aria-label": `${words}, no picture here` });
    const scale = 56 / sprite.side;
    const [column, row] = [place % sprite.columns, Math.floor(place / sprite.columns)];
    const style = `background-image: url("_static/explorer/images/${sprite.file}"); background-size: ${56 * sprite.columns}px auto; `
      + `background-position: -${column * sprite.side * scale}px -${row * sprite.side * scale}px`;
    return h("span", { class: "x-pic", role: "img", "aria-label": words, style });
  }

  function tile(view, i, k, place) {
    const { set } = choice;
    const line = (side) => {
      const { attacked, clean } = view[side];
      const wrong = clean.right(i) ? "" : h("small", {}, ` (clean: ${set.classes[clean.prediction(i)]})`);
      return h("span", { class: "x-answer" }, h("span", { class: `x-mark x-${side}`, "aria-hidden": "true" }),
        h("span", {}, `${set.classes[attacked.prediction(i)]} `, h("b", {}, signed(attacked.margin(i), 2)), wrong));
    };
    return h("li", { "data-image": i }, set.images.length ? thumbnail(place, k, `test image ${i}, ${set.classes[k]}`) : "",
      h("span", { class: "x-lines" }, h("small", {}, `image ${i}`), line("a"), line("b")));
  }

  function cellPanel(view) {
    const { set, cell, attack } = choice;
    const k = choice.class;
    const images = imagesOf(view, k, cell);
    const places = new Map(view.images[k].map((i, place) => [i, place]));
    const list = h("ul", { class: "x-images" });
    const more = keyed(h("button", { type: "button", class: "x-more" }), "more");
    const extend = (n) => {
      const from = list.children.length;
      list.append(...images.slice(from, n).map((i) => tile(view, i, k, places.get(i))));
      shownImages = list.children.length;
      more.hidden = shownImages >= images.length;
      more.textContent = `Show more (${images.length - shownImages} left)`;
    };
    extend(Math.max(FIRST, shownImages || 0));
    more.addEventListener("click", () => extend(shownImages + 4 * FIRST));
    const sprite = set.images[k];
    const short = sprite && images.some((i) => places.get(i) >= sprite.images);
    const absent = set.images.length ? "" : ` ${set.no_images}`;
    const some = short ? ` Pictures are here of the first ${sprite.images} images of the class only: the data set was not on the machine that built this page.` : "";
    const rows = images.map((i) => [i, ...SIDES.flatMap((side) => {
      const { clean, attacked } = view[side];
      return [set.classes[clean.prediction(i)], set.classes[attacked.prediction(i)], signed(attacked.margin(i), 3).replace("−", "-")];
    })]);
    const head = ["image", ...SIDES.flatMap((side) => ["clean", attack, "margin"].map((words) => `${SIDE_WORDS[side]} ${words}`))];
    const name = `${set.name}-${attack}-${set.classes[k]}-${asked_cell(cell)}`.replace(/[^\w-]+/g, "_");
    const close = keyed(h("button", { type: "button", class: "x-close", onclick: () => go({ class: set.classes[k], cell: "" }) }, "Close"), "close-cell");
    return h("section", { id: "x-cell", "aria-label": "The images" },
      h("h2", {}, cellWords(view, cell, images.length), close),
      h("p", { class: "x-note" }, `Answer and margin under ${attack} of the left (circle) and the right run (square).${set.images.length ? " Pictures are the clean images." : ""} ${orderWords(cell)}${absent}${some}`),
      list, more, csvButton(name, head, rows));
  }

  // --- drawing ---

  let drawn = "";
  async function draw(event) {
    const before = choice;
    choice = resolve(parse(location.hash));
    await decode(choice.set.name);
    const cellBefore = before && `${before.set.name} ${before.class} ${before.cell}`;
    if (cellBefore !== `${choice.set.name} ${choice.class} ${choice.cell}`) shownImages = 0;
    const focus = root.contains(document.activeElement) ? document.activeElement.dataset.key : "";
    const view = compute();
    const said = h("p", { class: "x-said", role: "status" }, choice.said.length ? `${choice.said.join(". ")}.` : "");
    const parts = [menus(), said, ...notes(view).map((line) => h("p", { class: "x-note x-warn" }, line)), legend()];
    const plot = h("div", { class: "x-plot" });
    parts.push(h("div", { class: "x-columns" }, plot, choice.class >= 0 ? classPanel(view) : h("p", { class: "x-note x-hint" }, "A click on a class shows where its images go.")));
    if (choice.class >= 0 && choice.cell) parts.push(cellPanel(view));
    parts.push(h("section", { "aria-label": "The numbers" }, h("h2", {}, "The numbers"), classTable(view)));
    root.replaceChildren(...parts);
    drawn = plot.clientWidth;
    plot.append(picture(view, drawn));
    if (focus) root.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
    root.dataset.ready = location.hash || "#";
    if (!event || !before) return;
    const opened = choice.cell !== before.cell && choice.cell ? "x-cell" : choice.class !== before.class && choice.class >= 0 ? "x-class" : "";
    if (opened) document.getElementById(opened).scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("DOMContentLoaded", () => {
    root = document.getElementById("explorer");
    if (!root) return;
    if (!Object.keys(sets).length) {
      root.textContent = "No run is published here: crat publish puts finished runs into results/.";
      return;
    }
    addEventListener("hashchange", draw);
    addEventListener("resize", () => {
      const plot = root.querySelector(".x-plot");
      if (plot && plot.clientWidth !== drawn) draw();
    });
    draw();
  });
})();
