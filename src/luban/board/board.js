"use strict";
// The page asks for what it lacks, every two seconds; a file's words only ever become text nodes.

const POINTS = 700, EVERY = 2000, MOST = 8, $ = id => document.getElementById(id);
const memory = { // what the reader chose, if the browser keeps it
  get(key) { try { return localStorage.getItem("luban." + key); } catch { return null; } },
  set(key, value) { try { localStorage.setItem("luban." + key, value); } catch { return; } },
};
const asked = new URLSearchParams(location.search), kept = new URLSearchParams(location.hash.slice(1));
let language = (asked.get("lang") || memory.get("language") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en")) === "zh" ? "zh" : "en";
let words = Object.create(null), runs = [], chosen = kept.getAll("run"), axis = kept.get("axis") || "step", range = null, cursor = null, live = true, folder = "";
const held = new Map(); // run id -> what is known of it

// ---- words and numbers

// A log may name anything, "constructor" and "__proto__" too: what is looked up by such a name is in objects that inherit nothing.
const bare = (values = {}) => Object.assign(Object.create(null), values);
const t = (text, values = {}) => ((language === "zh" && words[text]) || text).replace(/\{(\w+)\}/g, (_, name) => values[name]);
const NAMES = bare({
  loss: "loss", learning_rate: "learning rate", gradient_norm: "gradient norm", tokens_per_second: "tokens a second", peak_share: "share of peak",
  memory_bytes: "memory", bits_per_byte: "bits a byte", validation: "validation", goodput: "goodput",
});
const RULES = bare({
  not_finite: "loss or gradient not finite", loss_not_finite: "alert: loss not finite", no_step: "alert: no step", throughput: "alert: slow",
  validation_rising: "alert: validation rising", disk_free: "alert: disk low", spike: "loss spike, skipped", rollback: "loss spike, gone back", gradient_exploded: "gradient exploded",
  gradient_vanished: "gradient vanished", layers_apart: "layers far apart", recheck: "two computations differ", hang: "hang", slow: "slow section", straggler: "slow rank", stopped: "asked to leave",
});
const EXACT = ["learning_rate", "memory_bytes"]; // nothing in them is chance
const STATES = { running: "running", stopped: "stopped", finished: "finished" };
const named = name => t(NAMES[name] || name.replaceAll("_", " ")), finite = value => typeof value === "number" && Number.isFinite(value);
function short(value) {
  if (!finite(value)) return "–";
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e15)) return value.toExponential(1).replace("e+", "e");
  for (const [scale, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "k"]]) if (size >= scale) return +(value / (letter === "k" ? 1e3 : scale)).toPrecision(3) + letter;
  return String(+value.toPrecision(4));
}
function bytes(value) {
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < 4) { value /= 1024; unit++; }
  return `${+value.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}
function time(seconds) {
  const s = Math.round(seconds), m = Math.floor(s / 60), h = Math.floor(m / 60);
  if (seconds < 60) return `${seconds < 10 ? +seconds.toFixed(1) : s}s`;
  const two = number => String(number).padStart(2, "0");
  return m < 60 ? `${m}m${two(s % 60)}s` : h < 48 ? `${h}h${two(m % 60)}m` : `${Math.floor(h / 24)}d${h % 24}h`;
}
function shown(name, value) {
  if (!finite(value)) return "–";
  return name === "memory_bytes" ? bytes(value) : name === "peak_share" ? `${+(100 * value).toFixed(1)} %` : short(value);
}
const place = value => axis === "seconds" ? time(value) : short(value);

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
function draw(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
const put = (node, ...children) => { node.replaceChildren(...children); return node; };

// ---- what the server knows

async function get(path, values = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(values)}`);
  if (!answer.ok) throw new Error(answer.status);
  return JSON.parse(await answer.text(), (key, value) => value && typeof value === "object" && !Array.isArray(value) ? bare(value) : value);
}

function known(data) {
  const tables = bare();
  for (const [name, table] of Object.entries(data.tables)) tables[name] = [table.level, table.first, table.rows];
  return JSON.stringify({ generation: data.generation, tables, events: data.eventCount, samples: data.sampleCount });
}

