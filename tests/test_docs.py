"""The pages of ``docs/`` are true: their examples run, their figures are README's, and the site has all commands and names.

A block marked ``python`` or ``sh`` runs, page by page, where photo.png and photos/ are; what cannot run is marked ``text``.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import codec
from codec.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
FENCE = re.compile(r"^```(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> dict[str, list[str]]:
    """Return the blocks of a language, by page."""
    found = {name: [text for kind, text in FENCE.findall(page) if kind == language] for name, page in PAGES.items()}
    return {name: texts for name, texts in found.items() if texts}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder: parts of the example picture are in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for x, name in enumerate(("photo.png", "photos/a.png", "photos/b.png")):
        Image.open(ROOT / "examples" / "lake.png").crop((100 * x, 150, 100 * x + 320, 390)).save(name)
    return tmp_path


@pytest.mark.parametrize("name", blocks("python"))
@pytest.mark.usefixtures("folder")
def test_python_examples_of_a_page_run(name):
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks("python")[name]:
        exec(compile(block, name, "exec"), names)


@pytest.mark.parametrize("name", blocks("sh"))
@pytest.mark.usefixtures("folder")
def test_commands_of_a_page_run(name):
    for line in "\n".join(blocks("sh")[name]).replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or ["codec", "--help"]
        assert program == "codec", line
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{line}: {result.output}"


@pytest.mark.parametrize("name", PAGES)
def test_no_block_hides_behind_another_name_of_its_language(name):
    assert {kind for kind, _ in FENCE.findall(PAGES[name])} <= {"python", "sh", "text", "toml", "json", ""}


def cell(text: str, row: str, column: str) -> str:
    """Return a cell of the only table of a text that has both names."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, *rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in table.splitlines()]
        found += [entries[head.index(column)] for entries in rows if entries[0] == row and column in head]
    assert len(found) == 1, (row, column, found)
    return found[0]


QUESTIONS = [  # what stands around a figure, and its place in README or models.md
    (r"`jxl` at effort 7: (\S+ %) by BD-rate", "README", "`swift`, PSNR", "jxl"),
    (r"by MS-SSIM it is (\S+ %), and `swift-ms-ssim`", "README", "`swift`, MS-SSIM", "jxl"),
    (r"and `swift-ms-ssim` (\S+ %)\. That is the gain", "README", "`swift-ms-ssim`, MS-SSIM", "jxl"),
    (r"Against AVIF `swift` needs more: (\S+ %) by PSNR", "README", "`swift`, PSNR", "avif"),
    (r"(\S+ %) where AVIF is told to aim at PSNR", "README", "`swift`, PSNR", "avif-psnr"),
    (r"published curves of VTM it is (\S+ %)", "README", "VTM", "BD-rate"),
    (r"`swift-ms-ssim` is at (\S+ %) against AVIF as it comes", "README", "`swift-ms-ssim`, MS-SSIM", "avif"),
    (r"at (\S+ %) against AVIF aimed at PSNR", "README", "`swift-ms-ssim`, MS-SSIM", "avif-psnr"),
    (r"`swift` takes (\S+) kMAC per pixel to decode", "models", "`swift`", "kMAC/pixel dec"),
]


@pytest.mark.parametrize(("words", "page", "row", "column"), QUESTIONS)
def test_figures_of_the_questions_are_those_of_the_results(words, page, row, column):
    results = PAGES["models.md"] if page == "models" else (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(words, " ".join(PAGES["faq.md"].split())) == [cell(results, row, column)]


def test_no_figure_of_the_questions_is_without_its_place():
    assert len(re.findall(r"[+-]\d+\.\d %|\d+\.\d kMAC", " ".join(PAGES["faq.md"].split()))) == len(QUESTIONS)


def test_the_reference_has_every_public_name():
    assert set(re.findall(r"^::: codec\.(\w+)$", PAGES["api.md"], re.MULTILINE)) == set(codec.__all__)


def test_the_site_builds_without_a_warning_and_lists_every_command(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs the docs extra")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {name: (tmp_path / "site" / name / "index.html").read_text(encoding="utf-8") for name in ("api", "cli", "format")}
    assert {name for name in main.commands if f'id="codec-{name}"' not in pages["cli"]} == set()
    assert {name for name in codec.__all__ if f'id="codec.{name}"' not in pages["api"]} == set()
    assert "The file format, version 1" in pages["format"]
