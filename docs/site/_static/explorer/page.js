// The explorer's page: two runs side by side. The choice is the address; all is drawn from it.
// model.js says what a choice means; elements.js, classes.js and images.js draw. No library.
"use strict";

(() => {
  const model = window.CRAT_EXPLORER;
  const { SIDES, SIDE_WORDS, sets } = model;
  const { now, h, button, mark, go } = model.elements;
  const { legend, picture, classTable } = model.classes;
  const { classPanel, cellPanel, fewAgain } = model.images;
  let root;

  // --- the menus ---

  function menu(key, words, label, values, value, changed) {
    const select = h("select", { "aria-label": label, "data-key": key });
    for (const each of values) {
      const selected = String(each) === String(value) ? "" : undefined;
      select.append(h("option", { value: each, selected }, String(each)));
    }
    select.addEventListener("change", () => changed(select.value));
    return h("label", {}, h("span", {}, words), select);
  }

  // the run that has as many of the wanted fields as possible, the earlier ones first
  function nearest(runs, wanted) {
    let left = runs;
    for (const [name, value] of Object.entries(wanted)) {
      const kept = left.filter((run) => String(run[name]) === String(value));
      if (kept.length) left = kept;
    }
    return left[0];
  }

  function sideMenus(side) {
    const run = now.choice[side];
    const judged = now.choice.set.runs.filter((each) => each.outcomes[now.choice.attack]);
    const ofMethod = judged.filter((each) => each.method === run.method);
    const ofAverage = ofMethod.filter((each) => each.average === run.average);
    const field = (name, words, runs) => {
      const values = [...new Set(runs.map((each) => each[name]))];
      const { method, average, seed } = run;
      const change = (value) =>
        go({ [side]: nearest(judged, { method, average, seed, [name]: value }).key });
      const label = `${words} of the ${SIDE_WORDS[side]} run`;
      return menu(`${side}-${name}`, words, label, values, run[name], change);
    };
    const title = side === "a" ? "Left run" : "Right run";
    return h(
      "fieldset",
      { class: `x-side x-${side}` },
      h("legend", {}, mark(side), title),
      field("method", "Method", judged),
      field("average", "Weight average", ofMethod),
      field("seed", "Seed", ofAverage),
    );
  }

  function menus() {
    const { set, attack } = now.choice;
    const anew = { a: "", b: "", attack: "", class: "" };
    const data = (name) => go({ data: name, ...anew });
    const swap = () => go({ a: now.choice.b.key, b: now.choice.a.key });
    return h(
      "div",
      { class: "x-menus" },
      h(
        "div",
        { class: "x-common" },
        menu("data", "Data set", "Data set", Object.keys(sets), set.name, data),
        menu("attack", "Attack", "Attack", set.attacks, attack, (name) => go({ attack: name })),
        button("swap", { class: "x-swap", onclick: swap }, "⇄ Swap sides"),
      ),
      ...SIDES.map(sideMenus),
    );
  }

  // what limits the comparison, a line each
  function limits() {
    const { set, attack, a, b } = now.choice;
    const lines = [];
    if (now.view.n < set.n) {
      const [n, all] = [now.view.n, set.n].map((number) => number.toLocaleString("en"));
      const why = `no more were judged under ${attack}`;
      lines.push(`Both runs on the first ${n} of ${all} test images: ${why}.`);
    }
    const rough = SIDES.filter((side) => now.choice[side].outcomes[attack].dtype !== "float32");
    if (rough.length) {
      const { dtype } = now.choice[rough[0]].outcomes[attack];
      const runs = rough.map((side) => SIDE_WORDS[side]).join(" and the ");
      lines.push(`Examples of the ${runs} run were searched in ${dtype} and judged in float32.`);
    }
    if (a === b) lines.push("Both sides show the same run.");
    return lines.map((line) => h("p", { class: "x-note x-warn" }, line));
  }

  // --- drawing ---

  let drawn = 0; // the width for which the picture was drawn

  function render() {
    const { said } = now.choice;
    const k = now.choice.class;
    const plot = h("div", { class: "x-plot" });
    const words = "A click on a class shows where its images go.";
    const hint = h("p", { class: "x-note x-hint" }, words);
    const parts = [
      menus(),
      h("p", { class: "x-said", role: "status" }, said.length ? `${said.join(". ")}.` : ""),
      ...limits(),
      legend(),
      h("div", { class: "x-columns" }, plot, k >= 0 ? classPanel(k) : hint),
    ];
    if (now.choice.cell) parts.push(cellPanel(k));
    root.replaceChildren(...parts, classTable());
    drawn = plot.clientWidth;
    plot.append(picture(drawn));
  }

  // the panel that the last change opened
  function justOpened(before) {
    if (now.choice.cell && now.choice.cell !== before.cell) return "x-cell";
    return now.choice.class >= 0 && now.choice.class !== before.class ? "x-class" : "";
  }

  async function draw() {
    const before = now.choice;
    now.choice = model.resolve(model.parse(location.hash));
    await model.decode(now.choice.set.name);
    now.view = model.compute(now.choice);
    const same = before && before.class === now.choice.class && before.cell === now.choice.cell;
    if (!same) fewAgain();
    const focus = root.contains(document.activeElement) && document.activeElement.dataset.key;
    render();
    const again = focus && root.querySelector(`[data-key="${CSS.escape(focus)}"]`);
    if (again) again.focus({ preventScroll: true });
    root.dataset.ready = location.hash || "#";
    const opened = before && justOpened(before);
    if (opened) document.getElementById(opened).scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("DOMContentLoaded", () => {
    root = document.getElementById("explorer");
    if (!Object.keys(sets).length) {
      root.textContent = "No run is published here: crat publish puts finished runs into results/.";
      return;
    }
    if (!window.DecompressionStream) {
      root.textContent = "The explorer needs a browser of 2023 or later.";
      return;
    }
    addEventListener("hashchange", draw);
    addEventListener("resize", () => {
      if (root.querySelector(".x-plot")?.clientWidth !== drawn) draw();
    });
    draw();
  });
})();