async function refresh(id) {
  const window = range, data = held.get(id) || { tables: bare(), events: [], samples: [], eventCount: 0, sampleCount: 0 };
  const part = await get("api/series", { run: id, points: POINTS, known: known(data), ...(window ? { from: window[0], to: window[1] } : {}) });
  if (window !== range) return;
  if (part.generation !== data.generation) Object.assign(data, { tables: bare(), events: [], samples: [] });
  if (part.generation !== data.generation || part.run.state !== data.run?.state) data.details = await get("api/run", { run: id }); // begun anew, or ended
  for (const [name, given] of Object.entries(part.tables)) merge(data.tables[name] ||= { places: bare(), series: bare() }, given);
  data.events.push(...part.events.items); data.samples.push(...part.samples.items);
  const { generation, reading, broken, last, run } = part;
  Object.assign(data, { generation, reading, broken, last, run, eventCount: part.events.count, sampleCount: part.samples.count });
  runs = runs.map(run => run.id === id ? part.run : run);
  held.set(id, data);
}

// New buckets take the place of those from `at` on; all that came before stays as it was given.
function merge(table, given) {
  if (!given.at) return Object.assign(table, given);
  const join = (old, more) => { old.length = given.at; for (let i = 0; i < given.at; i++) old[i] ??= null; old.push(...more); };
  for (const [name, list] of Object.entries(given.places)) join(table.places[name] ||= [], list);
  for (const [name, lists] of Object.entries(given.series)) {
    table.series[name] ||= lists.map(() => []);
    lists.forEach((list, index) => join(table.series[name][index], list));
  }
  table.rows = given.rows;
}

let turn = 0, busy = false;
async function tick() {
  if (busy || document.hidden || (!live && turn)) return;
  busy = true;
  try {
    if (turn++ % 2 === 0) {
      ({ runs, folder } = await get("api/runs"));
      choose();
      list();
    }
    const due = chosen.filter(id => {
      const data = held.get(id), now = state(id);
      return now && (!data || data.window !== range || data.reading < 1 || now !== "finished" || now !== data.run.state);
    });
    await Promise.all(due.map(async id => { await refresh(id); if (held.has(id)) held.get(id).window = range; }));
    notice(remark);
    if (due.length || !document.body.dataset.ready) { list(); render(); }
    document.body.dataset.ready = "yes";
  } catch (error) {
    notice(error instanceof TypeError ? t("The server cannot be reached. Is it still running?") : t("This run is gone, or cannot be read ({error}).", { error: error.message }));
  }
  busy = false;
  if (chosen.some(id => held.get(id)?.reading < 1)) setTimeout(tick, 30);
}
const again = () => { for (const data of held.values()) data.window = undefined; keep(); busy ? setTimeout(again, 50) : tick(); };
const state = id => runs.find(run => run.id === id)?.state;
let remark = ""; // of the run that is looked at; a failure to reach the server goes before it
const notice = text => { $("notice").textContent = text; $("notice").hidden = !text; };

// Without a choice: the run that is at work, or else the latest.
function choose() {
  chosen = chosen.filter(id => runs.some(run => run.id === id));
  const best = [...runs].sort((a, b) => (b.state === "running") - (a.state === "running") || b.changed - a.changed)[0];
  if (!chosen.length && best) chosen = [best.id];
}
function keep() {
  const values = new URLSearchParams(chosen.map(id => ["run", id]));
  if (axis !== "step") values.set("axis", axis);
  history.replaceState(null, "", "#" + values);
}

// ---- the list of runs

