"""Does the cost of an image grow with their number? `python -m ETC.scale`

Crops, trains an epoch on and predicts ever larger sets of photos, by the commands that users run,
each in a process of its own whose start counts. The photos are drawn people, many times over.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from config import config
from utils.cli import (
    ArgumentParser,
    InputError,
    add_machine_arguments,
    answer_early,
    positive_int,
    run,
    whole_number,
)

COLUMNS = ["what", "images", "seconds", "images_per_s", "peak_mb"]
DRAWN = 60  # people


def get_args_parser():
    parser = ArgumentParser(
        "python -m ETC.scale", description="Measure whether the cost of an image grows."
    )
    add = parser.add_argument
    # fmt: off
    add("--images", type=positive_int, nargs="+", default=[1000, 4000, 16000], metavar="N",
        help="sizes of the sets (default: 1000 4000 16000)")
    add("--model", choices=config.NETWORKS, default="efficientnet-lite0", metavar="NAME",
        help="network, with random weights (default: %(default)s)")
    add("--resize", type=whole_number, default=112,
        help="side of the network's input in pixels (default: %(default)s)")
    add("--csv", default="scale.csv", metavar="FILE", help="the table (default: %(default)s)")
    add_machine_arguments(add)
    # fmt: on
    return parser


if __name__ == "__main__":
    answer_early(get_args_parser())  # the imports below take seconds

import pandas as pd
import psutil

from ETC.benchmark import resident
from ETC.sample import SHOTS
from utils.files import check_file, write_csv


def repeat_people(drawn, folder, people):
    """Make a data set in folder of as many people, who look like those in drawn: links, no copies.

    Each person is in it to train on; all their photos are in it to submit for, too.
    """
    table = pd.read_csv(drawn / "train" / "train.csv", dtype=str)
    table = table.iloc[[number % len(table) for number in range(people)]].reset_index(drop=True)
    originals = table["path"].tolist()
    table["id"] = [f"{number:06d}" for number in range(people)]
    table["path"] = table["id"] + "_" + table["path"].str.split("_", n=1).str[1]
    names = []
    (folder / "eval" / "images").mkdir(parents=True)
    for original, path in zip(originals, table["path"]):
        person = folder / "train" / "images" / path
        person.mkdir(parents=True)
        for photo in sorted((drawn / "train" / "images" / original).iterdir()):
            names.append(f"{path}_{photo.name}")
            os.link(photo, person / photo.name)
            os.link(photo, folder / "eval" / "images" / names[-1])
    write_csv(folder / "train" / "train.csv", table)
    write_csv(folder / "eval" / "info.csv", pd.DataFrame({"ImageID": names, "ans": 0}))


def watch(*command):
    """Run a command of this repository; returns its seconds and the most megabytes that it and its
    children had in memory (what they share counts in each). Raises InputError when it fails.
    """
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, *map(str, command)]
        process = subprocess.Popen(command, stdout=output, stderr=output)
        its = psutil.Process(process.pid)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, resident(its))
            time.sleep(0.2)
        if process.returncode:
            output.seek(0)
            raise InputError(f"{command[1:]}: failed: {output.read()[-500:]}")
    return time.perf_counter() - start, peak / 1e6


def main():
    args = get_args_parser().parse_args()
    check_file(args.csv, "give another --csv")
    machine = ["--device", args.device, "--num-workers", args.num_workers]
    train = ["train.py", "--epochs", 1, "--model", args.model, "--resize", args.resize,
             "--no-pretrained", *machine, "--target"]  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        drawn, runs = folder / "drawn", folder / "runs"
        watch("-m", "ETC.sample", "--output", drawn, "--people", DRAWN)
        for head in config.HEADS:  # for test.py
            watch(*train, head, "--data-dir", drawn, "--output-dir", runs)
        for wanted in args.images:
            data, people = folder / f"{wanted}", -(-wanted // len(SHOTS))
            repeat_people(drawn, data, people)
            where = ["--data-dir", data]
            crop = ["-m", "data.crop", *where, *machine, "--split"]
            output = ["--output", data / "submission.csv"]
            commands = {
                "crop": [*crop, "train"],
                "train": [*train, "mask", *where, "--output-dir", data / "runs"],
                "test": ["test.py", *where, *machine, "--runs", runs, *output],
            }
            watch(*crop, "eval")
            for what, command in commands.items():
                seconds, peak = watch(*command)
                count = people * len(SHOTS)
                rows.append((what, count, seconds, count / seconds, peak))
                print(f"{what:<6}{count:>7} images{count / seconds:>8.1f} images/s{peak:>8.0f} MB",
                      flush=True)  # fmt: skip
            write_csv(args.csv, pd.DataFrame(rows, columns=COLUMNS))


if __name__ == "__main__":
    run(main)
