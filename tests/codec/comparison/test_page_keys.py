"""Keys of ``codec compare``'s page where they are easily wrong: held, in a list, with a browser's own, on other screens."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def sides(tab):
    return [tab.locator(f"#{side} option:checked").text_content() for side in ("left", "right")]


def theme(tab):
    return tab.evaluate("document.documentElement.dataset.theme")


def test_a_held_key_switches_once(show, small):
    tab = show([small])
    before = theme(tab)
    for _ in range(4):
        tab.keyboard.down("t")  # without an up between: repeats
    assert theme(tab) != before
    tab.keyboard.up("t")
    tab.keyboard.press("t")
    assert theme(tab) == before


def test_keys_work_after_a_choice_by_pointer(show, small):
    tab = show([small])
    tab.locator("#right").dispatch_event("pointerdown")
    tab.locator("#right").focus()
    tab.locator("#right").select_option("blue")
    tab.keyboard.press("s")
    assert sides(tab) == ["blue", "swift"]


def test_keys_choose_in_a_list_that_has_the_focus(show, small):
    tab = show([small])
    tab.locator("#right").focus()
    tab.keyboard.press("Home")
    assert sides(tab) == ["swift", "original"]


@pytest.mark.parametrize("modifier", ["Control", "Alt", "Meta"])
def test_the_browsers_own_keys_stay_its_own(show, small, modifier):
    tab = show([small])
    before = sides(tab)
    tab.keyboard.press(f"{modifier}+s")
    assert sides(tab) == before


def test_sides_stay_by_name_on_the_next_picture(show, small, large):
    turned = dataclasses.replace(large, codecs=tuple(reversed(large.codecs)))
    tab = show([small, turned])
    tab.keyboard.press("2")
    tab.keyboard.press("n")
    assert sides(tab) == ["swift", "blue"]
    tab.keyboard.press("p")
    assert sides(tab) == ["swift", "blue"]


def test_escape_ends_a_blink(show, small):
    tab = show([small])
    tab.get_by_role("button", name="Blink").click()
    assert tab.locator("#blink").get_attribute("aria-pressed") == "true"
    tab.keyboard.press("Escape")
    assert tab.locator("#blink").get_attribute("aria-pressed") == "false"


def test_a_blink_leaves_the_focus_on_the_handle(show, small):
    tab = show([small])
    tab.locator("#handle").focus()
    tab.keyboard.press("b")
    tab.keyboard.press("b")
    assert tab.evaluate("document.activeElement.id") == "handle"


@pytest.mark.parametrize("ratio", [1.25, 2])
def test_every_zoom_above_one_has_whole_screen_pixels(show, small, ratio):
    tab = show([small], device_scale_factor=ratio)
    tab.keyboard.press("z")
    seen = []
    for _ in range(8):
        tab.keyboard.press("+")
        seen.append(tab.evaluate("state.zoom * devicePixelRatio"))
    assert seen == [pytest.approx(round(value)) for value in seen]
    assert seen == sorted(set(seen))
    for value in reversed(seen[:-1]):
        tab.keyboard.press("-")
        assert tab.evaluate("state.zoom * devicePixelRatio") == pytest.approx(value)


def test_doubled_pixels_of_a_fine_screen_are_crisp(show, small):
    tab = show([small], device_scale_factor=2)
    tab.keyboard.press("z")
    assert tab.locator("#layers img").first.evaluate("it => getComputedStyle(it).imageRendering") == "pixelated"


def test_a_long_name_does_not_widen_the_page(show, small):
    named = dataclasses.replace(small, name="IMG_20240817_123456789_a_very_long_name_without_a_break.png")
    tab = show([named], width=320, edit=lambda text: text.replace('"title":"Compared"', f'"title":"{named.name}"'))
    assert tab.evaluate("document.documentElement.scrollWidth") == 320


@pytest.mark.parametrize("name", ["--quiet", *(f"--c{i}" for i in range(8))])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_colours_have_contrast(show, small, name, scheme):
    tab = show([small], color_scheme=scheme)

    def luminance(variable):
        colour = tab.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('{variable}')").strip()
        digits = colour.lstrip("#") if len(colour) == 7 else "".join(2 * c for c in colour.lstrip("#"))
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(name), luminance("--paper")))
    assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2.1, 1.4.3