function list() {
  const wanted = $("filter").value.trim().toLowerCase();
  $("folder").textContent = folder; document.title = `${folder} · Luban`;
  $("count").textContent = runs.length === 1 ? t("one run") : t("{count} runs", { count: runs.length });
  const lines = new Map([...$("runs").children].map(line => [line.dataset.id, line]));
  const rows = runs.filter(run => run.id.toLowerCase().includes(wanted) || chosen.includes(run.id)).map(run => {
    const row = lines.get(run.id) || line(run.id), slot = chosen.indexOf(run.id), [box, name, dot, bar, about] = row.children;
    row.className = slot < 0 ? "" : "c" + slot;
    box.checked = slot >= 0; box.setAttribute("aria-label", t("compare {name}", { name: run.id }));
    name.setAttribute("aria-current", String(slot === 0));
    dot.className = "state " + run.state; dot.title = t(STATES[run.state]);
    bar.hidden = !(run.steps && run.state !== "finished"); bar.max = run.steps || 1; bar.value = run.step || 0;
    const at = run.step === null ? "" : t("step {step}", { step: run.step }), loss = run.loss === null ? "" : `${t("loss")} ${short(run.loss)}`;
    about.textContent = [t(STATES[run.state]), at, loss].filter(Boolean).join(" · ");
    return row;
  });
  if (rows.length !== $("runs").children.length || rows.some((row, index) => row !== $("runs").children[index])) put($("runs"), ...rows);
}
function line(id) {
  const cut = id.lastIndexOf("/") + 1, name = make("button", { type: "button" }, make("span", { textContent: id.slice(0, cut) }), id.slice(cut));
  const row = make("li", {}, make("input", { type: "checkbox" }), name, make("i"), make("progress"), make("small"));
  row.dataset.id = id;
  row.children[0].onchange = event => {
    chosen = event.target.checked ? [...chosen, id].slice(-MOST) : chosen.filter(other => other !== id);
    choose(); list(); again();
  };
  row.children[1].onclick = () => { chosen = [id]; range = null; list(); again(); };
  return row;
}

// ---- curves

function smooth(values, count) { // an exponential average over `count` points, forwards and backwards, so that it does not lag
  if (count <= 1) return values;
  const keepShare = 1 - 1 / count, pass = order => {
    const out = new Array(values.length).fill(null);
    let average = 0, weight = 0;
    for (const i of order) if (finite(values[i])) {
      average = keepShare * average + (1 - keepShare) * values[i]; weight = keepShare * weight + 1 - keepShare;
      out[i] = average / weight;
    }
    return out;
  };
  const order = [...values.keys()], one = pass(order), other = pass(order.reverse());
  return one.map((value, i) => value === null ? null : (value + other[i]) / 2);
}
const share = () => (($("smooth").value / 100) ** 2) * .2; // of what is seen

function lines(group, column, style = "") {
  return chosen.flatMap((id, slot) => {
    const table = held.get(id)?.tables[group], x = table?.places[axis], series = table?.series[column];
    if (!x || !series || !series[0].some(finite)) return [];
    const line = style || EXACT.includes(column) ? series[0] : smooth(series[0], share() * series[0].length);
    return [{ id, slot, style, x, mean: series[0], low: series[1], high: series[2], line }];
  });
}

// Every chart there is something to draw for, in a fixed order: the usual ones first, then whatever else a log holds.
function specs() {
  const tables = id => held.get(id)?.tables || {}, unique = lists => [...new Set(lists)];
  const columns = group => unique(chosen.flatMap(id => Object.keys(tables(id)[group]?.series || {})));
  const groups = unique(chosen.flatMap(id => Object.keys(tables(id)))).filter(group => !["", "data", "validation", "time"].includes(group));
  const usual = ["learning_rate", "gradient_norm", "tokens_per_second", "peak_share", "memory_bytes"], own = columns("");
  const made = [{ key: "loss", title: t("loss"), tall: true, lines: [...lines("", "loss"), ...lines("validation", "loss", "validation")] }];
  const add = (group, name, style) => made.push({ key: `${group}/${name}`, name, title: t("{group}: {name}", { group: named(group), name: named(name) }), lines: lines(group, name, style) });
  for (const name of columns("validation")) if (name !== "loss") add("validation", name, "validation");
  for (const name of [...usual.filter(name => own.includes(name)), ...own.filter(name => name !== "loss" && !usual.includes(name))])
    made.push({ key: name, name, title: named(name), zero: usual.includes(name), lines: lines("", name) });
  for (const group of groups) for (const name of columns(group)) add(group, name);
  made.push({ key: "goodput", name: "goodput", title: named("goodput"), zero: true, lines: lines("time", "goodput") });
  return made.filter(spec => spec.lines.length);
}

