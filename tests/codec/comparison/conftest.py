"""Small pictures to compare, and pages opened from disk in headless Chromium.

Every test that opens a page also fails for an error in its console or a request to anything but itself.
"""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest

from codec.comparison.page import Compared, RatePoint, Shown, page

BLUE = (20, 40, 200)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def hostile():
    """A name that would end a script, begin another, and ask for the style, were it markup."""
    return "</script><script>alert(1)</script><!--css-->"


def compared(height, width, name, ms_ssim_db, hostile):
    """Return noise and four codecs: ours is 20 too red in the upper half, others are blue, dark, and without loss."""

    def shown(name, pixels, psnr_db, ms_ssim_db=ms_ssim_db, **more):
        rates = (0.25, 0.5, 1, 2, 4)
        curve = [RatePoint(r, 30 + 6 * math.log2(r), ms_ssim_db and ms_ssim_db + math.log2(r)) for r in rates]
        return Shown(name, "quality 41.2", 700, psnr_db, ms_ssim_db, 0.12, 1.5, pixels, curve, **more)

    original = np.random.default_rng(5).integers(40, 200, (height, width, 3), np.uint8)
    red = original.copy()
    red[: height // 2, :, 0] += 20
    codecs = [
        shown("swift", red, 34.5, is_ours=True),
        shown("blue", np.full_like(original, BLUE), 33.0),
        shown(hostile, original // 2, 31.0),
        shown("exact", original.copy(), math.inf, ms_ssim_db and math.inf),
    ]
    return Compared(name, original, 768, codecs)


@pytest.fixture(scope="session")
def small(hostile):
    return compared(64, 96, "noise.png", None, hostile)


@pytest.fixture(scope="session")
def large(hostile):
    return compared(180, 200, "large.png", 15.0, hostile)


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser, tmp_path):
    """Return show(pictures, width=1000, height=800, edit=None, **context): the opened page; edit(html) may change it first."""
    contexts, problems = [], []
    file = tmp_path / "compare.html"

    def show(pictures, width=1000, height=800, edit=lambda text: text, **context):
        file.write_text(edit(page(pictures, title="Compared", made_by="made by a test")), encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **context))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: problems.append(request.url[:80]) if not is_inside(request.url) else None)
        tab.problems = problems
        tab.goto(file.as_uri())
        return tab

    def is_inside(url):
        return url == file.as_uri() or url.startswith(("data:", "blob:"))

    yield show
    for context in contexts:
        context.close()
    assert problems == []
