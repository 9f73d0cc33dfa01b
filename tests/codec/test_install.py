"""``codec models --install``: a checkpoint file joins the installed ones under its manifest name."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import checkpoints
from bitstream.errors import CheckpointError, UsageError, WriteError
from codec import Codec
from codec.cli.main import main
from codec.files import locked
from codec.install import install_checkpoint
from codec.release import add_to_manifest
from models.manifest import check_name, installed, manifest, name_of, own_folder, read_manifest


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
    monkeypatch.setenv("LIC_CHECKPOINTS", str(tmp_path / "own"))
    source = tmp_path / "download.safetensors"
    shutil.copy(tiny_checkpoint, source)
    return folder, source


def test_a_listed_checkpoint_is_installed_under_its_name(package, picture):
    folder, source = package
    with pytest.raises(CheckpointError, match="codec models --install tiny.safetensors"):
        Codec("tiny", "cpu")
    assert installed()["tiny"][1] is None
    result = CliRunner().invoke(main, ["models", "--install", str(source)])
    assert result.exit_code == 0, result.output
    assert "installed tiny" in result.output
    assert installed()["tiny"][1] is not None
    assert Codec("tiny", "cpu").encode(picture(10, 10))


def test_a_manifest_beside_the_file_names_it(package, tmp_path):
    folder, source = package
    text = (folder / "manifest.toml").read_text().replace("[tiny]", "[mine]").replace('"tiny.', '"../../escape.')
    (tmp_path / "manifest.toml").write_text(text)
    (folder / "manifest.toml").write_text("")
    assert install_checkpoint(source) == "mine"
    assert (tmp_path / "own" / "mine.safetensors").exists()
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
    assert installed()["tiny-old"][1] is not None
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


def test_the_package_is_not_touched_and_may_be_replaced(package, tmp_path):
    """As an update does it: what a user installed stays, also where the new package has its name for other weights."""
    folder, source = package
    (tmp_path / "manifest.toml").write_text((folder / "manifest.toml").read_text())
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (folder / "manifest.toml").write_text("")
    assert install_checkpoint(source) == "tiny"
    assert list(manifest()) == ["tiny"]
    other = next(iter(before.values())).decode().replace('sha256 = "', 'sha256 = "0000')
    (folder / "manifest.toml").write_text(other)
    short = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    assert list(manifest()) == ["tiny", f"tiny-{short}"]
    assert Codec(f"tiny-{short}", "cpu").model.checkpoint.sha256.startswith(short)
    assert name_of(bytes.fromhex(short)) == f"tiny-{short}"
    assert install_checkpoint(source) == f"tiny-{short}"  # again, as where its file is damaged
    assert list(manifest()) == ["tiny", f"tiny-{short}"]
    assert {path.name for path in folder.iterdir()} == {"manifest.toml"}


def test_a_damaged_file_is_mended_by_installing_it_again(package, tmp_path):
    folder, source = package
    (folder / "tiny.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="SHA-256"):
        Codec("tiny", "cpu")
    install_checkpoint(source)
    assert Codec("tiny", "cpu").encode(np.zeros((8, 8, 3), np.uint8))


def test_the_own_folder_is_the_environments_or_the_users(monkeypatch, tmp_path):
    assert own_folder() == Path(os.devnull) / "none"
    monkeypatch.delenv("LIC_CHECKPOINTS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert own_folder() == tmp_path / "learned-image-codec" / "checkpoints"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert own_folder() == tmp_path / ".local" / "share" / "learned-image-codec" / "checkpoints"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert list(manifest())  # the package's
    with pytest.raises(UsageError, match="set LIC_CHECKPOINTS"):
        own_folder()


@pytest.mark.usefixtures("package")
def test_a_folder_that_cannot_be_made_is_said(package, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIC_CHECKPOINTS", str(tmp_path / "file" / "own"))
    with pytest.raises(WriteError, match="cannot be made .*: set LIC_CHECKPOINTS"):
        install_checkpoint(package[1])


def test_the_packages_names_are_taken_in_the_own_folder(package, tmp_path):
    with pytest.raises(UsageError, match="tiny is already the name of a checkpoint that the package has: choose another"):
        check_name(tmp_path / "own", "tiny", sha256="00", overwrite=True)
    check_name(tmp_path / "elsewhere", "tiny", sha256="00")


def test_rows_of_several_processes_are_all_kept(tmp_path):
    """Each reads the list, and writes it with its own row: one at a time."""
    threads = [threading.Thread(target=lambda name=name: _add(tmp_path, name)) for name in map(str, range(12))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read_manifest(tmp_path / "manifest.toml")) == set(map(str, range(12)))


def _add(folder, name):
    with locked(folder):
        rows = read_manifest(folder / "manifest.toml") if (folder / "manifest.toml").exists() else {}
        time.sleep(0.01)
        assert name not in rows
        add_to_manifest(folder / "manifest.toml", name, {"file": name, "sha256": name})


def test_the_packages_weights_are_installed_beside_others_of_that_name(package, tmp_path):
    """Those of the release before, perhaps, which a wheel left out too."""
    folder, source = package
    (tmp_path / "own").mkdir()
    row = {"file": "tiny.safetensors", "sha256": "00" * 32}
    add_to_manifest(tmp_path / "own" / "manifest.toml", "tiny", row)
    assert list(manifest()) == ["tiny", "tiny-00000000"]
    assert installed()["tiny"][1] is None
    assert install_checkpoint(source) == "tiny"
    assert Codec("tiny", "cpu").model.checkpoint.sha256 == manifest()["tiny"]["sha256"]
    assert list(manifest())[:2] == ["tiny", "tiny-00000000"]


def test_weights_are_found_by_what_they_are_whatever_they_are_called(package, tmp_path):
    """A later package lists, without its file, what the user has by another name."""
    folder, source = package
    (tmp_path / "manifest.toml").write_text((folder / "manifest.toml").read_text())
    packaged = (folder / "manifest.toml").read_text()
    (folder / "manifest.toml").write_text("")
    assert install_checkpoint(source, "mine") == "mine"
    (folder / "manifest.toml").write_text(packaged)
    assert list(manifest()) == ["tiny", "mine"]
    assert Codec("tiny", "cpu").model.checkpoint.sha256 == Codec("mine", "cpu").model.checkpoint.sha256