function ticks(low, high, about = 4) {
  if (!(high > low)) high = low + (Math.abs(low) || 1);
  const raw = (high - low) / about, scale = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 2.5, 5, 10].find(f => f * scale >= raw * .999) * scale;
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Number.isFinite(last - first) ? Array.from({ length: last - first + 1 }, (_, i) => +((first + i) * step).toPrecision(12)) : [low, high];
}
function extent(spec, logarithmic) { // the range worth showing: a lone spike far above the rest does not flatten the curve
  const all = spec.lines.flatMap(line => line.style ? line.line : [line.line, line.low || line.mean, line.high || []].flat());
  const values = all.filter(value => finite(value) && (!logarithmic || value > 0)).sort((a, b) => a - b);
  if (!values.length) return null;
  let low = values[0], high = values[values.length - 1];
  const usual = values[Math.floor(.99 * (values.length - 1))];
  if (values.length > 50 && high - low > 5 * (usual - low) && usual > low) high = usual * 1.1;
  if (!logarithmic) return spec.zero ? [Math.min(0, low), high] : [low, high];
  return high > low ? [low, high] : [low / 2, high * 2];
}

let seen = [0, 1]; // ends of the horizontal axis
function ends() {
  if (range && axis === "step") return range;
  const marks = chosen.flatMap(id => { const x = held.get(id)?.tables[""]?.places[axis] || []; return [x.find(finite), x.findLast(finite)]; }).filter(finite);
  const first = Math.min(...marks), last = Math.max(...marks, 1e-9);
  return marks.length ? [range || first > last / 2 ? first : Math.min(0, first), last] : [0, 1]; // a branch of a long run begins where it begins
}

