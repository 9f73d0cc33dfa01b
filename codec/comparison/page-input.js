// Pointers, keys, and the start.

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
const TOGGLES = ["s", "d", "t", "m", "?"];
let blinkKey = null; // when the blink key went down, and whether it was blinking then

function keyDown(event) {
  const field = event.target.closest?.("input");
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("select")) return;
  if ($("keys").open && key !== "?") return;
  if (event.repeat && TOGGLES.includes(key)) return event.preventDefault(); // held, they would flicker
  // By place, so that Shift does not matter and AZERTY has digits; but what a layout calls + or − is that, and so is an arrow.
  const place = KEYS[key] ? null : /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  const digit = place && (event.code.startsWith("Digit") || place[1] === key) ? place : null;
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
  for (const side of ["left", "right"]) {
    let byPointer = false;
    $(side).addEventListener("pointerdown", () => (byPointer = true));
    $(side).addEventListener("keydown", () => (byPointer = false));
    $(side).addEventListener("change", () => {
      setSide(side, Number($(side).value));
      if (byPointer) $(side).blur(); // so that the next key is a shortcut, not a search in the list
    });
  }
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
  addEventListener("blur", () => blinkKey && (stopBlink(), (blinkKey = null))); // the key's end is not heard elsewhere
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
