"use strict";
// Shows what page.py measured nothing of and wrote into #facts. Names are strangers' text: textContent, never markup.
// One state, one draw(): every control changes the state and draws. Both sides share one geometry, so they cannot lose sync.
// A zoom of 1 is one picture pixel per CSS pixel, as any web page shows a picture; x, y is the picture's point mid-stage.

const MAX_ZOOM = 32;
const ZOOMS = [1 / 16, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1, 2, 3, 4, 6, 8, 12, 16, 24, MAX_ZOOM];
const HOLD_MS = 350; // a key held longer is not a tap
const BLINK_MS = 600;
const LONG_WHEEL = 50; // a wheel's notch; touchpads send less
const RAMP = [ // black is no difference; then the colours of matplotlib's "inferno"
  [0, 0, 0], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164],
];
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8; // --c0 … --c7 of the style
const MEASURES = { psnr_db: "PSNR", ms_ssim_db: "MS-SSIM" };
const THIN = "\u202f";

const state = { picture: 0, left: 0, right: 0, wipe: 0.5, zoom: 1, fitted: true, x: 0, y: 0, view: "wipe", difference: false,
  gain: 3, measure: "psnr_db" };
const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
let facts, stage, handle, layers, codecNames, blinking, wheelZoom;

const darkness = matchMedia("(prefers-color-scheme: dark)");
function theme(name) {
  document.documentElement.dataset.theme = name;
  if ($("theme")) $("theme").textContent = name === "dark" ? "Light" : "Dark";
}
theme(darkness.matches ? "dark" : "light"); // before anything is drawn
const followSystem = (event) => theme(event.matches ? "dark" : "light");
darkness.addEventListener("change", followSystem);
function toggleTheme() {
  darkness.removeEventListener("change", followSystem);
  theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
}

function element(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// ---- figures ----

const grouped = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, THIN);
const psnr = (it) => it.psnr_db ?? Number.MAX_VALUE; // null: lossless
const decibel = (value, it) => (it.lossless ? "lossless" : value === null ? "–" : value.toFixed(2));
function seconds(s) {
  if (s === null) return "–";
  return s < 0.9995 ? `${s < 0.00995 ? (1000 * s).toFixed(1) : Math.round(1000 * s)}${THIN}ms` : `${s.toPrecision(3)}${THIN}s`;
}
function deviation(bytes, asked) {
  const percent = (100 * (bytes / asked - 1)).toFixed(1);
  return (percent.startsWith("-") ? "−" + percent.slice(1) : "+" + percent).replace(/^[+−]0\.0$/, "±0.0") + THIN + "%";
}
const percent = (zoom) => `${Math.round(100 * zoom)}${THIN}%`;

const picture = () => facts.pictures[state.picture];
const codec = (index) => (index ? picture().codecs[index - 1] : null); // version 0 is the original
const nameOf = (index) => (index ? codec(index).name : "original");
const colour = (name) => `var(--c${codecNames.indexOf(name) % COLOURS})`;

// ---- pictures ----