function chart(spec) {
  let node = [...$("charts").children].find(other => other.dataset.key === spec.key);
  if (!node) {
    node = make("figure", {}, make("figcaption"), make("div", { className: "plot", tabIndex: 0 }));
    node.dataset.key = spec.key; node.lastChild.setAttribute("role", "img"); steer(node.lastChild);
  }
  const logarithmic = $("log").checked, reach = extent(spec, logarithmic), [left, right] = seen;
  node.className = "chart" + (spec.tall ? " tall" : "") + (chosen.length === 1 ? " one c0" : "");
  node.spec = spec;
  if (!reach) { node.hidden = true; return node; }
  node.hidden = false;
  const map = logarithmic ? Math.log10 : value => value, unit = spec.name === "memory_bytes" ? 1024 ** Math.floor(Math.log2(Math.max(1, reach[1])) / 10) : 1;
  const marks = logarithmic ? powers(...reach) : ticks(reach[0] / unit, reach[1] / unit).map(mark => mark * unit);
  const bottom = logarithmic ? map(reach[0]) : marks[0], top = logarithmic ? map(reach[1]) : marks[marks.length - 1];
  const across = value => (value - left) / (right - left), up = value => Math.min(1.03, Math.max(-.03, (map(value) - bottom) / (top - bottom)));
  const svg = draw("svg", { viewBox: "0 0 1000 400", preserveAspectRatio: "none", "aria-hidden": "true" }), parts = [];
  for (const mark of marks) {
    const y = up(mark);
    svg.append(draw("line", { class: "grid", x1: 0, x2: 1000, y1: 400 - 400 * y, y2: 400 - 400 * y }));
    parts.push(at(make("span", { className: "tick y", textContent: shown(spec.name, mark) }), null, y));
  }
  for (const mark of ticks(left, right, spec.tall ? 8 : 4)) if (mark >= left && mark <= right) parts.push(at(make("span", { className: "tick x", textContent: place(mark) }), across(mark)));
  const path = (x, values) => {
    let pen = "M";
    return x.map((at, i) => {
      if (!finite(values[i]) || !finite(at) || (logarithmic && values[i] <= 0)) { pen = "M"; return ""; }
      const point = `${pen}${(1000 * across(at)).toFixed(1)} ${(400 - 400 * up(values[i])).toFixed(1)}`;
      pen = "L";
      return point;
    }).join("");
  };
  for (const line of spec.lines) {
    const of = (kind, data) => data && svg.append(draw("path", { class: `${kind} c${line.slot}`, d: data }));
    if (line.style) {
      of("validation", path(line.x, line.mean));
      const dots = line.x.length > 120 ? [] : [...line.x.keys()].filter(i => finite(line.mean[i]) && line.x[i] >= left && line.x[i] <= right);
      parts.push(...dots.map(i => at(make("b", { className: `dot c${line.slot}` }), across(line.x[i]), up(line.mean[i]))));
    } else {
      if (line.low) of("band", band(line, path)); else if (share() > 0) of("raw", path(line.x, line.mean));
      of("smooth", path(line.x, line.line));
    }
  }
  const drawn = new Set();
  for (const event of events()) {
    const x = Math.round(1000 * across(event.x));
    if (!(x >= 0 && x <= 1000) || drawn.has(x)) continue;
    drawn.add(x);
    svg.append(draw("line", { class: `event ${/not_finite/.test(event.kind) ? "not_finite" : ""}`, x1: x, x2: x, y1: 0, y2: 400 }));
  }
  svg.append(draw("line", { class: "cursor", y1: 0, y2: 400, visibility: "hidden" }));
  put(node.lastChild, ...parts, svg);
  caption(node);
  return node;
}
function at(node, x, y) { // puts a tick or dot at a place in the plot, in shares of it
  if (x !== null) node.style.left = `${100 * x}%`;
  if (y !== undefined) node.style.bottom = `${100 * y}%`;
  return node;
}
function powers(low, high) {
  const factors = high / low > 1e3 ? [1] : high / low > 20 ? [1, 3] : [1, 1.5, 2, 3, 5, 7], found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) found.push(...factors.map(f => f * 10 ** e).filter(mark => mark >= low && mark <= high));
  return found.length ? found : [low, high];
}
function band(line, path) { // along the highest, and back along the lowest
  const there = [...line.x.keys()].filter(i => finite(line.low[i]) && finite(line.high[i])), back = [...there].reverse();
  return there.length < 2 ? "" : path([...there, ...back].map(i => line.x[i]), [...there.map(i => line.high[i]), ...back.map(i => line.low[i])]) + "Z";
}

// Title, and each run's value at the cursor or at the end.
function caption(node) {
  const { spec } = node, parts = spec.lines.map(line => {
    const i = cursor === null ? line.x.findLastIndex((x, i) => finite(line.line[i])) : nearest(line, cursor);
    const who = chosen.length > 1 ? brief(line.id) : line.style && spec.tall ? t("validation") : "";
    return make("span", { className: `key ${line.style || "smooth"} c${line.slot}` }, make("i"), `${who} ${shown(spec.name, line.line[i])}`);
  });
  put(node.firstChild, make("b", { textContent: spec.title }), ...(cursor === null ? [] : [make("span", { textContent: place(cursor) })]), ...parts);
  node.lastChild.setAttribute("aria-label", `${spec.title}: ${parts.map(part => part.textContent.trim()).join(", ")}`);
  const mark = node.querySelector(".cursor"), at = cursor === null ? -1 : 1000 * (cursor - seen[0]) / (seen[1] - seen[0]);
  if (mark) { mark.setAttribute("visibility", at < 0 ? "hidden" : "visible"); mark.setAttribute("x1", at); mark.setAttribute("x2", at); }
}
function nearest(line, at) {
  let best = -1;
  line.x.forEach((x, i) => { if (finite(line.line[i]) && (best < 0 || Math.abs(x - at) < Math.abs(line.x[best] - at))) best = i; });
  return best;
}
function point(at) { cursor = at; for (const node of $("charts").children) if (!node.hidden) caption(node); }

