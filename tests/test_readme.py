"""README.md speaks of commands, files and defaults that are there, README.ko.md of the same."""

import re
import shutil
import subprocess

import pytest

import data.crop
import ETC.benchmark
import ETC.check
import ETC.compare
import ETC.export
import ETC.report
import ETC.sample
import ETC.scale
import test
import train
import utils.view_model
from config import config
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE))
PARSERS = {
    "train.py": train.get_args_parser,
    "test.py": test.get_args_parser,
    "-m data.crop": data.crop.get_args_parser,
    "-m ETC.check": ETC.check.get_args_parser,
    "-m ETC.sample": ETC.sample.get_args_parser,
    "-m ETC.benchmark": ETC.benchmark.get_args_parser,
    "-m ETC.scale": ETC.scale.get_args_parser,
    "-m ETC.compare": ETC.compare.get_args_parser,
    "-m ETC.export": ETC.export.get_args_parser,
    "-m ETC.report": ETC.report.get_args_parser,
    "-m utils.view_model": utils.view_model.get_args_parser,
}
COMMANDS = re.findall(r"python ((?:-m )?[\w.]+) ?([^\n;`#]*)", BLOCKS + README)
COMMANDS += re.findall(r"torchrun [^\n`]*?((?:-m )?[\w.]*\.(?:py|crop)) ?([^\n;`#]*)", README)


@pytest.mark.parametrize(("script", "arguments"), sorted(set(COMMANDS)))
def test_every_command_is_understood(script, arguments):
    if script == "-m pip":
        files = re.findall(r"\S+\.txt", arguments)
        assert files or "--index-url" in arguments
        assert all((ROOT / file).exists() for file in files)
    elif script in ("-m pytest", "-m venv"):
        assert not arguments.strip() or (ROOT / arguments.strip()).parent.exists()
    elif arguments.strip() != "--help":
        PARSERS[script]().parse_args(arguments.replace("$k", "0").split())


def test_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([\w-]+)", BLOCKS, re.MULTILINE))
    assert targets >= {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_layout_is_the_layout():
    layout = README.split("## Layout")[1].split("```")[1]
    for name in re.findall(r"^\S+", layout, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_table_of_defaults_is_config():
    def row(name):
        (cells,) = re.findall(rf"^\| `{name}`[^|]*\|(.*)\|$", README, re.MULTILINE)
        return [cell.split()[0] for cell in cells.split("|")]

    for name in ("lr", "loss", "epochs", "augment"):
        expected = [config.HEADS[target][name] for target in ("mask", "gender", "age")]
        assert [type(value)(cell) for value, cell in zip(expected, row(f"--{name}"))] == expected
    assert row("--model") == [config.MODEL]
    for name in ("resize", "batch_size", "seed", "age_border"):
        (cell,) = row("--" + name.replace("_", "-"))
        assert int(cell.rstrip(":")) == getattr(config, name.upper())


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_windows_gets_the_commands_of_make_demo():
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo"], cwd=ROOT, capture_output=True, text=True
    ).stdout.replace("\\\n", " ")
    commands = re.findall(r"^\.venv/bin/python (.*)$", recipe, re.MULTILINE)
    windows = README.split("## Windows")[1].split("```")[1]
    assert len(commands) == 6
    for command in commands:
        # In any order of the options.
        assert sorted(command.split()) in [
            sorted(line.split()[1:]) for line in windows.splitlines()
        ]


def skeleton(text):
    """What README.md and README.ko.md share: commands and file names, headings' levels, rows of
    tables, inline code, in whatever order a sentence has it.
    """
    code = "".join(re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return {
        "code": [re.split(r"\s{2,}", line.strip())[0] for line in code.splitlines()],
        "headings": re.findall(r"^#+(?= )", prose, re.MULTILINE),
        "tables": [line.count("|") for line in prose.splitlines() if line.startswith("|")],
        "inline": sorted(re.findall(r"`[^`]+`", " ".join(prose.split()))),
    }


def test_the_korean_readme_is_in_step():
    english, korean = skeleton(README), skeleton((ROOT / "README.ko.md").read_text("utf-8"))
    for part, value in english.items():
        assert korean[part] == value
    assert len(english["code"]) > 100


def test_constraints_oldest_are_the_lower_bounds():
    bounds = {}
    for name in ("", "-onnx", "-look", "-dev"):
        text = (ROOT / f"requirements{name}.txt").read_text()
        bounds |= re.findall(r"^([\w-]+)>=([\d.]+)", text, re.MULTILINE)
    oldest = (ROOT / "constraints-oldest.txt").read_text()
    assert bounds == dict(re.findall(r"^([\w-]+)==(.+)$", oldest, re.MULTILINE))
