"""The documentation speaks of commands, files, links and defaults that exist, in both languages."""

import importlib
import re
import shutil
import subprocess

import pytest

from config import config
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("ETC/*.md"))
    if path.name != "README.ko.md"
}
COMMAND = r"(?:python|nproc-per-node \d|:29500) ((?:-m )?[a-zA-Z][\w.]+) ?([^\n;`#]*)"
COMMANDS = sorted({command for text in PAGES.values() for command in re.findall(COMMAND, text)})
needs_etc = pytest.mark.skipif(not (ROOT / "ETC").exists(), reason="needs ETC")


@pytest.mark.parametrize(("script", "arguments"), COMMANDS)
def test_every_command_is_understood(script, arguments, monkeypatch):
    name = script.removeprefix("-m ").removesuffix(".py")
    if name == "pip":
        files = re.findall(r"\S+\.txt", arguments)
        assert files or "install" in arguments
        assert all((ROOT / file).exists() for file in files)
    elif name in ("pytest", "venv"):
        assert all((ROOT / path).exists() for path in re.findall(r"tests\S+", arguments))
    elif name[:3] != "ETC" or (ROOT / "ETC").exists():
        script = importlib.import_module(name)
        if arguments.strip() not in ("", "--help"):  # a sentence names a command without arguments
            monkeypatch.setattr("sys.argv", [name, *arguments.replace("$k", "0").split()])
            # train.py's own checks what argparse can't.
            getattr(script, "parse_args", lambda: script.get_args_parser().parse_args())()


def anchor(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@needs_etc
def test_links_lead_somewhere():
    count = 0
    for page, text in PAGES.items():
        for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
            name, _, place = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name}: {link}"
            if place:
                headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
                assert place in map(anchor, headings), f"{page.name}: {link}"
            count += 1
    assert count > 10


def test_make_targets_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([\w-]+)", "\n".join(PAGES.values()), re.MULTILINE))
    assert targets >= {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@needs_etc
def test_layout_is_the_layout():
    layout = README.split("## Layout")[1].split("```")[1]
    for name in re.findall(r"^\S+", layout, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_table_of_defaults_is_config():
    def row(name):
        (cells,) = re.findall(rf"^\| `{name}`[^|]*\|(.*)\|$", README, re.MULTILINE)
        return [cell.split()[0].rstrip(",:") for cell in cells.split("|")]

    for name in ("lr", "loss", "epochs", "augment"):
        expected = [defaults[name] for defaults in config.DEFAULTS.values()]
        assert [type(value)(cell) for value, cell in zip(expected, row(f"--{name}"))] == expected
    assert row("--model") == [config.MODEL]
    for name in ("resize", "batch_size", "seed", "fold", "age_border"):
        assert int(*row("--" + name.replace("_", "-"))) == getattr(config, name.upper())
    assert [config.CROP["margin_x"], config.CROP["margin_y"], config.FOCAL_GAMMA] == [20, 30, 2]
    assert re.search(r"`--margin-x`, `--margin-y` \| 20 and 30 pixels", README)
    assert "`--focal-gamma 2`" in README


@needs_etc
@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_windows_gets_the_commands_of_make_demo():
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo"], cwd=ROOT, capture_output=True, text=True
    ).stdout.replace("\\\n", " ")
    commands = re.findall(r"^\.venv/bin/python (.*)$", recipe, re.MULTILINE)
    windows = PAGES[ROOT / "ETC/MACHINES.md"].split("## Windows")[1].split("```")[1]
    lines = [sorted(line.split()[1:]) for line in windows.splitlines()]
    assert len(commands) == 8
    assert all(sorted(command.split()) in lines for command in commands)


def skeleton(text):
    """What README.md and README.ko.md share: the commands and files in code blocks, the levels of
    headings, the sizes of tables, and the inline code, in whatever order a sentence has it.
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
    assert len(english["code"]) > 30


def test_constraints_oldest_are_the_lower_bounds():
    bounds = {}
    for path in ROOT.glob("requirements*.txt"):
        bounds |= re.findall(r"^([\w-]+)>=([\d.]+)", path.read_text(), re.MULTILINE)
    oldest = (ROOT / "constraints-oldest.txt").read_text()
    assert bounds == dict(re.findall(r"^([\w-]+)==(.+)$", oldest, re.MULTILINE))
