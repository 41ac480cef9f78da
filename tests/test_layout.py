"""The house: imports point down, and without ETC/ the rest still works."""

import ast
import graphlib
import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

# A module may import its own room and whatever has a lower number.
LEVELS = {"ETC": 5, "train": 4, "test": 4, "utils.view_model": 4, "loss": 3, "data": 2,
          "models": 2, "utils": 1, "config": 0}  # fmt: skip
PACKAGES = ("config", "utils", "data", "models", "ETC")
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.py"), *(path for p in PACKAGES for path in ROOT.glob(f"{p}/*.py")))
}


def imports(text, modules):
    """The names of our own modules that a source imports, inside its functions too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in inner]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in LEVELS)


def room_of(module):
    """The key of LEVELS for a module: its package, unless it stands for itself."""
    return module if module in LEVELS else module.partition(".")[0]


def forbidden_arrows(sources):
    """["data.crop -> models.network", ...] of sources, {module: text}; raises for a circle."""
    arrows = {module: set(imports(text, sources)) for module, text in sources.items()}
    list(graphlib.TopologicalSorter(arrows).static_order())
    found = []
    for module, targets in arrows.items():
        room = room_of(module)
        for target in sorted(targets):
            other = room_of(target)
            down = room == other or LEVELS[other] < LEVELS[room]
            if not down or (room == "ETC" and other in ("test", "utils.view_model")):
                found.append(f"{module} -> {target}")
    return found


def test_imports_point_down():
    assert {room_of(module) for module in SOURCES} | {"ETC"} == LEVELS.keys()
    assert forbidden_arrows(SOURCES) == []


@pytest.mark.parametrize(
    ("module", "line", "arrow"),
    [
        ("config.config", "import utils.cli", "utils.cli"),
        ("utils.files", "def f():\n    from models.network import NAMES", "models.network"),
        ("data.images", "import models.network as network", "models.network"),
        ("models.network", "from data.augment import resize", "data.augment"),
        ("loss", "import train", "train"),
        ("train", "from test import main", "test"),
        ("train", "from ETC import report", "ETC.report"),
        ("ETC.report", "import test", "test"),
    ],
)
def test_an_import_that_points_up_is_found(module, line, arrow):
    sources = dict.fromkeys([*SOURCES, "ETC.report"], "") | {module: line}
    assert forbidden_arrows(sources) == [f"{module} -> {arrow}"]


def test_a_circle_is_found():
    with pytest.raises(graphlib.CycleError):
        forbidden_arrows({"utils.a": "from utils import b", "utils.b": "import utils.a"})


def test_scripts_start_as_files_from_any_folder(tmp_path):
    scripts = [ROOT / "data/crop.py", ROOT / "utils/view_model.py", *ROOT.glob("ETC/*.py")]
    for script in (path for path in scripts if "cli.run(" in path.read_text(encoding="utf-8")):
        assert "if __spec__ is None:" in script.read_text(encoding="utf-8"), script
    for script in scripts[:2]:
        command = [sys.executable, script, "--version"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not (ROOT / "ETC").exists(), reason="needs ETC, to know its tests")
def test_tests_of_the_core_import_nothing_from_etc():
    for path in ROOT.glob("tests/*.py"):
        name = path.stem.removeprefix("test_")
        if f"ETC.{name}" not in SOURCES and name not in ("layout", "readme", "notebooks"):
            names = set(imports(path.read_text(encoding="utf-8"), SOURCES))
            assert not [name for name in names if name.startswith("ETC")], path.name


def test_without_etc_training_and_prediction_work(sample_dir, runs_dir, tmp_path):
    for name in ("config", "utils", "data", "models", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "test.py", "loss.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    # As a worker of pytest-xdist, it takes the data and the runs that this process has made.
    base = runs_dir.parent / "without_etc"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--basetemp", base, "-p", "no:cacheprovider",
         "tests/test_train.py", "tests/test_test.py", "-k", "of_one_step or is_the_merge"],
        cwd=tmp_path, env={**os.environ, "PYTEST_XDIST_WORKER": "etc"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
