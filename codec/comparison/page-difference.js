// What of a picture differs from the original, as a heat-map.

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
