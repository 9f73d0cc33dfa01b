"""Render ``lake.png``, the example picture: mountains over a lake in evening light. NumPy and Pillow only.

    python examples/make_picture.py

Nothing in it is taken from a photograph: ridges, clouds, water and grain are fractal noise from a fixed seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

W, H = 768, 512
HORIZON = 300  # row of the far shore
Field = NDArray[np.float64]


def noise(rng: np.random.Generator, h: int, w: int, cell_y: float, cell_x: float) -> Field:
    """Return (h, w) smooth value noise in [−1, 1] with features of cell_y × cell_x pixels."""
    rows, columns = int(h / cell_y) + 3, int(w / cell_x) + 3
    grid = rng.uniform(-1, 1, (rows, columns))
    y, x = np.arange(h) / cell_y, np.arange(w) / cell_x
    iy, ix = y.astype(int), x.astype(int)
    fy, fx = y - iy, x - ix
    fy, fx = (f * f * f * (f * (f * 6 - 15) + 10) for f in (fy, fx))
    top = grid[iy][:, ix] * (1 - fx) + grid[iy][:, ix + 1] * fx
    bottom = grid[iy + 1][:, ix] * (1 - fx) + grid[iy + 1][:, ix + 1] * fx
    return top * (1 - fy[:, None]) + bottom * fy[:, None]


def fractal(rng: np.random.Generator, h: int, w: int, cell_y: float, cell_x: float, octaves: int, gain: float = 0.5) -> Field:
    """Return (h, w) fractal noise: octaves of halved cells and amplitudes."""
    total, amplitude = np.zeros((h, w)), 1.0
    for _ in range(octaves):
        total += amplitude * noise(rng, h, w, max(cell_y, 1.0), max(cell_x, 1.0))
        cell_y, cell_x, amplitude = cell_y / 2, cell_x / 2, amplitude * gain
    return total


def mix(a: Field, b: Field, t: Field) -> Field:
    """Blend (h, w, 3) colours a and b by t (h, w) in [0, 1]."""
    return a + (b - a) * np.clip(t, 0, 1)[..., None]


def sky(rng: np.random.Generator) -> Field:
    """Return the sky (HORIZON, W, 3) in linear light: gradient, sun glow, lit clouds."""
    y, x = np.mgrid[0:HORIZON, 0:W]
    colour = mix(np.array([0.10, 0.22, 0.48]), np.array([0.95, 0.62, 0.35]), (y / HORIZON) ** 1.7)
    glow = np.exp(-(((x - 560) / 190) ** 2 + ((y - 235) / 90) ** 2))
    colour = colour + glow[..., None] * np.array([0.9, 0.5, 0.2])
    density = fractal(rng, HORIZON, W, 40, 150, 7, 0.55) - 0.15 + 0.3 * (1 - y / HORIZON)
    light = fractal(rng, HORIZON, W, 25, 80, 6)
    cloud = mix(np.array([0.36, 0.33, 0.42]), np.array([1.1, 0.82, 0.62]), 0.5 + 0.5 * light + 0.4 * glow)
    return mix(colour, cloud, density * 1.4)


def ridge(rng: np.random.Generator, image: Field, base: float, height: float, rough: float, haze: float, tint: Field) -> None:
    """Paint one mountain range over the image in place: lit rock, snow on the heights, trees at the foot."""
    outline = base - height * (0.35 + 0.65 * np.abs(fractal(rng, 1, W, 1, 230, 8, rough)[0]))
    y, _ = np.mgrid[0:HORIZON, 0:W]
    depth = y - outline[None, :]
    rock = fractal(rng, HORIZON, W, 60, 45, 8, 0.62)
    slope = np.gradient(rock, axis=1) * 9 + np.gradient(outline)[None, :] * 0.5
    shade = np.clip(0.42 - 0.5 * slope + 0.12 * rock, 0.04, 1.1)
    colour = tint * shade[..., None]
    snow = np.clip((0.34 * height - depth + 26 * rock) / 14, 0, 1) * (height > 90)
    colour = mix(colour, np.array([0.92, 0.88, 0.92]) * (0.35 + 0.75 * shade[..., None]), snow)
    trees = np.clip((depth - 0.55 * height + 12 * noise(rng, HORIZON, W, 3, 2)) / 9, 0, 1)
    needles = 0.5 + 0.5 * noise(rng, HORIZON, W, 4, 1.6)
    colour = mix(colour, np.array([0.05, 0.085, 0.05]) * (0.4 + needles[..., None]), trees)
    colour = mix(colour, np.array([0.80, 0.58, 0.46]), np.full((HORIZON, W), haze) * (0.5 + 0.5 * y / HORIZON))
    cover = np.clip(depth + 0.5, 0, 1)  # a soft edge of one pixel
    image[:] = mix(image, colour, cover)


def lake(rng: np.random.Generator, upper: Field) -> Field:
    """Return the water (H − HORIZON, W, 3): the upper half mirrored, bent by waves that grow towards the viewer."""
    h = H - HORIZON
    y, x = np.mgrid[0:h, 0:W].astype(float)
    near = y / h
    waves = sum(noise(rng, h, W, 2 + 5 * k, 18 + 40 * k) * (k + 1) for k in range(4)) * (0.4 + 4.5 * near)
    source_y = np.clip(HORIZON - 2 - y * 1.35 + waves, 0, HORIZON - 1).astype(int)
    source_x = np.clip(x + 0.6 * waves, 0, W - 1).astype(int)
    water = upper[source_y, source_x] * (0.78 - 0.25 * near[..., None])
    water = mix(water, np.array([0.03, 0.07, 0.10]), 0.12 + 0.35 * near)
    sparkle = np.clip(noise(rng, h, W, 1.5, 4) - 0.72, 0, 1) * np.exp(-(((x - 560) / 120) ** 2)) * 6
    return water + sparkle[..., None] * np.array([1.0, 0.75, 0.45])


def shore(rng: np.random.Generator, image: Field) -> None:
    """Paint reeds and stones in the foreground, in place."""
    y, x = np.mgrid[0:H, 0:W].astype(float)
    edge = 470 - 55 * np.exp(-(((x - 70) / 190) ** 2)) + 10 * fractal(rng, 1, W, 1, 60, 5)[0][None, :]
    stone = fractal(rng, H, W, 14, 24, 6, 0.6)
    light = np.clip(0.45 - 2.2 * np.gradient(stone, axis=1) - 1.3 * np.gradient(stone, axis=0), 0.05, 1.2)
    colour = np.array([0.26, 0.21, 0.17]) * light[..., None]
    moss = np.clip(fractal(rng, H, W, 30, 50, 4) * 1.5, 0, 1)
    colour = mix(colour, np.array([0.10, 0.14, 0.04]) * (0.3 + light[..., None]), moss)
    image[:] = mix(image, colour, np.clip((y - edge) / 2 + 0.5, 0, 1))
    for _ in range(260):
        foot = int(rng.normal(90, 95))
        if not 0 <= foot < W:
            continue
        top, lean = rng.uniform(40, 120), rng.normal(0, 0.25)
        bottom = min(H - 1, int(edge[0, foot] + rng.uniform(-8, 14)))
        tone = np.array([0.20, 0.19, 0.06]) * rng.uniform(0.3, 1.6)
        for step in range(int(top)):
            column, row = int(foot + lean * step * step / top), bottom - step
            if 0 <= row < H and 0 <= column < W:
                image[row, column] = 0.25 * image[row, column] + 0.75 * tone


def main() -> None:
    """Render and save the picture."""
    rng = np.random.default_rng(2026)
    upper = sky(rng)
    ridge(rng, upper, 285, 215, 0.50, 0.55, np.array([0.42, 0.36, 0.40]))
    ridge(rng, upper, 300, 130, 0.48, 0.28, np.array([0.36, 0.30, 0.27]))
    ridge(rng, upper, 306, 52, 0.55, 0.10, np.array([0.14, 0.15, 0.09]))
    image = np.concatenate([upper, lake(rng, upper)])
    shore(rng, image)
    y, x = np.mgrid[0:H, 0:W]
    image *= (1 - 0.35 * (((x - W / 2) / W) ** 2 + ((y - H / 2) / H) ** 2))[..., None]  # lens fall-off
    display = np.clip(image / (image + 0.42) * 1.25, 0, 1) ** (1 / 2.2)
    display += rng.normal(0, 0.006, display.shape)  # sensor noise
    pixels = (np.clip(display, 0, 1) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(Path(__file__).parent / "lake.png", optimize=True)


if __name__ == "__main__":
    main()
