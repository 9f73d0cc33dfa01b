"""What the page of ``codec compare`` does in a browser; the fixture fails every test for a console error or a request."""

from __future__ import annotations

import dataclasses
import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
BLUE = (20, 40, 200)


def colours(tab, fractions):
    """Return the colours on the stage at these fractions of the picture's width, a quarter above its foot."""
    box = tab.locator("#layers img").first.bounding_box()
    row = tab.screenshot(clip={"x": 0, "y": round(box["y"] + 0.75 * box["height"]), "width": 1000, "height": 1})
    image = Image.open(BytesIO(row)).convert("RGB")
    return [image.getpixel((round(box["x"] + f * box["width"]), 0)) for f in fractions]


def sides(tab):
    return [tab.locator(f"#{side} option:checked").text_content() for side in ("left", "right")]


def zoom(tab):
    return int(re.sub(r"\D", "", tab.locator("#zoom").text_content()))


def box(tab, side):
    return tab.locator(f".layer[data-sides={side}] img").bounding_box()


def test_opens_with_ours_against_the_best_lossy_or_lossless_peer(show, small):
    tab = show([small])
    assert sides(tab) == ["swift", "exact"]
    assert tab.locator("#made-by").text_content() == "made by a test"
    assert tab.title() == "Compared"


def test_policy_runs_and_loads_nothing_else(show, small, tmp_path):
    Image.fromarray(small.original).save(tmp_path / "neighbour.png")
    intruders = "<script>window.ran = 1</script><img id=intruder src=neighbour.png></body>"
    tab = show([small], edit=lambda text: text.replace("</body>", intruders))
    assert tab.evaluate("window.ran") is None
    assert tab.evaluate("document.getElementById('intruder').naturalWidth") == 0
    assert sum("Content Security Policy" in problem for problem in tab.problems) == 2
    tab.problems.clear()


def test_wipe_follows_the_mouse(show, small):
    tab = show([small])
    tab.keyboard.press("2")
    assert [colour == BLUE for colour in colours(tab, (0.2, 0.45, 0.55, 0.8))] == [False, False, True, True]
    handle, sheet = tab.locator("#handle").bounding_box(), box(tab, "left")
    tab.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + 60)
    tab.mouse.down()
    tab.mouse.move(sheet["x"] + 0.3 * sheet["width"], handle["y"] + 90, steps=3)
    tab.mouse.up()
    assert [colour == BLUE for colour in colours(tab, (0.2, 0.45, 0.55, 0.8))] == [False, True, True, True]
    assert tab.locator("#handle").get_attribute("aria-valuenow") == "30"


def test_wipe_follows_the_keys(show, small):
    tab = show([small])
    handle = tab.get_by_role("slider", name="Wipe")
    tab.keyboard.press("2")
    for key, at in (("ArrowRight", "51"), ("Shift+ArrowLeft", "41")):  # anywhere on the page
        tab.keyboard.press(key)
        assert handle.get_attribute("aria-valuenow") == at
    handle.focus()
    for key, at, blue in (("Home", "0", True), ("ArrowUp", "1", True), ("End", "100", False), ("PageDown", "90", False)):
        tab.keyboard.press(key)
        assert handle.get_attribute("aria-valuenow") == at
        assert colours(tab, (0.5,)) == [BLUE] if blue else colours(tab, (0.5,)) != [BLUE]
    assert handle.get_attribute("aria-valuetext") == "90 % swift, 10 % blue"


def test_keys_zoom_to_crisp_pixels(show, large):
    tab = show([large])
    rendering = "getComputedStyle(document.querySelector('.layer[data-sides=left] img')).imageRendering"
    tab.keyboard.press("z")
    assert (zoom(tab), tab.evaluate(rendering)) == (100, "auto")
    for _ in range(3):
        tab.keyboard.press("+")
    assert (zoom(tab), tab.evaluate(rendering)) == (400, "pixelated")
    tab.keyboard.press("Shift+Digit0")  # the original on the left
    place, shot = box(tab, "left"), np.asarray(Image.open(BytesIO(tab.screenshot())).convert("RGB"))
    assert (place["x"] % 1, place["y"] % 1) == (0, 0)
    enlarged = large.original.repeat(4, axis=0).repeat(4, axis=1)
    x, y = int(place["x"]), int(place["y"])
    assert np.array_equal(shot[200:600, x : x + 300], enlarged[200 - y : 600 - y, :300])
    tab.keyboard.press("f")
    assert zoom(tab) == 300