// ---- looking closer: by pointer and by keys

function steps(at) { // a place on the axis as a step, by the run that is looked at
  const table = held.get(chosen[0])?.tables[""], x = table?.places[axis];
  if (axis === "step" || !x) return at;
  const i = x.findIndex(value => value >= at);
  return i < 0 ? table.places.step.at(-1) : table.places.step[i];
}
function look(from, to) {
  range = from === null ? null : [Math.floor(Math.max(0, steps(Math.min(from, to)))), Math.ceil(steps(Math.max(from, to)))];
  if (range && range[1] - range[0] < 2) range = [Math.max(0, range[0] - 1), range[0] + 2];
  $("whole").hidden = !range; cursor = null; again();
}
function steer(plot) {
  let from = null, picked = null;
  const at = event => { const box = plot.getBoundingClientRect(); return seen[0] + Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * (seen[1] - seen[0]); };
  plot.addEventListener("pointerdown", event => { if (event.button === 0) { from = at(event); plot.setPointerCapture(event.pointerId); } });
  plot.addEventListener("pointermove", event => {
    point(at(event));
    if (from === null) return;
    const [a, b] = [from, at(event)].sort((x, y) => x - y).map(x => 1000 * (x - seen[0]) / (seen[1] - seen[0]));
    picked?.remove(); picked = draw("rect", { class: "picked", x: a, y: 0, width: b - a, height: 400 }); plot.querySelector("svg").append(picked);
  });
  plot.addEventListener("pointerup", event => {
    const to = at(event), start = from;
    from = null; picked?.remove();
    if (start !== null && Math.abs(to - start) > (seen[1] - seen[0]) / 100) look(start, to);
  });
  plot.addEventListener("pointercancel", () => { from = null; picked?.remove(); });
  plot.addEventListener("pointerleave", () => { if (from === null && document.activeElement !== plot) point(null); });
  plot.addEventListener("dblclick", () => look(null));
  plot.addEventListener("blur", () => point(null));
  plot.addEventListener("keydown", event => {
    const width = seen[1] - seen[0], here = cursor ?? seen[1], move = { ArrowLeft: -.01, ArrowRight: .01, PageUp: -.1, PageDown: .1 }[event.key], zoom = { "+": .5, "=": .5, "-": 2 }[event.key];
    if (move) point(Math.min(seen[1], Math.max(seen[0], here + move * width * (event.shiftKey ? 10 : 1))));
    else if (event.key === "Home" || event.key === "End") point(event.key === "Home" ? seen[0] : seen[1]);
    else if (zoom === 2 && !range) return;
    else if (zoom) look(here - width * zoom / 2, here + width * zoom / 2);
    else if (event.key === "Escape") look(null);
    else return;
    event.preventDefault(); $("status").textContent = `${place(cursor ?? seen[0])}. ${plot.getAttribute("aria-label")}`;
  });
}

// ---- the sections under the curves

function events() {
  return chosen.flatMap((id, slot) => {
    const data = held.get(id), table = data?.tables[""], x = table?.places[axis] || [];
    const across = step => axis === "step" || !table ? step : x[table.places.step.findIndex(other => other >= step)];
    return (data?.events || []).map(event => ({ ...event, slot, id, x: across(event.step) }));
  });
}
// Names of the chosen runs without the folders that all of them share, at either end.
function brief(id) {
  const all = chosen.map(other => other.split("/")), parts = id.split("/"), shortest = Math.min(...all.map(one => one.length));
  let from = 0, end = 0;
  while (from < shortest - 1 && all.every(one => one[from] === parts[from])) from++;
  while (end < shortest - 1 - from && all.every(one => one.at(-1 - end) === parts.at(-1 - end))) end++;
  return chosen.length > 1 ? parts.slice(from, parts.length - end).join("/") : id;
}
const chip = slot => make("i", { className: `chip c${slot}` });
// A row of a table; a cell is a text, or [what it holds, its class].
function row(cells, tag = "td") {
  return make("tr", {}, ...cells.map(cell => cell instanceof Array ? make(tag, { className: cell[1] }, ...[cell[0]].flat()) : make(tag, {}, cell)));
}
const head = (id, slot) => [[chip(slot), brief(id)], ""];
function fill(id, rows, shows = rows.length > 1) { // what is the same is left alone: somebody may be reading or copying it
  const table = $(id).querySelector("table"), mark = chosen.concat(rows.map(line => line.textContent)).join("\n");
  $(id).hidden = !shows;
  if (shows && table.mark !== mark) { table.mark = mark; put(table, ...rows); }
}

