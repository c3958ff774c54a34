// The explorer's images: where those of a class go, and those of a cell.
"use strict";

window.CRAT_EXPLORER.images = (() => {
  const model = window.CRAT_EXPLORER;
  const { SIDES, SIDE_WORDS, PAIRS } = model;
  const { now, h, button, column, row, note, mark, go, csvButton } = model.elements;
  const { percent, signed } = model.elements;
  const FIRST = 24; // images shown before "more" is pressed
  const PICTURE = 56; // pixels of an image's side on the screen
  let shownImages = 0;

  // --- one class: where its images go ---

  // a number of images of the open class, which opens them
  function cellButton(name, count, words, ...children) {
    const { set } = now.choice;
    const opened = name === now.choice.cell;
    const open = () =>
      go({ class: set.classes[now.choice.class], cell: opened ? "" : model.cellWords(set, name) });
    const state = { "aria-pressed": String(opened), disabled: count ? undefined : "" };
    const about = { "data-cell": name, "aria-label": words };
    return button(`cell-${name}`, { ...about, ...state, onclick: open }, ...children);
  }

  function pairButtons(k) {
    const buttons = Object.entries(PAIRS).map(([pair, words]) => {
      const count = model.imagesOf(now.view, k, pair).length;
      const whole = `${words}: ${count} of ${now.view.sizes[k]} images`;
      return cellButton(pair, count, whole, h("b", {}, String(count)), ` ${words}`);
    });
    const group = { role: "group", "aria-label": "Images by which run withstands" };
    return h("div", { class: "x-pairs", ...group }, ...buttons);
  }

  // how often a side gives each answer to a class
  function answersTo(side, k) {
    const counts = now.choice.set.classes.map(() => 0);
    for (const i of now.view.images[k]) counts[now.view[side].attacked.prediction(i)] += 1;
    return counts;
  }

  function answerCell(side, k, answer, count, most) {
    const { set, attack } = now.choice;
    const n = now.view.sizes[k];
    const said = `are ${set.classes[answer]} to ${now.choice[side].key} under ${attack}`;
    const words = `${count} of ${n} images of ${set.classes[k]} ${said}`;
    const width = `width: ${((100 * count) / most).toFixed(2)}%`;
    const bar = h("span", { class: `x-bar x-${side}`, style: width });
    const track = h("span", { class: "x-track" }, bar);
    const share = ` ${percent(count / n)}`;
    const number = h("span", { class: "x-count" }, h("b", {}, String(count)), share);
    const opener = cellButton(`${side}:${answer}`, count, words, track, number);
    return h("td", { "data-value": count }, opener);
  }

  function confusionRow(k) {
    const { set, attack, a, b } = now.choice;
    const counts = { a: answersTo("a", k), b: answersTo("b", k) };
    const total = (j) => counts.a[j] + counts.b[j];
    const most = Math.max(...counts.a, ...counts.b);
    const wrong = set.classes.map((_, j) => j).filter((j) => j !== k);
    const given = wrong.filter(total).sort((i, j) => total(j) - total(i));
    const never = wrong.filter((j) => !total(j)).map((j) => set.classes[j]);
    const lucky = SIDES.map((side) => counts[side][k] - now.view[side].robustRight[k]);
    const rows = [k, ...given].map((j) => {
      const own = j === k ? h("small", {}, " right") : "";
      const cells = SIDES.map((side) => answerCell(side, k, j, counts[side][j], most));
      return h("tr", {}, row(set.classes[j], own), ...cells);
    });
    const images = `the ${now.view.sizes[k]} images of ${set.classes[k]}`;
    const caption = `Answers to ${images} under ${attack}: number, and % of the class.`;
    const heads = SIDES.map((side) => column(mark(side), now.choice[side].key));
    const luck =
      "Right under the attack but wrong on the clean image, so not counted as withstood: " +
      `${lucky[0]} left, ${lucky[1]} right.`;
    const values = set.classes.map((name, j) => [name, counts.a[j], counts.b[j]]);
    return h(
      "div",
      {},
      h(
        "table",
        { id: "x-row", class: "report-table" },
        h("caption", {}, caption),
        h("thead", {}, h("tr", {}, column("Answer"), ...heads)),
        h("tbody", {}, ...rows),
      ),
      lucky[0] + lucky[1] ? note(luck) : "",
      never.length ? note(`Never the answer: ${never.join(", ")}.`) : "",
      csvButton([set.classes[k]], ["answer", a.key, b.key], values),
    );
  }

  function classPanel(k) {
    const name = now.choice.set.classes[k];
    const attributes = { class: "x-close", onclick: () => go({ class: "" }) };
    const close = button("close-class", attributes, "Close");
    const help =
      "A click on a number shows these images. To withstand is to be right on the clean image " +
      "and under the attack.";
    return h(
      "section",
      { id: "x-class", "aria-label": `Images of ${name}` },
      h("h2", {}, `Where ${name} goes under ${now.choice.attack}`, close),
      note(help),
      pairButtons(k),
      confusionRow(k),
    );
  }

  // --- one cell: its images ---

  function cellTitle(count) {
    const { set, attack, a, b } = now.choice;
    const images = `${count} image${count === 1 ? "" : "s"} of ${set.classes[now.choice.class]}`;
    const who = {
      both: "both runs withstand",
      "a-only": `only ${a.key} withstands`,
      "b-only": `only ${b.key} withstands`,
      neither: "neither run withstands",
    }[now.choice.cell];
    if (who) return `${images} in which ${who} ${attack}`;
    const [side, answer] = now.choice.cell.split(":");
    const are = `${count === 1 ? "is" : "are"} ${set.classes[answer]}`;
    return `${images} that ${are} to ${now.choice[side].key} under ${attack}`;
  }

  function orderWords() {
    const name = now.choice.cell;
    if (name.endsWith("-only")) return "The largest difference of margins is first.";
    if (name in PAIRS) return "Those that the right run’s margin favours most are first.";
    return `The lowest margin of the ${SIDE_WORDS[name[0]]} run is first.`;
  }

  // place: of the image among those of its class
  function thumbnail(place, k, words) {
    const sprite = now.choice.set.images[k];
    if (!sprite || place >= sprite.images) {
      const label = `${words}, no picture here`;
      return h("span", { class: "x-pic x-none", role: "img", "aria-label": label });
    }
    const left = PICTURE * (place % sprite.columns);
    const top = PICTURE * Math.floor(place / sprite.columns);
    const style = [
      `background-image: url("_static/explorer/images/${sprite.file}")`,
      `background-size: ${PICTURE * sprite.columns}px auto`,
      `background-position: -${left}px -${top}px`,
    ].join("; ");
    return h("span", { class: "x-pic", role: "img", "aria-label": words, style });
  }

  function answerLine(side, i) {
    const { classes } = now.choice.set;
    const { clean, attacked } = now.view[side];
    const before = ` (clean: ${classes[clean.prediction(i)]})`;
    return h(
      "span",
      { class: "x-answer" },
      mark(side),
      h(
        "span",
        {},
        `${classes[attacked.prediction(i)]} `,
        h("b", {}, signed(attacked.margin(i), 2)),
        clean.right(i) ? "" : h("small", {}, before),
      ),
    );
  }

  function tile(i, k, place) {
    const { set } = now.choice;
    const words = `test image ${i}, ${set.classes[k]}`;
    const lines = SIDES.map((side) => answerLine(side, i));
    return h(
      "li",
      { "data-image": i },
      set.images.length ? thumbnail(place, k, words) : "",
      h("span", { class: "x-lines" }, h("small", {}, `image ${i}`), ...lines),
    );
  }

  // the tiles, and the button that shows more of them
  function tiles(images, k) {
    const places = new Map(now.view.images[k].map((i, place) => [i, place]));
    const list = h("ul", { class: "x-images" });
    const further = () => extend(shownImages + 4 * FIRST);
    const more = button("more", { class: "x-more", onclick: further });
    function extend(n) {
      const next = images.slice(list.children.length, n);
      list.append(...next.map((i) => tile(i, k, places.get(i))));
      shownImages = list.children.length;
      more.hidden = shownImages >= images.length;
      more.textContent = `Show more (${images.length - shownImages} left)`;
    }
    extend(Math.max(FIRST, shownImages));
    return [list, more];
  }

  function imagesCsv(images) {
    const { set, attack } = now.choice;
    const measured = ["clean", attack, "margin"];
    const head = SIDES.flatMap((side) => measured.map((words) => `${SIDE_WORDS[side]} ${words}`));
    const values = (side, i) => {
      const { clean, attacked } = now.view[side];
      const names = [clean, attacked].map((each) => set.classes[each.prediction(i)]);
      return [...names, attacked.margin(i).toFixed(3)];
    };
    const rows = images.map((i) => [i, ...SIDES.flatMap((side) => values(side, i))]);
    const names = [set.classes[now.choice.class], model.cellWords(set, now.choice.cell)];
    return csvButton(names, ["image", ...head], rows);
  }

  function cellPanel(k) {
    const { set, attack } = now.choice;
    const images = model.imagesOf(now.view, k, now.choice.cell);
    const sprite = set.images[k];
    const sides = "of the left (circle) and the right run (square)";
    const notes = [`Answer and margin under ${attack} ${sides}.`];
    if (set.images.length) notes.push("Pictures are the clean images.");
    notes.push(orderWords());
    if (!set.images.length) notes.push(set.no_images);
    if (sprite && sprite.images < now.view.sizes[k]) {
      notes.push(
        `Pictures are here of the first ${sprite.images} images of the class only: the data set ` +
          "was not on the machine that built this page.",
      );
    }
    const close = { class: "x-close", onclick: () => go({ class: set.classes[k], cell: "" }) };
    return h(
      "section",
      { id: "x-cell", "aria-label": "The images" },
      h("h2", {}, cellTitle(images.length), button("close-cell", close, "Close")),
      note(notes.join(" ")),
      ...tiles(images, k),
      imagesCsv(images),
    );
  }

  // again as few images as at first
  function fewAgain() {
    shownImages = 0;
  }

  return { classPanel, cellPanel, fewAgain };
})();
