// The table of figures and the rate-distortion plot.

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
  const [low, high] = [Math.log(Math.min(...rates, asked / 1.5)), Math.log(Math.max(...rates, asked * 1.5))];
  let [least, most] = values.length ? [Math.min(...values), Math.max(...values)] : [30, 40];
  if (most - least < 2) [least, most] = [least - 1, most + 1];
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
    const end = points.length > 1 ? points.at(-1) : it;
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