function showPicture(index) {
  const kept = layers ? [nameOf(state.left), nameOf(state.right)] : [];
  state.picture = index;
  const names = ["original", ...picture().codecs.map((c) => c.name)];
  const [left, right] = strongest();
  state.left = kept.length && names.includes(kept[0]) ? names.indexOf(kept[0]) : left;
  state.right = kept.length && names.includes(kept[1]) ? names.indexOf(kept[1]) : right;
  layers = names.map((name, i) => {
    const source = i ? codec(i).pixels : picture().original;
    // decoding=sync: a side that appears for the first time in a blink must not be blank.
    const image = element("img", { src: source, alt: name, decoding: "sync", draggable: "false" });
    return { box: element("div", { class: "layer" }, image), image, canvas: null, away: null, drawn: null };
  });
  $("layers").replaceChildren(...layers.map((layer) => layer.box));
  const size = `${picture().width} × ${picture().height}`;
  const asked = `${grouped(picture().asked_bytes)} bytes (${picture().asked_bpp.toFixed(3)} bpp) asked of every codec`;
  $("subtitle").replaceChildren(element("strong", {}, picture().name), ` · ${size} · ${asked}`);
  for (const [i, button] of [...$("pictures").children].entries()) {
    button.setAttribute("aria-current", i === index);
    if (i === index && index + kept.length) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  for (const id of ["left", "right"]) $(id).replaceChildren(...names.map((name, i) => element("option", { value: i }, name)));
  stage.style.setProperty("--aspect", picture().width / picture().height);
  fillTable();
  fit();
  drawPlot();
}

// What convinces someone who judges codecs: ours against the best of the others, not against the weakest.
function strongest() {
  const all = picture().codecs.map((c, i) => ({ ...c, index: i + 1 }));
  const ours = all.find((c) => c.is_ours);
  const [peer] = all.filter((c) => !c.is_ours).sort((a, b) => psnr(b) - psnr(a) || a.index - b.index);
  return ours ? [ours.index, peer?.index ?? 0] : [0, peer?.index ?? 0];
}

function setSide(side, index) {
  if (index >= layers.length) return;
  state[side] = index;
  say(`${side === "left" ? "Left" : "Right"}: ${nameOf(index)}`);
  draw();
}

function swap() {
  [state.left, state.right] = [state.right, state.left];
  say(`Left: ${nameOf(state.left)}, right: ${nameOf(state.right)}`);
  draw();
}

const say = (text) => ($("live").textContent = text);

// ---- geometry ----

const stageSize = () => ({ w: stage.clientWidth, h: stage.clientHeight });

function geometry() {
  const { w, h } = stageSize();
  const [width, height] = [picture().width * state.zoom, picture().height * state.zoom];
  // On whole screen pixels, wherever the stage lies: between them crisp pixels would be smeared or uneven.
  const { left, top } = stage.getBoundingClientRect();
  const onScreen = (value, start) => Math.round((value + start) * devicePixelRatio) / devicePixelRatio - start;
  const placed = (box, size, middle) => (size <= box ? (box - size) / 2 : clamp(box / 2 - middle * state.zoom, box - size, 0));
  const [x, y] = [onScreen(placed(w, width, state.x), left), onScreen(placed(h, height, state.y), top + scrollY)];
  const movable = width > w + 1 || height > h + 1;
  return { x, y, width, height, w, h, from: Math.max(x, 0), to: Math.min(x + width, w), movable };
}

function fitZoom() {
  const { w, h } = stageSize();
  const zoom = Math.min(w / picture().width, h / picture().height);
  return zoom > 1 ? Math.min(Math.floor(zoom), MAX_ZOOM) : zoom || 1; // whole: every pixel as large as its neighbour
}

const leastZoom = () => Math.min(fitZoom(), ZOOMS[0]);

function centre(x, y) {
  // Kept where the stage stays full, so that panning back answers at once.
  const { w, h } = stageSize();
  const keep = (value, half, size) => (size <= 2 * half ? size / 2 : clamp(value, half, size - half));
  state.x = keep(x, w / 2 / state.zoom, picture().width);
  state.y = keep(y, h / 2 / state.zoom, picture().height);
}

function fit() {
  state.zoom = fitZoom();
  state.fitted = true;
  wheelZoom = null;
  centre(picture().width / 2, picture().height / 2);
  draw();
}

function zoomTo(zoom, px = stage.clientWidth / 2, py = stage.clientHeight / 2) {
  const before = geometry();
  const [u, v] = [(px - before.x) / state.zoom, (py - before.y) / state.zoom];
  state.zoom = clamp(zoom, leastZoom(), MAX_ZOOM);
  state.fitted = false;
  centre(u + (before.w / 2 - px) / state.zoom, v + (before.h / 2 - py) / state.zoom);
  draw();
}

function zoomStep(direction, px, py) {
  wheelZoom = null;
  const steps = [...ZOOMS, fitZoom()].sort((a, b) => a - b);
  const next = direction > 0 ? steps.find((z) => z > state.zoom * 1.001) : steps.reverse().find((z) => z < state.zoom / 1.001);
  if (next) zoomTo(next, px, py);
  say(`Zoom ${percent(state.zoom)}`);
}

// Above 1 every picture pixel becomes the same whole number of screen pixels.
const evenZoom = (zoom) => (zoom <= 1 ? zoom : Math.max(1, Math.round(zoom * devicePixelRatio) / devicePixelRatio));

function panBy(dx, dy) {
  centre(state.x - dx / state.zoom, state.y - dy / state.zoom);
  draw();
}

function wipeTo(fraction) {
  state.wipe = clamp(fraction, 0, 1);
  stopBlink(false);
  draw();
}

// ---- drawing ----

function draw() {
  const g = geometry();
  const cut = g.from + state.wipe * (g.to - g.from);
  const shown = { left: [0, state.view === "wipe" ? cut : state.view === "left" ? g.w : 0] };
  shown.right = [shown.left[1], g.w];
  layers.forEach((layer, i) => {
    const sides = ["left", "right"].filter((side) => state[side] === i);
    const [from, to] = sides.length === 2 ? [0, g.w] : sides.length ? shown[sides[0]] : [0, 0];
    layer.box.dataset.sides = sides.join(" ");
    layer.box.style.visibility = to > from ? "visible" : "hidden";
    layer.box.style.clipPath = `inset(0 ${g.w - to}px 0 ${from}px)`;
    if (state.difference && i && sides.length) drawDifference(i);
    for (const sheet of [layer.image, layer.canvas]) {
      if (!sheet) continue;
      Object.assign(sheet.style, { left: `${g.x}px`, top: `${g.y}px`, width: `${g.width}px`, height: `${g.height}px` });
    }
    if (layer.canvas) layer.canvas.hidden = !state.difference;
  });
  stage.classList.toggle("crisp", state.zoom > 1);
  stage.classList.toggle("movable", g.movable);
  stage.dataset.view = state.view;
  handle.hidden = state.view !== "wipe";
  handle.style.left = `${cut}px`;
  drawControls();
}

function drawControls() {
  const share = Math.round(100 * state.wipe);
  handle.setAttribute("aria-valuenow", share);
  handle.setAttribute("aria-valuetext", `${share} % ${nameOf(state.left)}, ${100 - share} % ${nameOf(state.right)}`);
  for (const side of ["left", "right"]) {
    const it = codec(state[side]);
    $(side).value = state[side];
    $(`${side}-figures`).textContent = it
      ? `${grouped(it.bytes)} bytes · ${it.lossless ? "lossless" : decibel(it.psnr_db, it) + " dB"}`
      : "uncompressed";
    document.querySelector(`.side[data-side=${side}]`).classList.toggle("hushed", !["wipe", side].includes(state.view));
  }
  $("zoom").textContent = percent(state.zoom);
  $("zoom").title = `1 picture pixel = ${+(state.zoom * devicePixelRatio).toFixed(2)} screen pixels`;
  $("fit").setAttribute("aria-pressed", state.fitted);
  $("actual").setAttribute("aria-pressed", state.zoom === 1 && !state.fitted);
  $("blink").setAttribute("aria-pressed", Boolean(blinking));
  $("badge").hidden = state.view === "wipe";
  $("badge").textContent = state.view === "wipe" ? "" : nameOf(state[state.view]);
  $("difference").setAttribute("aria-pressed", state.difference);
  $("legend").hidden = !state.difference;
  $("gain").value = state.gain;
  $("gain").setAttribute("aria-valuetext", `times ${2 ** state.gain}`);
  $("gain-value").textContent = `×${2 ** state.gain}`;
  $("ramp-end").textContent = state.gain ? `${Math.round(255 / 2 ** state.gain)} or more` : "255";
  markSides();
}

// ---- blink ----

function startBlink() {
  clearInterval(blinking);
  const other = () => {
    state.view = state.view === "right" ? "left" : "right";
    draw();
  };
  blinking = setInterval(other, BLINK_MS);
  other();
  say(`Blinking between ${nameOf(state.left)} and ${nameOf(state.right)}`);
}

function stopBlink(redraw = true) {
  clearInterval(blinking);
  blinking = null;
  state.view = "wipe";
  if (redraw) draw();
}

const toggleBlink = () => (blinking ? stopBlink() : startBlink());

// ---- difference ----

// 256 colours, one 32-bit word each, in the byte order of this machine.
const ramp = new Uint32Array(Uint8Array.from(Array.from({ length: 256 }, (_, level) => {
  const place = (level / 255) * (RAMP.length - 1);
  const i = Math.min(Math.floor(place), RAMP.length - 2);
  return [...RAMP[i].map((low, c) => Math.round(low + (place - i) * (RAMP[i + 1][c] - low))), 255];
}).flat()).buffer);

async function pixelsOf(image) {
  await image.decode();
  const canvas = element("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

async function drawDifference(index) {
  const [layer, original, gain] = [layers[index], layers[0], 2 ** state.gain];
  if (layer.drawn === gain) return;
  layer.drawn = gain;
  try {
    original.pixels ??= pixelsOf(original.image);
    layer.away ??= Promise.all([original.pixels, pixelsOf(layer.image)]).then(([a, b]) => awayFrom(a, b));
    const away = await layer.away;
    if (layer.drawn === gain) paint(layer, away, gain);
  } catch (error) {
    Object.assign(layer, { drawn: null, away: null });
    state.difference = false;
    say("The picture is too large for a difference in this browser");
    draw();
  }
}

function awayFrom(a, b) {
  const away = new Uint8Array(a.length / 4);
  for (let i = 0, j = 0; i < away.length; i++, j += 4) {
    away[i] = Math.max(Math.abs(a[j] - b[j]), Math.abs(a[j + 1] - b[j + 1]), Math.abs(a[j + 2] - b[j + 2]));
  }
  return away;
}

function paint(layer, away, gain) {
  const first = !layer.canvas;
  layer.canvas ??= element("canvas", { width: layer.image.naturalWidth, height: layer.image.naturalHeight });
  const context = layer.canvas.getContext("2d");
  const heat = context.createImageData(layer.canvas.width, layer.canvas.height);
  const words = new Uint32Array(heat.data.buffer);
  for (let i = 0; i < away.length; i++) words[i] = ramp[Math.min(255, away[i] * gain)];
  context.putImageData(heat, 0, 0);
  layer.canvas.dataset.gain = gain;
  if (first) layer.box.append(layer.canvas);
  draw();
}

function setGain(gain) {
  state.gain = clamp(gain, 0, 6);
  draw();
}

function toggleDifference() {
  state.difference = !state.difference;
  say(state.difference ? "Difference to the original" : "Pictures");
  draw();
}

// ---- table ----

const COLUMNS = [ // label, text of a codec, the figure that is best when largest
  ["Bytes", (c) => grouped(c.bytes)],
  ["of asked", (c) => deviation(c.bytes, picture().asked_bytes)],
  ["bpp", (c) => c.bpp.toFixed(3)],
  ["PSNR dB", (c) => decibel(c.psnr_db, c), psnr],
  ["MS-SSIM dB", (c) => decibel(c.ms_ssim_db, c), (c) => c.ms_ssim_db ?? (c.lossless ? Number.MAX_VALUE : -Infinity)],
  ["Encode", (c) => seconds(c.encode_s), (c) => -(c.encode_s ?? Infinity)],
  ["Decode", (c) => seconds(c.decode_s), (c) => -(c.decode_s ?? Infinity)],
];

function fillTable() {
  $("codecs").tBodies[0].replaceChildren(...layers.map((_, index) => tableRow(index)));
}

function tableRow(index) {
  const it = codec(index);
  const chooser = element("td", { role: "cell", class: "choose" });
  for (const side of ["left", "right"]) {
    const button = element("button", { type: "button", "data-side": side, "aria-label": `${nameOf(index)} on the ${side}` },
      side === "left" ? "L" : "R");
    button.addEventListener("click", (event) => (event.stopPropagation(), setSide(side, index)));
    chooser.append(button);
  }
  const head = element("th", { role: "rowheader", scope: "row" }, element("span", { class: "name" }, nameOf(index)));
  if (index < 10) head.prepend(element("kbd", { "aria-hidden": "true" }, String(index)));
  if (it) head.querySelector(".name").before(swatch(it));
  if (it && it.setting) head.append(element("small", {}, it.setting));
  const cells = it ? COLUMNS.map((column) => cell(it, ...column)) : rawCells();
  const row = element("tr", { role: "row", "data-version": index, class: it?.is_ours ? "ours" : "" }, chooser, head, ...cells);
  row.addEventListener("click", () => setSide("right", index));
  return row;
}

function rawCells() {
  const raw = { Bytes: grouped(3 * picture().width * picture().height), bpp: "24" };
  return COLUMNS.map(([label]) => element("td", { role: "cell", class: "raw" }, raw[label] ?? ""));
}

function swatch(it) {
  const mark = element("i", { class: "swatch", "aria-hidden": "true" });
  mark.style.background = colour(it.name);
  return mark;
}

function cell(it, label, text, figure) {
  const made = element("td", { role: "cell", "data-label": label }, text(it));
  const all = picture().codecs;
  const best = figure && all.reduce((a, b) => (figure(b) > figure(a) ? b : a));
  // Equal as printed is equal; bytes are nobody's merit: they were asked for.
  if (best && all.length > 1 && figure(best) > -Infinity && text(best) === text(it)) made.classList.add("best");
  if (label === "of asked" && it.bytes > 1.01 * picture().asked_bytes) made.classList.add("over");
  return made;
}

function markSides() {
  for (const row of $("codecs").tBodies[0].rows) {
    for (const button of row.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", state[button.dataset.side] === Number(row.dataset.version));
    }
    row.classList.toggle("chosen", [state.left, state.right].includes(Number(row.dataset.version)));
  }
}

// ---- rate-distortion plot ----

const TOP = 12, BOTTOM = 40, LEFT = 40, GAP = 13;

function setMeasure(measure) {
  state.measure = measure;
  drawPlot();
}

// Bits per pixel are drawn as logarithms: "20 % fewer bits" is the same distance at every rate.
function drawPlot() {
  const { codecs, asked_bpp: asked } = picture();
  const hasMsSsim = codecs.some((c) => c.ms_ssim_db !== null || c.curve.some((p) => p.ms_ssim_db !== null));
  const measure = hasMsSsim ? state.measure : "psnr_db";
  for (const button of document.querySelectorAll("[data-measure]")) {
    button.setAttribute("aria-pressed", button.dataset.measure === measure);
    button.disabled = button.dataset.measure === "ms_ssim_db" && !hasMsSsim;
  }
  const near = (p) => p[measure] !== null && p.bpp > asked / 12 && p.bpp < asked * 12;
  const lines = codecs.map((it) => ({ it, points: it.curve.filter(near).sort((a, b) => a.bpp - b.bpp) }));
  const all = [...lines.flatMap((line) => line.points), ...codecs.filter((it) => it[measure] !== null)];
  const scale = plotScale(codecs, all, asked, measure);
  const label = `${MEASURES[measure]} over bits per pixel of ${codecs.map((it) => it.name).join(", ")}`;
  const svg = element("svg:svg", { role: "img", width: scale.width, height: scale.height, "aria-label": label });
  const oursLast = (a, b) => a.it.is_ours - b.it.is_ours; // on top
  const marks = codecs.map((it, i) => ({ it, index: i + 1 })).sort(oursLast);
  svg.append(...axes(scale, measure, asked), ...[...lines].sort(oursLast).map((line) => curve(line, scale, measure)),
    ...curveNames(lines, scale, measure), ...marks.map(({ it, index }) => mark(it, index, scale, measure)));
  $("plot").replaceChildren(svg);
}

function plotScale(codecs, points, asked, measure) {
  const width = Math.max(280, $("plot").clientWidth), height = Math.round(clamp(width * 0.8, 260, 380));
  const right = width - clamp(14 + 6.6 * Math.max(0, ...codecs.map((it) => it.name.length)), 40, 120);
  const rates = [...points.map((p) => p.bpp), ...codecs.map((it) => it.bpp), asked];
  const values = points.map((p) => p[measure]);
  const span = height - BOTTOM - TOP;
  const [low, high] = [Math.log(Math.min(...rates) / 1.05), Math.log(Math.max(...rates) * 1.05)];
  const [least, most] = values.length ? [Math.min(...values), Math.max(...values)] : [30, 40];
  const room = 0.05 * (most - least) + 0.2;
  return { width, height, right, least: least - room, most: most + room,
    x: (rate) => LEFT + ((Math.log(rate) - low) / (high - low)) * (right - LEFT),
    y: (value) => (value === null ? TOP : TOP + ((most + room - value) / (most - least + 2 * room)) * span) };
}

function axes(scale, measure, asked) {
  const text = (x, y, anchor, content, name = "") => element("svg:text", { x, y, "text-anchor": anchor, class: name }, content);
  const line = (x1, y1, x2, y2, name) => element("svg:line", { x1, y1, x2, y2, class: name });
  const floor = scale.height - BOTTOM;
  const step = [0.5, 1, 2, 5, 10, 20].find((s) => (scale.most - scale.least) / s <= 8) ?? 50;
  const made = [];
  for (let value = Math.ceil(scale.least / step) * step; value <= scale.most; value += step) {
    const y = scale.y(value);
    made.push(line(LEFT, y, scale.right, y, "grid"), text(LEFT - 7, y + 4, "end", String(+value.toFixed(1))));
  }
  for (let power = -4; power < 3; power++) {
    for (const digit of [1, 2, 5]) {
      const rate = digit * 10 ** power, x = scale.x(rate);
      if (x < LEFT || x > scale.right) continue;
      made.push(line(x, TOP, x, floor, "grid"), text(x, floor + 16, "middle", String(+rate.toPrecision(1))));
    }
  }
  made.push(line(scale.x(asked), TOP, scale.x(asked), floor, "asked"));
  made.push(text(scale.x(asked) + 5, floor - 6, "start", `${asked.toFixed(3)} bpp`, "asked-name"));
  made.push(text(scale.right, scale.height - 6, "end", "bits per pixel, logarithmic"));
  made.push(text(LEFT, scale.height - 6, "start", `${MEASURES[measure]} in dB`));
  return made;
}

function curve({ it, points }, scale, measure) {
  const path = points.map((p, i) => `${i ? "L" : "M"}${scale.x(p.bpp).toFixed(1)} ${scale.y(p[measure]).toFixed(1)}`).join("");
  return painted(element("svg:path", { d: path, class: it.is_ours ? "curve ours" : "curve" }), "stroke", it);
}

function mark(it, index, scale, measure) {
  const label = `${it.name}: ${it.bpp.toFixed(3)} bpp, ${decibel(it[measure], it)}${it[measure] === null ? "" : " dB"}`;
  const place = { cx: scale.x(it.bpp), cy: scale.y(it[measure]), r: it.is_ours ? 5.5 : 4.5 };
  const made = element("svg:circle", { ...place, class: "mark" }, element("svg:title", {}, label));
  made.addEventListener("click", () => setSide("right", index));
  return painted(made, "fill", it);
}

function curveNames(lines, scale, measure) {
  const ends = lines.map(({ it, points }) => {
    const end = points.at(-1) ?? it;
    return { it, x: scale.x(end.bpp) + 9, y: scale.y(end[measure]) + 4 };
  });
  ends.sort((a, b) => a.y - b.y);
  // Down to part them, then up again from the floor.
  ends.forEach((end, i) => i && (end.y = Math.max(end.y, ends[i - 1].y + GAP)));
  let floor = scale.height - BOTTOM + GAP;
  for (const end of [...ends].reverse()) floor = end.y = Math.min(end.y, floor - GAP);
  return ends.map(({ it, x, y }) => {
    const name = it.name.length > 17 ? it.name.slice(0, 16) + "…" : it.name;
    return painted(element("svg:text", { x, y, class: it.is_ours ? "curve-name ours" : "curve-name" }, name), "fill", it);
  });
}

function painted(made, property, it) {
  made.style[property] = colour(it.name);
  return made;
}

// ---- pointers ----

const pointers = new Map();
let gesture = null; // "wipe", "pan" or "pinch"
function at(event) {
  const { left, top } = stage.getBoundingClientRect();
  return { x: event.clientX - left, y: event.clientY - top };
}

function wipeToPointer(x) {
  const g = geometry();
  wipeTo((x - g.from) / (g.to - g.from || 1));
}

function spread() {
  const [a, b] = [...pointers.values()];
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, distance: Math.hypot(a.x - b.x, a.y - b.y) };
}

function pointerDown(event) {
  if (event.button || pointers.size > 1) return;
  stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, at(event));
  gesture = pointers.size === 2 ? "pinch" : handle.contains(event.target) || !geometry().movable ? "wipe" : "pan";
  if (gesture === "pinch") wheelZoom = state.zoom;
  else if (gesture === "wipe") wipeToPointer(at(event).x);
  stage.classList.toggle("panning", gesture === "pan");
}

function pointerMove(event) {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const now = at(event);
  const old = gesture === "pinch" && pointers.size === 2 ? spread() : null;
  pointers.set(event.pointerId, now);
  if (old) {
    const fresh = spread();
    panBy(fresh.x - old.x, fresh.y - old.y);
    wheelZoom *= fresh.distance / (old.distance || 1);
    zoomTo(evenZoom(wheelZoom), fresh.x, fresh.y);
  } else if (gesture === "pan") panBy(now.x - before.x, now.y - before.y);
  else if (gesture === "wipe") wipeToPointer(now.x);
}

function pointerUp(event) {
  pointers.delete(event.pointerId);
  gesture = null; // a finger left of a pinch does nothing
  stage.classList.remove("panning");
}

function wheel(event) {
  event.preventDefault();
  const { x, y } = at(event);
  const pixels = event.deltaY * (event.deltaMode === 1 ? 33 : event.deltaMode === 2 ? 400 : 1);
  if (!pixels) return;
  if (Math.abs(pixels) >= LONG_WHEEL && !event.ctrlKey) return zoomStep(-Math.sign(pixels), x, y);
  const factor = Math.exp(-pixels * (event.ctrlKey ? 0.01 : 0.004)); // ctrlKey: a touchpad's pinch
  wheelZoom = clamp((wheelZoom ?? state.zoom) * factor, leastZoom(), MAX_ZOOM);
  zoomTo(evenZoom(wheelZoom), x, y);
}

// ---- keys ----

const turn = (by) => showPicture((state.picture + by + facts.pictures.length) % facts.pictures.length);
const panStep = (dx, dy) => panBy(dx * 0.15 * stage.clientWidth, dy * 0.15 * stage.clientHeight);
const KEYS = {
  "+": () => zoomStep(1), "=": () => zoomStep(1), "-": () => zoomStep(-1), "_": () => zoomStep(-1),
  f: fit, z: () => zoomTo(1), s: swap, d: toggleDifference, t: toggleTheme, n: () => turn(1), p: () => turn(-1),
  h: () => panStep(1, 0), l: () => panStep(-1, 0), k: () => panStep(0, 1), j: () => panStep(0, -1),
  m: () => $("plot").parentNode.querySelector("[data-measure][aria-pressed=false]:not(:disabled)")?.click(),
  "?": () => ($("keys").open ? $("keys").close() : $("keys").showModal()), escape: () => stopBlink(),
};
let blinkKey = null; // when the blink key went down, and whether it was blinking then

function keyDown(event) {
  const field = event.target.closest?.("input");
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("select")) return;
  if ($("keys").open && key !== "?") return;
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  if (!field && !digit && wipeKey(event)) return event.preventDefault();
  if (key === "b") {
    if (!event.repeat) blinkKey = { since: performance.now(), was: Boolean(blinking) };
    if (!event.repeat && !blinking) startBlink();
  } else if (digit) setSide(event.shiftKey ? "left" : "right", Number(digit[1]));
  else if (key === "g") setGain(state.gain + (event.shiftKey ? -1 : 1));
  else if (KEYS[key]) KEYS[key]();
  else return;
  event.preventDefault();
}

