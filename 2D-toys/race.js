"use strict";
const root = document.documentElement, $ = id => document.getElementById(id);
window.addEventListener("error", event => {
  root.dataset.error = event.message;
  $("trouble").textContent = "This page could not be drawn: " + event.message;
  $("trouble").hidden = false;
});
const data = JSON.parse($("data").textContent), methods = data.methods;
const svg = $("svg"), NS = svg.namespaceURI;
const colour = k => getComputedStyle(root).getPropertyValue("--c" + methods[k].look).trim();
const usual = v => v >= 100 ? 0 : v >= 10 ? 1 : v >= 0.1 ? 2 : 3; // digits behind the point
const digits = (v, d = usual(v)) => v === null ? "–" : v.toFixed(d);
const whole = v => v.toLocaleString("en");

function element(parent, name, text, attributes = {}) {
  const made = parent.appendChild(document.createElement(name));
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
function shape(parent, name, attributes) {
  const made = parent.appendChild(document.createElementNS(NS, name));
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// ---- texts
const drawn = methods.filter(m => m.drawn);
$("title").textContent = `${data.source} → ${data.target}`;
$("about").textContent = `${drawn.length} flows between the same two distributions: the same small network ` +
  `(three layers of ${data.width}), ${whole(data.steps)} training steps of ${data.batch_size} pairs each, ` +
  `seed ${data.seed}. The whole race took ${Math.round(data.seconds)} s in ${data.workers} ` +
  `process${data.workers > 1 ? "es" : ""}.`;
for (const part of data.command.split(/ (?=--)/)) {
  element($("command"), "span", part);
  $("command").append(" ");
}
$("left-out").textContent = data.left_out.length ? "Left out: " + data.left_out.join("; ") + "." : "";
$("reading").textContent = `How to read this: ${data.particles} points start at the same places in every picture ` +
  `(time 0, ${data.source}) and follow the method's flow to time 1 in ${data.fine} steps; the grey points are ` +
  `${data.target}. ` +
  "A straight path can be followed in a few large steps. Paths that would cross must bend, because two points of " +
  "one flow never meet. The address of this page with #t=0.5 at its end opens at that moment.";
$("chart-about").textContent = `W2 (Wasserstein distance) between ${whole(data.n_samples)} samples and as many fresh ` +
  "points of the target: lower is better. The dashed line and the band are the mean and the range of what real " +
  "samples score, so differences smaller than its width mean little. Point at the chart, or use the arrow keys, to " +
  "read values.";
$("table-about").textContent = "Straightness is 0 for straight paths of constant speed, which one step follows " +
  "exactly. Moving the source's points to the target's takes an energy (the integral of the squared speed) of at " +
  `least ${digits(data.energy)}, their squared W2; a flow with less falls short of the target. Seconds are those of ` +
  "one core, for training. The best W2, straightness and time are marked; a click on a heading sorts.";

// ---- how a method looks
const MARKS = [ // around (0, 0)
  "M4 0A4 4 0 1 1-4 0A4 4 0 1 1 4 0Z", // disc
  "M-4.5-3.5H4.5L0 4.5Z", // triangle, down
  "M-3.6-3.6H3.6V3.6H-3.6Z", // square
  "M0-5.5L1.4-1.9L5.2-1.7L2.2.7L3.2 4.4L0 2.3L-3.2 4.4L-2.2.7L-5.2-1.7L-1.4-1.9Z", // star
  "M-4.5 3.5H4.5L0-4.5Z", // triangle, up
  "M0-5.2L5.2 0L0 5.2L-5.2 0Z", // diamond
  "M-1.4-5H1.4V-1.4H5V1.4H1.4V5H-1.4V1.4H-5V-1.4H-1.4Z", // plus
  "M-4.6-2.9L-2.9-4.6L0-1.7L2.9-4.6L4.6-2.9L1.7 0L4.6 2.9L2.9 4.6L0 1.7L-2.9 4.6L-4.6 2.9L-1.7 0Z", // cross
  "M4.4 0A4.4 4.4 0 1 1-4.4 0A4.4 4.4 0 1 1 4.4 0ZM2.4 0A2.4 2.4 0 1 0-2.4 0A2.4 2.4 0 1 0 2.4 0Z", // ring
  "M-4.2-4.2H4.2V4.2H-4.2ZM-2.2-2.2V2.2H2.2V-2.2Z", // frame
  "M-4.5-4.5L4.5 0L-4.5 4.5Z", // triangle, right
  "M4.5-4.5L-4.5 0L4.5 4.5Z", // triangle, left
  "M-4.5-4.5H4.5L-4.5 4.5H4.5Z", // hourglass
];
function line(parent, k, d) {
  const dashes = methods[k].drawn ? {} : { "stroke-dasharray": "6 4" };
  shape(parent, "path", { d, stroke: `var(--c${methods[k].look})`, fill: "none", "stroke-width": 2, ...dashes });
}
function mark(parent, k, x, y) {
  const paint = { fill: `var(--c${methods[k].look})`, stroke: "var(--bg)", "stroke-width": 0.7 };
  shape(parent, "path", { d: MARKS[methods[k].look], transform: `translate(${x} ${y})`, ...paint });
}
function sample(parent, k) {
  const icon = shape(parent, "svg", { viewBox: "0 0 34 14", "aria-hidden": "true" });
  line(icon, k, "M1 7H33");
  mark(icon, k, 17, 7);
}
function label(parent, k) { // the line, the mark and the name of a method
  const span = element(parent, "span", undefined, { class: "name" });
  sample(span, k);
  span.append(methods[k].name);
}

// ---- trajectories
function decode(list) { // first frame, first step, changes of step
  const size = list.length / data.frames, out = new Float32Array(list);
  for (let i = size; i < 2 * size; i++) out[i] += out[i - size];
  for (let i = 2 * size; i < out.length; i++) out[i] += 2 * out[i - size] - out[i - 2 * size];
  return out;
}
const panels = methods.flatMap((method, index) => {
  if (!method.drawn) return [];
  const figure = element($("panels"), "figure");
  const about = `Points that ${method.name} moves from ${data.source} to ${data.target}`;
  const canvas = element(figure, "canvas", undefined, { role: "img", "aria-label": about });
  const caption = element(figure, "figcaption");
  label(caption, index);
  element(caption, "div", method.about, { class: "soft" });
  const few = data.nfe.indexOf(5) < 0 ? data.nfe.length - 1 : data.nfe.indexOf(5);
  const numbers = element(caption, "div");
  element(numbers, "span", `W2 ${digits(method.w2[few])} at ${data.nfe[few]} NFE`);
  if (method.straightness !== null) element(numbers, "span", `straightness ${digits(method.straightness)}`);
  return [{ index, figure, canvas, points: decode(method.paths), layer: document.createElement("canvas"), trail: -1 }];
});
const state = { t: 1, playing: false, last: 0, rest: 0 };

function backdrop(panel, size) { // the target's points, on a layer that stays from frame to frame
  panel.layer.width = panel.layer.height = size;
  const pen = panel.layer.getContext("2d"), scale = size / data.levels, dot = Math.max(1.2, 0.0048 * size);
  pen.fillStyle = getComputedStyle(root).getPropertyValue("--target");
  for (let i = 0; i < data.target_points.length; i += 2)
    pen.fillRect(data.target_points[i] * scale - dot / 2, size - data.target_points[i + 1] * scale - dot / 2, dot, dot);
  panel.trail = 0;
}
function trail(panel, frame, size, ratio) { // the paths up to a frame: on the layer, only what it does not have yet
  if (frame === panel.trail) return;
  const pen = panel.layer.getContext("2d"), scale = size / data.levels, { points } = panel;
  const row = points.length / data.frames;
  pen.strokeStyle = colour(panel.index);
  pen.globalAlpha = 0.3;
  pen.lineWidth = 0.8 * ratio;
  for (let i = 0; i < row; i += 2) {
    pen.beginPath();
    for (let at = panel.trail * row + i; at <= frame * row + i; at += row)
      pen.lineTo(points[at] * scale, size - points[at + 1] * scale);
    pen.stroke();
  }
  panel.trail = frame;
}
function draw(panel) {
  const ratio = window.devicePixelRatio || 1, size = Math.round(panel.canvas.clientWidth * ratio);
  if (!size) return;
  const place = state.t * (data.frames - 1), frame = Math.min(Math.floor(place), data.frames - 2), part = place - frame;
  if (panel.canvas.width !== size) { panel.canvas.width = panel.canvas.height = size; panel.trail = -1; }
  if (panel.trail < 0 || panel.trail > frame) backdrop(panel, size);
  if ($("paths").checked) trail(panel, frame, size, ratio);
  const pen = panel.canvas.getContext("2d"), scale = size / data.levels, { points } = panel;
  pen.clearRect(0, 0, size, size);
  pen.drawImage(panel.layer, 0, 0);
  const row = points.length / data.frames, start = frame * row, radius = Math.max(1.3 * ratio, 0.0062 * size);
  const dots = new Path2D(), ends = new Path2D();
  for (let i = start; i < start + row; i += 2) {
    const x = (points[i] + part * (points[i + row] - points[i])) * scale;
    const y = size - (points[i + 1] + part * (points[i + row + 1] - points[i + 1])) * scale;
    dots.moveTo(x + radius, y);
    dots.arc(x, y, radius, 0, 7);
    ends.moveTo(points[i] * scale, size - points[i + 1] * scale);
    ends.lineTo(x, y);
  }
  pen.strokeStyle = pen.fillStyle = colour(panel.index);
  pen.lineWidth = 0.8 * ratio;
  pen.globalAlpha = 0.3;
  if ($("paths").checked) pen.stroke(ends);
  pen.globalAlpha = 1;
  pen.fill(dots);
  panel.figure.dataset.time = state.t.toFixed(2);
}
function show() {
  $("time").value = state.t;
  $("now").textContent = "t = " + state.t.toFixed(2);
  panels.forEach(draw);
}
function redraw() { panels.forEach(panel => { panel.trail = -1; }); show(); }
function tick(now) {
  if (!state.playing) return;
  const passed = Math.min(0.1, Math.max(0, now - state.last) / 1000) * Number($("speed").value);
  state.last = now;
  if (state.t < 1) { state.t = Math.min(1, state.t + passed / 4); state.rest = 0; show(); }
  else if ((state.rest += passed) > 1.5) state.t = 0; // a rest at the end, then again
  requestAnimationFrame(tick);
}
function play(on) {
  if (on && !state.playing) {
    if (state.t >= 1) state.t = 0;
    state.last = performance.now();
    requestAnimationFrame(tick);
  }
  state.playing = on;
  $("play").textContent = on ? "Pause" : "Play";
}
function fromAddress() { // #t=0.5 or #t=0.5&paths=0: a moment to share; false where there is none
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (wanted.has("paths")) $("paths").checked = wanted.get("paths") !== "0";
  const t = wanted.has("t") ? Number(wanted.get("t")) : NaN;
  if (Number.isNaN(t)) return false;
  play(false);
  state.t = Math.min(1, Math.max(0, t));
  return true;
}
function toAddress() {
  const moment = `#t=${state.t.toFixed(2)}` + ($("paths").checked ? "" : "&paths=0");
  try { history.replaceState(null, "", moment); } catch (e) { /* a viewer without addresses */ }
}
$("play").addEventListener("click", () => play(!state.playing));
$("time").addEventListener("input", () => { play(false); state.t = Number($("time").value); show(); });
$("time").addEventListener("change", toAddress);
$("paths").addEventListener("change", () => { redraw(); if (!state.playing) toAddress(); });
window.addEventListener("hashchange", () => { fromAddress(); redraw(); });

// ---- W2 against NFE
const chart = { focus: -1, chosen: -1, at: -1, lines: [], x: null };
const LOW = Math.min(data.floor[1], ...methods.flatMap(m => m.w2)) / 1.1;
const HIGH = Math.max(data.floor[2], ...methods.flatMap(m => m.w2)) * 1.12;
function words(x, y, text, anchor = "middle") {
  shape(svg, "text", { x, y, "text-anchor": anchor }).textContent = text;
}

function axes(width, height, edge, x, y) {
  let last = Infinity;
  for (let e = -4; e < 5; e++) for (const m of [1, 1.5, 2, 3, 5, 7]) {
    const v = m * 10 ** e;
    if (v < LOW || v > HIGH) continue;
    shape(svg, "path", { d: `M${edge.left} ${y(v)}H${width - edge.right}`, stroke: "var(--grid)" });
    if (last - y(v) < 17 || y(v) > height - edge.bottom - 4) continue;
    words(edge.left - 8, y(v) + 4.5, String(+v.toPrecision(2)), "end");
    last = y(v);
  }
  let end = -Infinity;
  const always = [1, 2, 5, 10, 20, 50, 100];
  data.nfe.forEach((n, i) => {
    shape(svg, "path", { d: `M${x(n)} ${edge.top}V${height - edge.bottom}`, stroke: "var(--grid)" });
    const next = data.nfe[i + 1] === undefined ? Infinity : x(data.nfe[i + 1]);
    if (!always.includes(n) && (x(n) - end < 19 || next - x(n) < 19)) return;
    words(x(n), height - edge.bottom + 19, n);
    end = x(n);
  });
  words(edge.left - 36, 14, "W2", "start");
  words((edge.left + width - edge.right) / 2, height - 5, "network evaluations of a sample (NFE)");
}
function floor(width, edge, x, y) {
  const [mean, low, high] = data.floor, right = width - edge.right;
  const band = { x: edge.left, width: right - edge.left, y: y(high), height: Math.max(1, y(low) - y(high)) };
  shape(svg, "rect", { ...band, fill: "var(--soft)", opacity: 0.16 });
  shape(svg, "path", { d: `M${edge.left} ${y(mean)}H${right}`, stroke: "var(--text)", "stroke-dasharray": "5 4" });
  words(edge.left + 12, y(low) + 15, "two real samples", "start");
}
function plot() {
  const width = $("plot").clientWidth, height = Math.round(Math.min(440, Math.max(300, width * 0.55)));
  if (!width) return;
  const edge = { left: 44, right: 14, top: 24, bottom: 46 };
  const span = (v, a, b, from, to) => from + (to - from) * Math.log(v / a) / Math.log(b / a);
  const x = n => span(n, data.nfe[0], data.nfe[data.nfe.length - 1], edge.left + 12, width - edge.right - 12);
  const y = v => span(v, LOW, HIGH, height - edge.bottom - 16, edge.top);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  axes(width, height, edge, x, y);
  floor(width, edge, x, y);
  chart.cursor = shape(svg, "path", { stroke: "var(--soft)", "stroke-width": 1 });
  chart.lines = methods.map((method, k) => {
    const group = shape(svg, "g", {}), places = method.w2.map((v, i) => [x(data.nfe[i]), y(v)]);
    line(group, k, "M" + places.map(place => place.join(" ")).join("L"));
    for (const place of places) mark(group, k, ...place);
    return group;
  });
  Object.assign(chart, { x, width, top: edge.top, bottom: height - edge.bottom });
  emphasise();
  tell(chart.at);
}
function emphasise() {
  const k = chart.focus >= 0 ? chart.focus : chart.chosen;
  chart.lines.forEach((line, i) => line.setAttribute("opacity", k < 0 || i === k ? 1 : 0.15));
  if (k >= 0) svg.appendChild(chart.lines[k]);
}
function tell(at) { // the values at one NFE, best first
  chart.at = at;
  $("tip").hidden = at < 0;
  if (at < 0) { chart.cursor.removeAttribute("d"); return; }
  const place = chart.x(data.nfe[at]);
  chart.cursor.setAttribute("d", `M${place} ${chart.top}V${chart.bottom}`);
  $("tip").replaceChildren();
  element($("tip"), "b", `${data.nfe[at]} evaluation${data.nfe[at] > 1 ? "s" : ""}`);
  for (const [method, k] of methods.map((m, k) => [m, k]).sort(([a], [b]) => a.w2[at] - b.w2[at])) {
    const row = element($("tip"), "div");
    label(row, k);
    element(row, "span", method.w2[at].toFixed(3));
  }
  const wide = $("tip").offsetWidth, right = place + 14 + wide < chart.width;
  $("tip").style.left = (right ? place + 14 : Math.max(0, place - 14 - wide)) + "px";
  $("tip").style.top = chart.top + 4 + "px";
}
function nearest(event) {
  const box = svg.getBoundingClientRect(), at = event.clientX - box.left;
  const gaps = data.nfe.map(n => Math.abs(chart.x(n) - at));
  tell(gaps.indexOf(Math.min(...gaps)));
}
svg.addEventListener("pointermove", nearest);
svg.addEventListener("pointerdown", nearest);
svg.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") tell(-1); });
svg.addEventListener("blur", () => tell(-1));
svg.addEventListener("keydown", event => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (event.key === "Escape") tell(-1);
  if (!step) return;
  event.preventDefault();
  tell(Math.min(data.nfe.length - 1, Math.max(0, chart.at + step)));
});
methods.forEach((method, k) => {
  const button = element(element($("legend"), "li"), "button", undefined, { type: "button", "aria-pressed": "false" });
  label(button, k);
  const hover = on => () => { chart.focus = on ? k : -1; emphasise(); };
  for (const event of ["pointerenter", "focus"]) button.addEventListener(event, hover(true));
  for (const event of ["pointerleave", "blur"]) button.addEventListener(event, hover(false));
  button.addEventListener("click", () => {
    chart.chosen = chart.chosen === k ? -1 : k;
    [...$("legend").children].forEach((li, i) => li.firstChild.setAttribute("aria-pressed", i === chart.chosen));
    emphasise();
  });
});

// ---- the table
const columns = [
  { title: "method", of: m => m.name, plain: true },
  ...data.nfe.map((n, i) => ({ title: String(n), of: m => m.w2[i], text: m => digits(m.w2[i], 3) })),
  { title: "straightness", of: m => m.straightness, text: m => digits(m.straightness, 3) },
  { title: "energy", of: m => m.energy, text: m => digits(m.energy, 2), plain: true },
  { title: "seconds", of: m => m.seconds, text: m => digits(m.seconds, 1) },
  { title: "parameters", of: m => m.parameters, text: m => whole(m.parameters), plain: true },
];
const smallest = of => Math.min(...methods.map(of).filter(v => v !== null));
const best = columns.map(column => column.plain ? undefined : smallest(column.of));
let order = { column: -1, sign: 1 };
function head() {
  const thead = $("table").tHead, groups = element(thead, "tr"), row = element(thead, "tr");
  element(groups, "td");
  element(groups, "th", "W2 at this NFE", { class: "group", colspan: data.nfe.length, scope: "colgroup" });
  element(groups, "td", "", { colspan: columns.length - data.nfe.length - 1 });
  columns.forEach((column, c) => {
    const button = element(element(row, "th", undefined, { scope: "col" }), "button", column.title, { type: "button" });
    if (c && c <= data.nfe.length) button.setAttribute("aria-label", `W2 at ${column.title} evaluations`);
    button.addEventListener("click", () => {
      order = { column: c, sign: order.column === c ? -order.sign : 1 };
      body();
    });
  });
  const foot = element($("table").tFoot, "tr"), [mean, low, high] = data.floor.map(v => digits(v, 3));
  element(foot, "td", "two real samples");
  element(foot, "td", `${mean} (${low} to ${high})`, { colspan: data.nfe.length, class: "group" });
  element(foot, "td", "", { colspan: columns.length - data.nfe.length - 1 });
}
function body() {
  const key = order.column < 0 ? null : columns[order.column].of, rows = methods.map((m, k) => [m, k]);
  if (key) rows.sort(([a], [b]) => {
    const p = key(a), q = key(b);
    if (p === null || q === null) return (p === null) - (q === null); // without a number: always last
    return order.sign * (typeof p === "string" ? p.localeCompare(q) : p - q);
  });
  $("table").tHead.rows[1].querySelectorAll("th").forEach((th, c) => {
    if (c !== order.column) th.removeAttribute("aria-sort");
    else th.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
  });
  const tbody = $("table").tBodies[0];
  tbody.replaceChildren();
  for (const [method, k] of rows) {
    const row = element(tbody, "tr");
    columns.forEach((column, c) => {
      if (c) element(row, "td", column.text(method)).classList.toggle("best", column.of(method) === best[c]);
      else label(element(row, "th", undefined, { scope: "row" }), k);
    });
  }
}

// ---- begin
head();
body();
new ResizeObserver(plot).observe($("plot"));
new ResizeObserver(show).observe($("panels"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
plot();
const asked = fromAddress();
show();
if (!asked && !matchMedia("(prefers-reduced-motion: reduce)").matches) play(true);
root.dataset.state = "ready";
