"use strict";
// Shows what page.py wrote into #facts: here state, pictures, geometry, drawing; page-*.js are the rest of this
// script. Names are strangers' text: textContent, never markup.
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
  if (s < 0.9995) return `${s < 0.00995 ? (1000 * s).toFixed(1) : Math.round(1000 * s)}${THIN}ms`;
  return `${s < 99.95 ? s.toPrecision(3) : s.toFixed(0)}${THIN}s`;
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
  const { side } = document.activeElement?.closest?.("#codecs button")?.dataset ?? {};
  const version = document.activeElement?.closest?.("#codecs tr")?.dataset.version;
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
  if (side) $("codecs").querySelector(`[data-version="${version}"] [data-side=${side}]`)?.focus();
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
  return zoom > 1 ? Math.min(Math.floor(zoom * devicePixelRatio) / devicePixelRatio, MAX_ZOOM) : zoom || 1;
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
  const steps = [...ZOOMS, fitZoom()].map(evenZoom).sort((a, b) => a - b);
  const next = direction > 0 ? steps.find((z) => z > state.zoom * 1.001) : steps.reverse().find((z) => z < state.zoom / 1.001);
  if (next) zoomTo(next, px, py);
  say(`Zoom ${percent(state.zoom)}`);
}

// Above 1 every picture pixel becomes the same whole number of screen pixels, as large as its neighbour.
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
  stage.classList.toggle("crisp", state.zoom * devicePixelRatio > 1);
  stage.classList.toggle("movable", g.movable);
  stage.dataset.view = state.view;
  handle.classList.toggle("away", state.view !== "wipe"); // not hidden: it may have the focus
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