function tiles(data) {
  const last = data.last[""] || {}, told = data.details.about, run = data.run, validation = data.last.validation || {};
  const left = run.state === "running" && told.steps > last.step && last.step > 0 ? last.seconds / last.step * (told.steps - last.step) : null;
  const step = told.steps ? `${short(last.step)} / ${short(told.steps)}` : short(last.step), of = (name, show = short) => finite(last[name]) ? show(last[name]) : null;
  const found = [
    [t("loss"), short(last.loss)], [t("step"), finite(last.step) ? step : null], [t("validation"), finite(validation.loss) ? short(validation.loss) : null], [t("tokens read"), of("tokens")],
    [t("tokens a second"), of("tokens_per_second")], [t("share of peak"), of("peak_share", value => shown("peak_share", value))], [t("memory"), of("memory_bytes", bytes)],
    [t("goodput"), finite(data.last.time?.goodput) ? `${Math.round(100 * data.last.time.goodput)} %` : null], [t("time"), of("seconds", time)], [t("left"), left === null ? null : time(left)],
  ].filter(([, text]) => text !== null);
  put($("tiles"), ...found.map(([label, text], index) => make("div", { className: index ? "tile" : "tile first" }, make("small", { textContent: label }), make("strong", { textContent: text }))));
}

function difference() {
  const all = chosen.map(id => held.get(id)?.details.config || {}), keys = [...new Set(all.flatMap(config => Object.keys(config)))].filter(key => new Set(all.map(config => config[key])).size > 1);
  const rows = keys.length ? keys.map(key => row([[key, "name"], ...all.map(config => [config[key] ?? "–", "value"])])) : [row([t("Their settings are the same.")])];
  fill("difference", [row(["", ...chosen.map(head)], "th"), ...rows], chosen.length > 1);
}

function sections(data) {
  difference();
  const happened = events().sort((a, b) => b.step - a.step).slice(0, 300);
  const many = chosen.length > 1, titles = row([[t("step"), "n"], ...(many ? [t("run")] : []), t("what"), t("when"), t("detail")], "th");
  const when = event => event.time ? new Date(event.time).toLocaleString(language) : "", what = event => t(RULES[event.kind] || event.kind.replaceAll("_", " "));
  const told = event => row([[String(event.step), "n"], ...(many ? [head(event.id, event.slot)] : []), what(event), when(event), event.text || event.detail]);
  fill("events", [titles, ...happened.map(told)]);
  const sources = chosen.flatMap((id, slot) => {
    const one = held.get(id), read = Object.entries(one?.last.data || {}).filter(([name]) => name !== "step"), total = read.reduce((sum, [, rows]) => sum + rows, 0) || 1;
    const whole = one?.details.rows || {}, width = +one?.details.config.sequence_length;
    return read.map(([name, rows]) => {
      const bar = make("meter", { min: 0, max: 1, value: rows / total, ariaLabel: name }), times = whole[name] ? (rows / whole[name]).toFixed(2) : "–";
      return row([[[chip(slot), name], ""], [[bar, ` ${(100 * rows / total).toFixed(1)} %`], ""], [short(rows), "n"], [short(rows * width), "n"], [times, "n"]]);
    });
  });
  fill("data", [row([t("source"), t("share"), [t("rows"), "n"], [t("tokens"), "n"], [t("times read"), "n"]], "th"), ...sources]);
  const prompts = new Map();
  for (const { step, samples } of data.samples) for (const { prompt, text } of samples) { if (!prompts.has(prompt)) prompts.set(prompt, []); prompts.get(prompt).unshift([step, text]); }
  $("samples").hidden = !prompts.size;
  if ($("samples").count !== `${chosen[0]} ${data.sampleCount} ${language}`) { // left alone while a person reads
    $("samples").count = `${chosen[0]} ${data.sampleCount} ${language}`;
    const written = ([step, text]) => make("div", { className: "sample" }, make("span", { textContent: t("step {step}", { step }) }), make("p", { textContent: text.trim() }));
    const block = texts => make("div", { className: "written", tabIndex: texts.length > 3 ? 0 : -1 }, ...texts.slice(0, 60).map(written));
    put($("samples").lastElementChild, ...[...prompts].flatMap(([prompt, texts]) => [make("p", { className: "prompt", textContent: prompt.trim() || "·" }), block(texts)]));
  }
  const settings = Object.entries(data.details.config);
  fill("recipe", settings.map(([key, value]) => row([[key, "name"], [value, "value"]])), settings.length > 0);
  $("recipe").querySelector("details").hidden = !data.details.recipe; $("recipe").querySelector("pre").textContent = data.details.recipe;
  const { host, started, parameters, objective } = data.details.about;
  const facts = [objective, parameters && t("{count} parameters", { count: short(parameters) }), started && new Date(started).toLocaleString(language), host];
  $("foot").textContent = [...facts, ...Object.entries(data.details.versions || {}).map(pair => pair.join(" "))].filter(Boolean).join(" · ");
}

