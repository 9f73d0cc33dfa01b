"""Make pictures that photographs do not teach: interfaces, charts, flat shapes, gradients, and photographs in loud colours.

    python scripts/make_drawn.py PHOTOGRAPHS OUT --count 12

Weights that have seen photographs alone are weak at flat and saturated colours (docs/training.md, 27). Some of these among the
photographs of a training folder mend that. The same seed makes the same pictures, with one version of Pillow.
Training holds out every 64th picture of a folder, in the order of names: let OUT be its last.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from codec.training.data import VALIDATION_SHARE, find_images

WORDS = "the of and to in a is that for it as was with be by on not he his but at are this have from or had an".split()
Colour = tuple[int, int, int]


def colour(rng: np.random.Generator) -> Colour:
    """Return a colour: a pure one, a grey, or any of the colour wheel."""
    kind = rng.random()
    if kind < 0.25:
        r, g, b = rng.choice((0, 255), size=3)
    elif kind < 0.45:
        r = g = b = rng.integers(256)
    else:
        r, g, b = (round(255 * v) for v in colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.3, 1), rng.uniform(0.2, 1)))
    return int(r), int(g), int(b)


def box(rng: np.random.Generator, side: int, largest: float) -> tuple[int, int, int, int]:
    """Return a rectangle inside a square: left, top, right, bottom."""
    w, h = (rng.uniform(0.02, largest, size=2) * side).astype(int) + 1
    left, top = int(rng.integers(side - w)), int(rng.integers(side - h))
    return left, top, left + int(w), top + int(h)


def write(draw: ImageDraw.ImageDraw, rng: np.random.Generator, within: tuple[int, int, int, int], ink: Colour) -> None:
    """Fill a rectangle with lines of words."""
    left, top, right, bottom = within
    size = int(rng.integers(9, 30))
    font = ImageFont.load_default(size)
    for y in range(top, bottom - size, round(size * 1.4)):
        words = [""]
        while draw.textlength(" ".join(words), font=font) < right - left:
            words.append(str(rng.choice(WORDS)))
        draw.text((left, y), " ".join(words[1:-1]), fill=ink, font=font)


def interface(rng: np.random.Generator, side: int) -> Image.Image:
    """Return panels with buttons and text, light or dark."""
    light = rng.random() < 0.6
    level = int(rng.integers(225, 256) if light else rng.integers(0, 50))
    image = Image.new("RGB", (side, side), (level, level, level))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 10))):
        panel = box(rng, side, 0.6)
        fill = colour(rng) if rng.random() < 0.4 else (int(rng.integers(256)),) * 3
        draw.rounded_rectangle(panel, int(rng.integers(0, 12)), fill=fill, outline=colour(rng) if rng.random() < 0.5 else None)
        ink = (0, 0, 0) if sum(fill) > 380 else (255, 255, 255)
        left, top, right, bottom = panel
        write(draw, rng, (left + 8, top + 8, right - 8, bottom - 4), colour(rng) if rng.random() < 0.2 else ink)
    return image


def chart(rng: np.random.Generator, side: int) -> Image.Image:
    """Return bars and curves with axes and labels."""
    paper = (255, 255, 255) if rng.random() < 0.7 else colour(rng)
    ink = (0, 0, 0) if sum(paper) > 380 else (255, 255, 255)
    image = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(image)
    for y in range(40, side, int(rng.integers(30, 90))):
        draw.line((40, y, side - 20, y), fill=(128, 128, 128))
        draw.text((8, y - 6), str(int(rng.integers(1000))), fill=ink, font=ImageFont.load_default(11))
    bars = int(rng.integers(0, 14))
    for i in range(bars):
        left = 50 + i * (side - 80) // bars
        draw.rectangle((left, int(rng.integers(50, side - 60)), left + (side - 80) // bars - 6, side - 40), fill=colour(rng))
    for _ in range(int(rng.integers(1, 5))):
        xs = np.linspace(40, side - 20, 60)
        ys = side / 2 + np.cumsum(rng.normal(0, side / 40, size=60))
        draw.line(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=colour(rng), width=int(rng.integers(1, 6)))
    write(draw, rng, (side // 4, 6, side * 3 // 4, 40), ink)
    return image


def shapes(rng: np.random.Generator, side: int) -> Image.Image:
    """Return flat discs, rectangles and polygons, with smooth edges half of the time."""
    scale = 2 if rng.random() < 0.5 else 1
    image = Image.new("RGB", (side * scale, side * scale), colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 40))):
        kind = rng.integers(3)
        where = box(rng, side * scale, 0.5)
        if kind == 0:
            draw.ellipse(where, fill=colour(rng))
        elif kind == 1:
            draw.rectangle(where, fill=colour(rng))
        else:
            draw.polygon([(int(x), int(y)) for x, y in rng.integers(side * scale, size=(3, 2))], fill=colour(rng))
    return image.resize((side, side), Image.Resampling.BOX)


def gradients(rng: np.random.Generator, side: int) -> Image.Image:
    """Return tiles of a colour that turns into another, along a line or around a point, or stays."""
    pixels = np.zeros((side, side, 3))
    cell = side // int(rng.choice((1, 2, 3, 6)))
    for top in range(0, side, cell):
        for left in range(0, side, cell):
            y, x = np.mgrid[0 : 1 : 1j * cell, 0 : 1 : 1j * cell]
            a, b = rng.uniform(-1, 1, size=2)
            ramp = a * x + b * y if rng.random() < 0.6 else np.hypot(x - a, y - b)
            ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6) * (rng.random() < 0.8)
            begin, end = np.array(colour(rng)), np.array(colour(rng))
            piece = pixels[top : top + cell, left : left + cell]
            piece[:] = (begin + ramp[..., None] * (end - begin))[: piece.shape[0], : piece.shape[1]]
    return Image.fromarray(pixels.round().astype(np.uint8))


def loud(rng: np.random.Generator, side: int, photograph: Path) -> Image.Image:
    """Return a photograph with its channels exchanged, its colours several times as strong, or both."""
    with Image.open(photograph) as image:
        w, h = image.size
        left, top = (w - min(w, side)) // 2, (h - min(h, side)) // 2
        image = image.convert("RGB").crop((left, top, left + min(w, side), top + min(h, side)))
    bands = image.split()
    image = Image.merge("RGB", [bands[i] for i in rng.permutation(3)])
    return ImageEnhance.Color(image).enhance(rng.uniform(1.0, 4.0))


DRAWN: tuple[Callable[[np.random.Generator, int], Image.Image], ...] = (interface, chart, shapes, gradients)


@click.command()
@click.argument("photographs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--count", type=click.IntRange(1), default=12, show_default=True, help="Of each of the five kinds.")
@click.option("--side", type=click.IntRange(160), default=768, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(photographs: Path, out: Path, count: int, side: int, seed: int) -> None:
    """Write PNG files, some of each kind, to OUT."""
    rng = np.random.default_rng(seed)
    paths = [path for path in find_images(photographs, 256) if not path.resolve().is_relative_to(out.resolve())]
    sources = [path for i, path in enumerate(paths) if i % VALIDATION_SHARE]  # the others stay unseen
    if not sources:
        raise click.ClickException(f"{photographs}: {len(paths)} pictures, all of them held out: add more")
    out.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        for make in DRAWN:
            make(rng, side).save(out / f"{make.__name__}-{i:03}.png")
        loud(rng, side, sources[int(rng.integers(len(sources)))]).save(out / f"loud-{i:03}.png")


if __name__ == "__main__":
    main()
