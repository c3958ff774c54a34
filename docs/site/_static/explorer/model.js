// The explorer's numbers: what a choice of two runs and an attack means. Nothing is drawn here.
// The outcomes are in numbers.js (crat/batch/explorer.py); page.js draws.
"use strict";

window.CRAT_EXPLORER = (() => {
  const Z = 1.959963984540054; // of 95 %
  const SIDES = ["a", "b"];
  const SIDE_WORDS = { a: "left", b: "right" };
  const PAIRS = {
    both: "both withstand",
    "a-only": "only left withstands",
    "b-only": "only right withstands",
    neither: "neither withstands",
  };
  const sets = window.CRAT_NUMBERS || {};
  const decoded = {}; // data set -> its arrays, one Uint8Array

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
    for (const run of sets[name].runs) addUp(sets[name], decoded[name].buffer, run);
  }

  // the margins of a run are stored less those of its last outcome of as many images
  function addUp(set, buffer, run) {
    const before = {};
    for (const { at, n } of Object.values(run.outcomes)) {
      const levels = new Int8Array(buffer, at + set.margins_after, n);
      const last = before[n];
      if (last) for (let i = 0; i < n; i += 1) levels[i] += last[i];
      before[n] = levels;
    }
  }

  // the answers of a run under an attack: prediction(i), margin(i), right(i)
  function answers(set, run, attack) {
    const { at, n } = run.outcomes[attack];
    const all = decoded[set.name];
    const codes = all.subarray(at, at + n);
    const levels = new Int8Array(all.buffer, at + set.margins_after, n);
    return {
      prediction: (i) => (codes[i] ? codes[i] - 1 : all[i]),
      right: (i) => codes[i] === 0,
      margin: (i) => Math.sign(levels[i]) * (levels[i] / set.levels) ** 2 * run.largest,
    };
  }

  // everything that the page shows of a choice: n images, by class their number and places, and of
  // each side its answers, counts by class, and worst class
  function compute(choice) {
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
      const counts = { cleanRight: count(clean.right), robustRight: count(robust) };
      view[side] = { clean, attacked, robust, ...counts };
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
      const inA = cell === "both" || cell === "a-only";
      const inB = cell === "both" || cell === "b-only";
      const found = own.filter((i) => a.robust(i) === inA && b.robust(i) === inB);
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
    const ends = (run) => asked.length > 7 && run.run.endsWith(asked);
    const found = set.runs.find((run) => run.key === asked) || set.runs.find(ends);
    if (found && found.outcomes[attack]) return found;
    const shown = (found && free.find((run) => run.method === found.method)) || usual;
    const why = found ? `has no published outcomes under ${attack}` : "is not here";
    said.push(`${asked} ${why}; shown is ${shown.key}`);
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

  // a cell as it stands in an address
  function cellWords(set, cell) {
    return cell in PAIRS || !cell ? cell : `${cell[0]}:${set.classes[Number(cell.slice(2))]}`;
  }

  // the parts of a choice's address
  function partsOf({ set, attack, a, b, class: k, cell }) {
    const opened = k >= 0 ? { class: set.classes[k], cell: cellWords(set, cell) } : {};
    return { data: set.name, attack, a: a.key, b: b.key, ...opened };
  }

  return {
    ...{ SIDES, SIDE_WORDS, PAIRS, sets },
    ...{ wilson, decode, compute, imagesOf },
    ...{ parse, address, resolve, cellWords, partsOf },
  };
})();
