"""README is true: its Python example runs, its results come from the JSON, its commands exist."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example_runs(monkeypatch, tmp_path):
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "lake.png", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["image"].size == (768, 512)
    assert 0 < len(names["small"]) < len(names["data"])


def test_results_match_the_json():
    script = runpy.run_path(str(ROOT / "scripts" / "make_results"))
    result = CliRunner().invoke(script["main"], ["--check"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("line", sorted(set(re.findall(r"\bcodec [a-z]+ [^`\n]*", README))))
def test_commands_and_their_options_exist(line):
    from codec.cli.main import main

    name, given = line.split()[1], set(re.findall(r"(?<!\S)--[a-z][a-z-]*", line.split(" #")[0]))
    if name not in main.commands and not given:
        return  # a sentence
    options = {option for parameter in main.commands[name].params for option in parameter.opts} | {"--help"}
    assert given <= options


def test_example_picture_is_what_the_script_renders(tmp_path):
    from PIL import Image, ImageChops

    script = (ROOT / "examples" / "make_picture.py").read_text(encoding="utf-8")
    (tmp_path / "make_picture.py").write_text(script, encoding="utf-8")
    subprocess.run([sys.executable, tmp_path / "make_picture.py"], check=True)
    difference = ImageChops.difference(Image.open(tmp_path / "lake.png"), Image.open(ROOT / "examples" / "lake.png"))
    assert max(high for _, high in difference.getextrema()) <= 1
