"""``codec models --install``: a checkpoint file joins the installed ones under its manifest name."""

from __future__ import annotations

import hashlib
import shutil

import pytest
from click.testing import CliRunner

import checkpoints
from bitstream.errors import CheckpointError, UsageError
from codec import Codec
from codec.cli.main import main
from codec.install import install_checkpoint
from models.manifest import is_installed, manifest


@pytest.fixture
def package(tmp_path, monkeypatch, tiny_checkpoint):
    """An installed folder whose manifest lists "tiny" without its file, and a copy of the file elsewhere."""
    folder = tmp_path / "package"
    folder.mkdir()
    sha256 = hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    row = f'[tiny]\nfile = "tiny.safetensors"\nsha256 = "{sha256}"\nmodel = "swift"\nmax_level = 768\n'
    row += "steps = 1\nparameters = 9\nrd = []\nkmac_per_pixel = { encode = 1.0, decode = 1.0 }\n"
    (folder / "manifest.toml").write_text(row)
    monkeypatch.setattr(checkpoints, "FOLDER", folder)
    monkeypatch.setattr("models.manifest.MANIFEST", folder / "manifest.toml")
    source = tmp_path / "download.safetensors"
    shutil.copy(tiny_checkpoint, source)
    return folder, source


def test_a_listed_checkpoint_is_installed_under_its_name(package, picture):
    folder, source = package
    with pytest.raises(CheckpointError, match="codec models --install tiny.safetensors"):
        Codec("tiny", "cpu")
    assert not is_installed(manifest()["tiny"])
    result = CliRunner().invoke(main, ["models", "--install", str(source)])
    assert result.exit_code == 0, result.output
    assert "installed tiny" in result.output
    assert is_installed(manifest()["tiny"])
    assert Codec("tiny", "cpu").encode(picture(10, 10))


def test_a_manifest_beside_the_file_names_it(package, tmp_path):
    folder, source = package
    text = (folder / "manifest.toml").read_text().replace("[tiny]", "[mine]").replace('"tiny.', '"../../escape.')
    (tmp_path / "manifest.toml").write_text(text)
    (folder / "manifest.toml").write_text("")
    assert install_checkpoint(source) == "mine"
    assert (folder / "mine.safetensors").exists()
    assert not list(tmp_path.parent.rglob("escape.safetensors"))
    assert manifest()["mine"]["max_level"] == 768


def test_an_unknown_checkpoint_is_refused(package):
    folder, source = package
    (folder / "manifest.toml").write_text("")
    with pytest.raises(UsageError, match="keep manifest.toml beside it"):
        install_checkpoint(source)
    assert not list(folder.glob("*.safetensors"))


def test_another_kind_of_file_is_refused(package, tmp_path):
    (tmp_path / "x.pth").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"not a \.safetensors"):
        install_checkpoint(tmp_path / "x.pth")


def test_a_damaged_file_is_refused(package):
    folder, source = package
    source.write_bytes(source.read_bytes()[:-5])
    with pytest.raises(CheckpointError):
        install_checkpoint(source)
    assert not list(folder.glob("*.safetensors"))


def test_a_taken_name_is_refused_and_nothing_is_replaced(package, tmp_path):
    folder, source = package
    (tmp_path / "manifest.toml").write_text((folder / "manifest.toml").read_text())
    other = (folder / "manifest.toml").read_text().replace('sha256 = "', 'sha256 = "00')
    (folder / "manifest.toml").write_text(other)
    with pytest.raises(UsageError, match="already the name of a checkpoint"):
        install_checkpoint(source)
    assert (folder / "manifest.toml").read_text() == other
    assert not list(folder.glob("*.safetensors"))


def test_a_row_that_the_commands_cannot_print_is_refused(package, tmp_path):
    folder, source = package
    (tmp_path / "manifest.toml").write_text((folder / "manifest.toml").read_text().replace("steps = 1\n", ""))
    (folder / "manifest.toml").write_text("")
    with pytest.raises(UsageError, match="has no steps"):
        install_checkpoint(source)


@pytest.mark.parametrize("text", ["a = 1", "[a]\nfile = 'x'", "[a]\nfile = 1\nsha256 = 'x'"])
def test_a_manifest_beside_with_strange_rows_is_refused(package, tmp_path, text):
    _, source = package
    (tmp_path / "manifest.toml").write_text(text)
    with pytest.raises(CheckpointError, match="has no file and sha256"):
        install_checkpoint(source)


def test_a_taken_name_has_a_cure_that_exists(package, tmp_path):
    """As of an older release's checkpoint, whose name is the new one's."""
    folder, source = package
    (tmp_path / "manifest.toml").write_text((folder / "manifest.toml").read_text())
    (folder / "manifest.toml").write_text((folder / "manifest.toml").read_text().replace('sha256 = "', 'sha256 = "0000'))
    result = CliRunner().invoke(main, ["models", "--install", str(source)])
    assert "tiny is already the name of a checkpoint" in result.output
    assert "give it another with --as NAME" in result.output
    result = CliRunner().invoke(main, ["models", "--install", str(source), "--as", "tiny-old"])
    assert result.exit_code == 0, result.output
    assert is_installed(manifest()["tiny-old"])
    assert manifest()["tiny"]["sha256"].startswith("0000")


def test_a_row_without_rd_is_installed(package):
    """As overfit's."""
    folder, source = package
    (folder / "manifest.toml").write_text((folder / "manifest.toml").read_text().replace("rd = []\n", ""))
    assert install_checkpoint(source) == "tiny"
    assert CliRunner().invoke(main, ["models"]).exit_code == 0


@pytest.mark.parametrize(
    "change", [("kmac_per_pixel = { encode = 1.0, decode = 1.0 }", "kmac_per_pixel = {}"), ("steps = 1\n", "")]
)
def test_a_row_that_could_not_be_listed_is_refused(package, change):
    folder, source = package
    (folder / "manifest.toml").write_text((folder / "manifest.toml").read_text().replace(*change))
    with pytest.raises(UsageError, match="its manifest row tiny has no"):
        install_checkpoint(source)


def test_a_name_for_nothing_is_refused():
    result = CliRunner().invoke(main, ["models", "--as", "mine"])
    assert result.exit_code == 2
    assert "--as names what --install adds: give both" in result.output
