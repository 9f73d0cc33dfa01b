"""README is true: its Python example runs, its results come from the JSON, its commands exist."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["image"].size == (768, 512)
    assert 0 < len(names["small"]) < len(names["data"])


def test_results_match_the_json():
    script = runpy.run_path(str(ROOT / "scripts" / "make_results"))
    result = CliRunner().invoke(script["main"], ["--check"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^codec (\w+)", README, re.MULTILINE))))
def test_commands_exist(command):
    from codec.cli.main import main

    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0


def test_example_picture_is_what_the_script_renders(tmp_path):
    from PIL import Image, ImageChops

    script = (ROOT / "examples" / "make_picture.py").read_text(encoding="utf-8")
    (tmp_path / "make_picture.py").write_text(script, encoding="utf-8")
    subprocess.run([sys.executable, tmp_path / "make_picture.py"], check=True)
    difference = ImageChops.difference(Image.open(tmp_path / "lake.png"), Image.open(ROOT / "examples" / "lake.png"))
    assert max(high for _, high in difference.getextrema()) <= 1
