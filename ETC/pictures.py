"""Draw the pictures of README.md from what `make demo` left behind: `python -m ETC.pictures`

people.webp and run.webp, in ETC/. The latter takes a screenshot, for which Chromium is needed.
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # noqa: F401 - before PyTorch

import shutil
import subprocess
import tempfile

import pandas as pd
from PIL import Image

from ETC.sheet import arrange, draw_photo
from utils import cli
from utils.cli import InputError
from utils.files import atomic_write

FOLDER = Path(__file__).parent
CLASSES = (0, 4, 8, 9, 14, 17)  # official ones, of the people in people.webp
WINDOW = 1200, 640  # of the screenshot, in pixels


def draw_people(demo):
    """Six drawn people with the boxes of their faces and the answers of the demo's heads."""
    answers = pd.read_csv(demo / "data" / "eval" / "answers.csv")
    names = [answers.loc[answers["ans"] == ans, "ImageID"].iloc[0] for ans in CLASSES]
    photos = [str(demo / "data" / "eval" / "images" / name) for name in names]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "predictions.csv"
        command = [sys.executable, "-m", "ETC.predict", *photos, "--runs", str(demo / "runs")]
        if subprocess.run([*command, "--output", str(output)], cwd=FOLDER.parent).returncode:
            raise InputError("ETC.predict failed, as said above")
        rows = pd.read_csv(output)
    rows = rows.assign(photo=rows["file"], file=[f"class {ans}" for ans in rows["ans"]])
    tiles = [draw_photo([row]) for row in rows.to_dict("records")]
    return arrange([tiles[:3], tiles[3:]])


def draw_run(run):
    """The curves of a run above the head of its report."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        raise InputError("no chromium or google-chrome: apt install chromium")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "report.png"
        done = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={folder}/profile", f"--screenshot={picture}",
             f"--window-size={WINDOW[0]},{WINDOW[1]}", (run / "report.html").resolve().as_uri()],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if not picture.exists():
            raise InputError(f"{browser}: took no screenshot of {run}/report.html: {done.stderr}")
        return arrange(
            [[Image.open(path).convert("RGB")] for path in (run / "curves.png", picture)]
        )


def main():
    parser = cli.ArgumentParser("python -m ETC.pictures", description="Draw README.md's pictures.")
    parser.add_argument("--demo", type=Path, default=Path("demo"), metavar="FOLDER",
                        help="what make demo wrote (default: %(default)s)")  # fmt: skip
    demo = parser.parse_args().demo.resolve()
    if not (demo / "submission.csv").exists():
        raise InputError(f"{demo}: no finished demo; run make demo first")
    for name, picture in (
        ("people.webp", draw_people(demo)),
        ("run.webp", draw_run(demo / "runs" / "age_fold0")),
    ):
        with atomic_write(FOLDER / name) as file:
            picture.save(file, "WEBP", quality=80)
        print(f"{FOLDER / name}: {picture.width} x {picture.height} pixels")


if __name__ == "__main__":
    cli.run(main)