def test_wheel_zooms_at_the_pointer(show, large):
    tab = show([large])
    for _ in range(3):
        tab.keyboard.press("+")
    before, old = box(tab, "left"), zoom(tab)
    tab.mouse.move(before["x"] + 0.4 * before["width"], before["y"] + 0.6 * before["height"])
    for turn, larger in ((-100, True), (100, False)):
        shown = tab.locator("#zoom").text_content()
        tab.mouse.wheel(0, turn)
        expect(tab.locator("#zoom")).not_to_have_text(shown)
        after = box(tab, "left")
        assert (zoom(tab) > old) == larger
        assert after["x"] + 0.4 * after["width"] == pytest.approx(before["x"] + 0.4 * before["width"], abs=1)
        assert after["y"] + 0.6 * after["height"] == pytest.approx(before["y"] + 0.6 * before["height"], abs=1)


def test_dragging_pans_both_sides_alike(show, large):
    tab = show([large])
    for _ in range(4):
        tab.keyboard.press("+")
    before = box(tab, "left")
    tab.mouse.move(300, 300)
    tab.mouse.down()
    tab.mouse.move(240, 260, steps=4)
    tab.mouse.up()
    assert box(tab, "left") == box(tab, "right") == {**before, "x": before["x"] - 60, "y": before["y"] - 40}
    tab.keyboard.press("h")
    assert box(tab, "right")["x"] == box(tab, "left")["x"] > before["x"] - 60


def test_two_fingers_zoom(show, large):
    tab = show([large], 390, 844, has_touch=True, is_mobile=True)
    middle, old = tab.locator("#stage").bounding_box(), zoom(tab)
    x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
    touch = tab.context.new_cdp_session(tab)
    for kind, apart in (("touchStart", 30), ("touchMove", 80), ("touchMove", 150)):
        points = [{"x": x - apart, "y": y, "id": 1}, {"x": x + apart, "y": y, "id": 2}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(tab.locator("#zoom")).not_to_have_text(f"{old}\u202f%")
    assert zoom(tab) >= 4 * old


def stop_clock(tab):
    """Let the page's time pass by tab.clock.run_for alone."""
    tab.clock.install(time="2026-01-01T00:00:00")
    tab.clock.pause_at("2026-01-01T01:00:00")


@pytest.mark.parametrize("way", ["key", "button"])
def test_blink_shows_the_sides_in_turn(show, way, small):
    tab = show([small])
    stop_clock(tab)
    press = (lambda: tab.keyboard.press("b")) if way == "key" else tab.locator("#blink").click
    tab.keyboard.press("2")
    press()
    for side, blue, name in (("right", True, "blue"), ("left", False, "swift"), ("right", True, "blue")):
        assert tab.locator("#stage").get_attribute("data-view") == side
        assert tab.locator("#badge").text_content() == name
        assert [colour == BLUE for colour in colours(tab, (0.1, 0.9))] == [blue, blue]
        tab.clock.run_for(600)
    assert tab.locator("#blink").get_attribute("aria-pressed") == "true"
    press()
    assert tab.locator("#stage").get_attribute("data-view") == "wipe"


def test_blink_ends_with_a_held_key(show, small):
    tab = show([small])
    stop_clock(tab)
    tab.keyboard.down("b")
    tab.clock.run_for(700)
    assert tab.locator("#stage").get_attribute("data-view") == "left"
    tab.keyboard.up("b")
    assert tab.locator("#stage").get_attribute("data-view") == "wipe"


def heat(tab, side, gain):
    canvas = tab.locator(f".layer[data-sides={side}] canvas[data-gain='{gain}']")
    return np.asarray(Image.open(BytesIO(b64decode(canvas.evaluate("c => c.toDataURL()").split(",")[1]))).convert("RGB"))


def test_difference_is_black_exactly_where_pictures_are_equal(show, small):
    tab = show([small])
    tab.keyboard.press("d")
    ours = heat(tab, "left", 8)
    assert (ours[:32].sum(axis=2) > 0).all()
    assert (ours[32:] == 0).all()
    assert (heat(tab, "right", 8) == 0).all()  # the lossless one
    assert tab.locator("#ramp-end").text_content() == "32 or more"
    tab.keyboard.press("g")
    assert tab.locator("#gain-value").text_content() == "×16"
    assert heat(tab, "left", 16)[:32].sum() > ours[:32].sum()
    tab.locator("#difference").click()
    assert tab.locator("#legend").is_hidden()
    assert tab.locator(".layer[data-sides=left] canvas").is_hidden()


def test_keys_rows_and_buttons_choose_the_sides(show, small, hostile):
    tab = show([small])
    tab.keyboard.press("3")
    assert sides(tab) == ["swift", hostile]
    tab.keyboard.press("Shift+Digit2")
    assert sides(tab) == ["blue", hostile]
    tab.locator("#codecs tbody th", has_text="original").click()
    assert sides(tab) == ["blue", "original"]
    tab.get_by_role("button", name="exact on the left").click()
    assert sides(tab) == ["exact", "original"]
    tab.locator("#swap").click()
    assert sides(tab) == ["original", "exact"]
    tab.locator("#right").select_option(label="blue")
    assert colours(tab, (0.8,)) == [BLUE]
    assert tab.get_by_role("button", name="blue on the right").get_attribute("aria-pressed") == "true"


def test_names_are_text(show, small, large, hostile):
    tab = show([dataclasses.replace(small, name=hostile), large])
    assert tab.locator("#codecs .name").all_text_contents() == ["original", "swift", "blue", hostile, "exact"]
    assert hostile in tab.locator("#subtitle").text_content()
    assert tab.locator("script").count() == 2


def test_table_says_the_figures_and_the_best(show, large):
    tab = show([large])
    rows = [
        [text.replace("\u202f", " ") for text in row.locator("td").all_text_contents()] for row in tab.locator("tbody tr").all()
    ]
    assert rows[1][1:] == ["700", "−8.9 %", "0.156", "34.50", "15.00", "120 ms", "1.50 s"]
    assert rows[4][4:6] == ["lossless", "lossless"]
    assert tab.locator("tbody tr").nth(4).locator(".best").count() == 4  # PSNR and MS-SSIM, and the times are all equal
    assert tab.locator("tbody tr").nth(1).locator(".best").count() == 2


def test_plot_marks_every_codec(show, small, large, hostile):
    tab = show([small, large])
    assert tab.locator("#plot .mark").count() == tab.locator("#plot .curve").count() == 4
    assert tab.get_by_role("button", name="MS-SSIM").is_disabled()
    tab.keyboard.press("n")
    assert "large.png" in tab.locator("#subtitle").text_content()
    heights = tab.locator("#plot .mark").evaluate_all("marks => marks.map(m => Number(m.getAttribute('cy')))")
    names = [name.rsplit(":", 1)[0] for name in tab.locator("#plot .mark title").all_text_contents()]
    assert names == ["blue", hostile, "exact", "swift"]  # ours on top
    assert heights[2] < heights[3] < heights[0] < heights[1]
    tab.get_by_role("button", name="MS-SSIM").click()
    assert "MS-SSIM" in tab.locator("#plot svg").get_attribute("aria-label")
    asked, lines = 8 * 768 / (200 * 180), tab.locator("#plot .asked-name").text_content()
    assert lines == f"{asked:.3f} bpp"


def test_tab_reaches_every_control_and_shows_where(show, small, large):
    tab = show([small, large])
    tab.keyboard.press("d")
    controls = "button, select, input, [tabindex='0']"
    wanted = tab.evaluate(f'[...document.querySelectorAll("{controls}")].filter(e => e.offsetParent && !e.disabled).length')
    seen, reached = "document.activeElement", set()
    for _ in range(wanted):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate(f"{seen}.id || {seen}.ariaLabel || {seen}.textContent"))
        ring = f"getComputedStyle({seen}.querySelector('circle') ?? {seen})"
        assert tab.evaluate(f"{ring}.outlineStyle !== 'none' || {ring}.strokeWidth === '4px'")
    assert len(reached) == wanted
    assert {"handle", "gain", "left", "blink", "exact on the left", "large.png", "PSNR"} <= reached