function keyUp(event) {
  if (event.key.toLowerCase() !== "b" || !blinkKey) return;
  if (blinkKey.was || performance.now() - blinkKey.since > HOLD_MS) stopBlink();
  blinkKey = null;
}

// Left and right anywhere; the rest of a slider's keys on the slider.
function wipeKey(event) {
  const step = event.shiftKey ? 0.1 : 0.01;
  const moves = { ArrowLeft: -step, ArrowRight: step };
  const more = { ArrowDown: -step, ArrowUp: step, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 };
  if (event.target === handle) Object.assign(moves, more);
  if (!(event.key in moves)) return false;
  wipeTo(state.wipe + moves[event.key]);
  return true;
}

// ---- start ----

// In a frame of its own: what is drawn may change the size that was observed.
const onResize = (watched, action) => new ResizeObserver(() => requestAnimationFrame(action)).observe(watched);

function listen() {
  const clicks = { theme: toggleTheme, help: KEYS["?"], "zoom-in": () => zoomStep(1), "zoom-out": () => zoomStep(-1), fit,
    actual: KEYS.z, swap, blink: toggleBlink, difference: toggleDifference };
  for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);
  for (const side of ["left", "right"]) $(side).addEventListener("change", () => setSide(side, Number($(side).value)));
  for (const button of document.querySelectorAll("[data-measure]")) {
    button.addEventListener("click", () => setMeasure(button.dataset.measure));
  }
  $("gain").addEventListener("input", (event) => setGain(Number(event.target.value)));
  stage.addEventListener("pointerdown", pointerDown);
  stage.addEventListener("pointermove", pointerMove);
  for (const type of ["pointerup", "pointercancel"]) stage.addEventListener(type, pointerUp);
  stage.addEventListener("wheel", wheel, { passive: false });
  document.addEventListener("keydown", keyDown);
  document.addEventListener("keyup", keyUp);
  $("keys").addEventListener("click", (event) => event.target === $("keys") && $("keys").close()); // its backdrop
  onResize(stage, () => (state.fitted ? fit() : panBy(0, 0)));
  onResize($("plot"), drawPlot);
}

document.addEventListener("DOMContentLoaded", () => {
  facts = JSON.parse($("facts").textContent);
  [stage, handle] = [$("stage"), $("handle")];
  codecNames = [...new Set(facts.pictures.flatMap((p) => p.codecs.map((c) => c.name)))];
  $("title").textContent = facts.title;
  $("made-by").textContent = facts.made_by;
  $("ramp").style.background = `linear-gradient(to right, ${RAMP.map((rgb) => `rgb(${rgb})`).join(", ")})`;
  $("pictures").hidden = facts.pictures.length < 2;
  $("pictures").append(...facts.pictures.map((p, i) => {
    const thumbnail = element("img", { src: p.thumbnail, alt: "" });
    const button = element("button", { type: "button", title: p.name, "aria-label": p.name }, thumbnail);
    button.addEventListener("click", () => showPicture(i));
    return button;
  }));
  theme(document.documentElement.dataset.theme);
  showPicture(0);
  listen();
});
