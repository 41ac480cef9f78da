"""README.md speaks of commands, files and defaults that are there."""

import re

import pytest

import data.check
import data.crop
import data.sample
import test
import train
import utils.benchmark
import utils.compare
import utils.export
import utils.report
import utils.scale
import utils.view_model
from config import config
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE))
PARSERS = {
    "train.py": train.get_args_parser,
    "test.py": test.get_args_parser,
    "-m data.crop": data.crop.get_args_parser,
    "-m data.check": data.check.get_args_parser,
    "-m data.sample": data.sample.get_args_parser,
    "-m utils.benchmark": utils.benchmark.get_args_parser,
    "-m utils.scale": utils.scale.get_args_parser,
    "-m utils.compare": utils.compare.get_args_parser,
    "-m utils.export": utils.export.get_args_parser,
    "-m utils.report": utils.report.get_args_parser,
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
    elif script == "-m pytest":
        assert (ROOT / arguments.strip()).exists()
    elif arguments.strip() != "--help":
        PARSERS[script]().parse_args(arguments.replace("$k", "0").split())


def test_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make (\w+)", BLOCKS, re.MULTILINE))
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