def test_help_opens_and_closes(show, small):
    tab = show([small])
    tab.keyboard.press("?")
    assert tab.get_by_role("dialog", name="Keys").is_visible()
    tab.keyboard.press("Escape")
    assert tab.get_by_role("dialog").count() == 0


@pytest.mark.parametrize("width", [320, 390, 800])
def test_narrow_page_does_not_scroll_sideways(show, width, large):
    long = [dataclasses.replace(codec, name="w" * 70, setting="x" * 90) for codec in large.codecs]
    tab = show(
        [dataclasses.replace(large, codecs=long, name="n" * 80)] + [large] * 3, width, 844, has_touch=True, is_mobile=True
    )
    tab.keyboard.press("d")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("#plot svg").bounding_box()["width"] <= width


def test_theme_follows_the_system_until_it_is_chosen(show, small):
    tab = show([small], color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b) / 3"
    assert tab.evaluate(paper) < 60
    tab.emulate_media(color_scheme="light")
    expect(tab.locator("html")).to_have_attribute("data-theme", "light")
    assert tab.evaluate(paper) > 200
    tab.keyboard.press("t")
    assert tab.evaluate(paper) < 60
    tab.emulate_media(color_scheme="dark")
    tab.emulate_media(color_scheme="light")
    tab.wait_for_timeout(100)
    assert tab.evaluate(paper) < 60
