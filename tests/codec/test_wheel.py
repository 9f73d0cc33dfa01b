"""The wheel: its version is git's, it holds all that is used at run time, and codes a picture where nothing else is installed.

It is built without isolation, and what it depends on is reached by a line of a .pth file: nothing is downloaded. Such a line
does not start this environment's own .pth files, so an editable installation of the package is out of reach.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
VERSION = "9.8.7"
MAX_MEGABYTES = 60
ARCHIVAL = "describe-name: $Format:%(describe:tags=true,match=v*)$\n"  # git archive fills it in
FACTS = """
import json, sys
import checkpoints, codec
from codec import images
from codec.metrics import psnr_db
from codec.training.recipe import RECIPES
codec.encode_file(sys.argv[1], "a.lic", quality=30)
codec.decode_file("a.lic", "a.png")
print(json.dumps({
    "homes": [codec.__file__, str(checkpoints.FOLDER), str(RECIPES)],
    "version": codec.__version__,
    "psnr_db": psnr_db(images.load(sys.argv[1]).pixels, images.load("a.png").pixels),
}))
"""
pytestmark = [
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed"),
    pytest.mark.skipif(os.name == "nt", reason="looks for programs in bin"),
]


def run(*command, cwd: Path, **environment: str) -> str:
    """Run a program that must succeed, away from this checkout; return what it prints."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "PYTHON", "SETUPTOOLS_SCM"))}
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=clean | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commit(folder: Path, *files: str) -> None:
    """Make a git repository of some of a folder's files and tag it."""
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false")
    for arguments in (["init", "-q"], ["add", *files], ["commit", "-q", "-m", "a"], ["tag", f"v{VERSION}"]):
        run(*git, *arguments, cwd=folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of what git would have: a ``build`` folder that lies about in the checkout would end up in it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("bitstream", "checkpoints", "codec", "models"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    commit(source, "pyproject.toml")
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, cwd=out)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment of its own with the wheel in it; third-party packages are this environment's."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    here = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (site_packages / "third-party.pth").write_text("\n".join(here) + "\n")
    options = ("--no-deps", "--no-index", "--no-compile", "-q", wheel)
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", *options, cwd=folder.parent)
    return folder


@pytest.mark.slow
def test_a_wheel_holds_what_the_checkout_has_but_joint_and_is_small(wheel):
    tracked = {
        path.relative_to(ROOT).as_posix()
        for package in ("bitstream", "checkpoints", "codec", "models")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".partial")
    }
    with ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == tracked - {"checkpoints/joint.safetensors"}
    assert {"checkpoints/swift.safetensors", "codec/training/recipes/swift.toml", "codec/comparison/page.html"} <= files
    assert wheel.name == f"learned_image_codec-{VERSION}-py3-none-any.whl"
    assert wheel.stat().st_size < MAX_MEGABYTES * 10**6


@pytest.mark.slow
def test_an_installed_wheel_codes_a_picture_by_itself(installed, tmp_path):
    picture = ROOT / "examples" / "lake.png"
    bin_folder = installed / "bin"
    assert run(bin_folder / "codec", "--version", cwd=tmp_path) == f"codec, version {VERSION}\n"
    facts = json.loads(run(bin_folder / "python", "-W", "ignore", "-c", FACTS, picture, cwd=tmp_path))
    assert all(Path(home).is_relative_to(installed) for home in facts["homes"]), facts
    assert facts["version"] == VERSION
    assert facts["psnr_db"] > 25
    assert Image.open(tmp_path / "a.png").size == Image.open(picture).size
    assert json.loads(run(bin_folder / "codec", "info", "--json", "a.lic", cwd=tmp_path))["width"] == 768


def test_an_archive_has_the_version_of_its_tag(tmp_path):
    source, archive = tmp_path / "source", tmp_path / "archive"
    own = (ROOT / ".git_archival.txt").read_text()
    assert own == ARCHIVAL or re.fullmatch(r"describe-name: (v\S+)?\n", own)  # these tests run in an archive, too
    source.mkdir()
    for name in ("pyproject.toml", ".gitattributes"):
        shutil.copy(ROOT / name, source)
    (source / ".git_archival.txt").write_text(ARCHIVAL)
    commit(source, "pyproject.toml", ".gitattributes", ".git_archival.txt")
    run("git", "archive", "-o", tmp_path / "a.zip", "HEAD", cwd=source)
    with ZipFile(tmp_path / "a.zip") as packed:
        packed.extractall(archive)
    for folder in (source, archive):
        assert run(sys.executable, "-m", "setuptools_scm", cwd=folder).strip() == VERSION