function render() {
  const data = held.get(chosen[0]);
  $("name").textContent = [chosen[0] || "", chosen.length > 1 ? t("and {count} more", { count: chosen.length - 1 }) : ""].join(" ");
  for (const id of ["tiles", "tools"]) $(id).hidden = !data;
  if (!data) { put($("charts")); if (!runs.length) notice(remark = t("No run has written a log under this folder yet; this page looks again by itself.")); return; }
  remark = data.reading < 1 ? t("reading the log: {share} %", { share: Math.round(100 * data.reading) }) : data.broken ? t("{count} lines of the log could not be read", { count: data.broken }) : "";
  notice(remark);
  const table = data.tables[""], over = share() * (table?.places.step.length || 0); // what an average goes over, in points
  $("smoothed").textContent = over > 1 ? t("{count} steps", { count: short(Math.round(over * 2 ** table.level)) }) : t("none");
  seen = ends(); if (!(seen[1] > seen[0])) seen = [seen[0] - .5, seen[0] + .5];
  const nodes = specs().map(chart);
  if (nodes.length !== $("charts").children.length || nodes.some((node, index) => node !== $("charts").children[index])) put($("charts"), ...nodes);
  tiles(data); sections(data);
}

// ---- the controls

function label() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t ||= node.textContent);
  $("language").textContent = language === "zh" ? "EN" : "中文"; $("language").setAttribute("aria-label", language === "zh" ? "Switch to English" : "切换到中文");
  $("filter").placeholder = t("Filter runs"); $("theme").title = t("Light or dark"); $("theme").setAttribute("aria-label", t("Light or dark"));
}
$("language").onclick = () => { language = language === "en" ? "zh" : "en"; memory.set("language", language); label(); list(); render(); };
$("theme").onclick = () => {
  const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark"; memory.set("theme", root.dataset.theme);
};
if (["light", "dark"].includes(memory.get("theme"))) document.documentElement.dataset.theme = memory.get("theme");
$("live").onclick = () => { live = !live; $("live").setAttribute("aria-pressed", String(live)); tick(); };
$("filter").oninput = list;
$("axis").value = axis = ["step", "tokens", "seconds"].includes(axis) ? axis : "step";
$("axis").onchange = () => { axis = $("axis").value; cursor = null; keep(); render(); };
$("smooth").oninput = render; $("log").onchange = render;
$("whole").onclick = () => look(null);
addEventListener("visibilitychange", tick);
(async () => {
  try { words = await get("words.json"); } catch { words = bare(); } // then the page is in English
  label(); await tick(); setInterval(tick, EVERY);
})();
