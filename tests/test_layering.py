"""The layers: codec → models → bitstream, never upward; light imports; short modules; no stranger's packages."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 350
MAY_IMPORT = {
    "checkpoints": {"checkpoints"},
    "bitstream": {"bitstream"},
    "models": {"models", "bitstream", "checkpoints"},
    "codec": {"codec", "models", "bitstream", "checkpoints"},
}
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def own_imports(path: Path) -> set[str]:
    """Return our top-level packages that a module imports anywhere, functions and TYPE_CHECKING blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively: write the package's name"
            found.add(str(node.module).split(".")[0])
    return found & set(MAY_IMPORT)


def run_python(code: str, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh Python with ``path`` first on PYTHONPATH, in a folder that holds none of our packages."""
    environment = dict(os.environ) | ({} if path is None else {"PYTHONPATH": str(path)})
    command = [sys.executable, "-c", code, *arguments]
    folder = Path(sys.executable).parent
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=100)


def test_every_package_has_modules():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downward_only(path):
    package = path.relative_to(ROOT).parts[0]
    assert own_imports(path) <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines, at most {MAX_LINES} are allowed: split it"


@pytest.mark.parametrize(
    "code",
    [
        "import codec",
        "from codec.cli.main import main; main(['--help'], standalone_mode=False)",
        "from codec.cli.main import main; main(['info', sys.argv[1]], standalone_mode=False)",
        "import codec; codec.info(sys.argv[1])",
        "import codec.pillow; from PIL import Image; assert Image.open(sys.argv[1]).size == (1, 1)",
    ],
    ids=["import", "--help", "info", "api-info", "pillow"],
)
def test_light_commands_load_no_torch(code, golden):
    check = "; heavy = {'torch', 'compressai', 'lightning'} & set(sys.modules); print('loaded:', *heavy); sys.exit(bool(heavy))"
    done = run_python("import sys; " + code + check, str(golden / "v1-1x1-q0.lic"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["models", "bitstream", "checkpoints"])
def test_a_strangers_package_is_one_import_error(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    done = run_python("import codec", path=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: learned-image-codec needs its own package")
    assert str(tmp_path / name) in last
    assert str(ROOT / name) in last


def test_a_strangers_module_file_is_the_same_error(tmp_path):
    (tmp_path / "models.py").write_text("")
    done = run_python("import codec", path=tmp_path)
    assert "ImportError: learned-image-codec needs its own package 'models'" in done.stderr
    assert f"Python finds {tmp_path / 'models.py'}: rename that" in done.stderr


def test_importing_our_packages_prints_nothing():
    done = run_python("import codec, bitstream, checkpoints, models")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
