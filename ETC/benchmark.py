"""How fast? The original's way against this repository against the machine's limit, in one run.

python -m ETC.benchmark all

Each measurement is made in a fresh process, after a warm-up; the ways take turns, and what is
printed are medians. The original's way is rebuilt here from its description: one full-size photo at
a time through MTCNN; NCHW, fp32 and the package's own network in training, scikit-learn's F1 on
every batch; a pass for each head in prediction. The limit does without what can't be done without:
for crop it decodes and encodes, for train and test it runs the network on tensors in memory.
"""

import contextlib
import importlib.metadata
import itertools
import multiprocessing
import platform
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from config import config
from utils.cli import (
    ArgumentParser,
    InputError,
    add_machine_arguments,
    answer_early,
    leave_ctrl_c_to_the_parent,
    positive_int,
    run,
    whole_number,
)

BENCHMARKS = ("crop", "train", "test")
# Enough for seconds a measurement with EfficientNet-B3: images by benchmark and device.
IMAGES = {
    "cpu": {"crop": 500, "train": 64, "test": 160},
    "cuda": {"crop": 2000, "train": 8192, "test": 8192},
}
BATCH_SIZES = {"cpu": 16, "cuda": 64}
COLUMNS = ("benchmark", "way", "repeat", "images", "seconds", "images_per_s", "peak_mb", "gpu_mb")


def get_args_parser():
    parser = ArgumentParser(
        "python -m ETC.benchmark",
        description="Measure the original's way, this repository and the machine's limit.",
    )
    add = parser.add_argument
    # fmt: off
    add("benchmark", choices=(*BENCHMARKS, "all"), help="what to measure")
    add("--data-dir",
        help="train photos in the competition's layout (default: people drawn for the run)")
    add("--images", type=positive_int,
        help="images a measurement (default: 500, 64 and 160 for crop, train and test on a CPU, "
        "2000, 8192 and 8192 on a GPU)")
    add("--repeats", type=positive_int, default=3,
        help="measurements of each way (default: %(default)s)")
    add("--model", choices=config.NETWORKS, default=config.MODEL, metavar="NAME",
        help="network of train and test, with random weights (default: %(default)s)")
    add("--resize", type=whole_number, default=config.RESIZE,
        help="side of the network's input in pixels (default: %(default)s)")
    add("--batch-size", type=positive_int,
        help="images a step of train and test (default: 16 on a CPU, 64 on a GPU)")
    add("--augment", choices=config.AUGMENTATIONS, default="age",
        help="augmentation of train (default: %(default)s)")
    add("--csv", default="benchmark.csv", metavar="FILE",
        help="every measurement (default: %(default)s)")
    add_machine_arguments(add)
    # fmt: on
    return parser


if __name__ == "__main__":
    answer_early(get_args_parser())  # the imports below take seconds

import numpy as np
import pandas as pd
import psutil
import torch

from data.crop import crop_images
from data.labels import list_train_images
from ETC.sample import make_sample
from ETC.ways import CROP, WAYS, available
from utils.device import choose_kernels, pick_device, pick_precision, precision_name
from utils.files import check_file, write_csv


def measure_here(benchmark, way, job, connection, start_method):
    """Measure one way in this process; sends (seconds, megabytes of the GPU, what came out)."""
    multiprocessing.set_start_method(start_method, force=True)  # loaders start workers as usual
    leave_ctrl_c_to_the_parent(None)
    choose_kernels(deterministic=False)
    prepare = WAYS[benchmark][way]
    if benchmark == "crop":  # a few photos warm up
        prepare(Namespace(**{**vars(job), "files": job.files[:8]}))()
    work = prepare(job)
    if benchmark != "crop":  # all images do: they fill the cache
        work()
    on_gpu = job.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(job.device)
    start = time.perf_counter()
    result = work()
    if on_gpu:
        torch.cuda.synchronize(job.device)
    seconds = time.perf_counter() - start
    gpu = torch.cuda.max_memory_allocated(job.device) / 1e6 if on_gpu else 0
    connection.send((seconds, gpu, result if benchmark == "crop" else {}))


def resident(process):
    """Bytes in memory of a process and its children; what they share counts in each."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total


def measure(benchmark, way, job):
    """Measure one way in a process of its own; returns (seconds, peak memory, GPU memory, result),
    memory in megabytes. Raises InputError when it fails.
    """
    spawn = multiprocessing.get_context("spawn")
    connection, its_end = spawn.Pipe()
    arguments = (benchmark, way, job, its_end, multiprocessing.get_start_method())
    process = spawn.Process(target=measure_here, args=arguments)
    process.start()
    its_end.close()
    peak, result = 0, None
    try:
        while not connection.poll(0.2):
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, resident(psutil.Process(process.pid)))
        seconds, gpu, result = connection.recv()
    except EOFError as error:
        raise InputError(f"{benchmark}, {way}: failed, see above") from error
    finally:
        if result is None:  # Ctrl-C, for example
            process.terminate()
        process.join()
    return seconds, peak / 1e6, gpu, result


def repeat(benchmark, job, repeats):
    """Measure all ways of a benchmark in turn, repeats times.

    Returns a DataFrame with COLUMNS, and what each way gave the last time: {way: result}.
    """
    rows, results = [], {}
    names = [way for way in WAYS[benchmark] if available(way, job)]
    for number, way in itertools.product(range(1, repeats + 1), names):
        seconds, peak, gpu, results[way] = measure(benchmark, way, job)
        count = len(job.files)
        rows.append((benchmark, way, number, count, seconds, count / seconds, peak, gpu))
        print(f"  {way} {number}/{repeats}: {count / seconds:.1f} images/s", flush=True)
    return pd.DataFrame(rows, columns=COLUMNS), results


def summary(table):
    """A row a way: medians, and medians of the ratios to the original and to the limit, each
    taken within a repeat.
    """
    speeds = table.pivot(index="repeat", columns="way", values="images_per_s")
    rows = []
    for way, its in table.groupby("way", sort=False):
        limit = way.replace("this", "limit")
        rows.append({
            "way": way,
            "images/s": speeds[way].median(),
            "x original": (speeds[way] / speeds["original"]).median(),
            "of limit": (speeds[way] / speeds[limit]).median() if limit != way else np.nan,
            "peak MB": its["peak_mb"].median(),
            "GPU MB": its["gpu_mb"].median(),
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("way")


def compare_boxes(original, this):
    """Print how the boxes of two ways to crop, {file: box or None}, agree."""
    both = [(original[file], this[file]) for file in original if original[file] and this[file]]
    ious = np.array([iou(one, other) for one, other in both])
    print(
        f"without a face: original {sum(box is None for box in original.values())}, "
        f"this {sum(box is None for box in this.values())}; IoU of the boxes >= 0.8 on "
        f"{np.mean(ious >= 0.8):.2%} of the {len(both)} images where both find one"
    )


def iou(one, other):
    """The intersection over union of two boxes x0, y0, x1, y1."""

    def area(x0, y0, x1, y1):
        return max(0, x1 - x0) * max(0, y1 - y0)

    common = area(*map(max, one[:2], other[:2]), *map(min, one[2:], other[2:]))
    return common / (area(*one) + area(*other) - common)


def conditions(device):
    """The machine and the versions, in two lines."""
    packages = ("torch", "torchvision", "facenet-pytorch", "albumentations", "onnxruntime", "timm")
    versions = []
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    cores = f"{config.CORES} cores, {torch.get_num_threads()} threads"
    return f"{machine}, {cores}, Python {platform.python_version()}\n{', '.join(versions)}"


def make_job(args, benchmark, folder, device):
    """What the ways of a benchmark get: the arguments, with files (photos, for train and test their
    crops), folder to write to, device and precision.
    """
    count = args.images or IMAGES[device.type][benchmark]
    batch_size = args.batch_size or BATCH_SIZES[device.type]
    data_dir = Path(args.data_dir or folder / "data")
    if not args.data_dir and not data_dir.exists():
        make_sample(data_dir, people=max(6, min(128, -(-count // 7))), eval_people=6, seed=1)
    photos = data_dir / "train" / "images"
    names = list_train_images(data_dir)["file"].sample(frac=1, random_state=1).tolist()[:count]
    if benchmark != "crop":
        settings = Namespace(crop_batch_size=None, num_workers=max(1, args.num_workers))
        crops = folder / "crops" / "new_img"
        _, _, bad = crop_images(photos, crops, names, CROP, device, settings)
        if bad:
            raise InputError(f"{photos / next(iter(bad))}: {next(iter(bad.values()))}")
        photos = crops
        # Whole batches, of few crops again and again where there are no more.
        count = max(1, count // batch_size) * batch_size
        names = list(itertools.islice(itertools.cycle(names), count))
    job = {**vars(args), "batch_size": batch_size, "folder": folder, "device": device}
    precision = pick_precision("auto", device)
    return Namespace(**job, precision=precision, files=[photos / name for name in names])


def main():
    args = get_args_parser().parse_args()
    device = pick_device(args.device)
    if not 64 <= args.resize <= 4096:
        raise InputError(f"--resize {args.resize}: the networks take from 64 to 4096 pixels")
    check_file(args.csv, "give another --csv")
    print(conditions(device))
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        for benchmark in BENCHMARKS if args.benchmark == "all" else [args.benchmark]:
            job = make_job(args, benchmark, Path(folder), device)
            what = f"{len(job.files)} images"
            if benchmark != "crop":
                what += f", {job.model} at {job.resize} px, batch {job.batch_size}"
                what += f", {job.num_workers} workers, {precision_name(job.precision)}"
            print(f"\n{benchmark}: {what}, {args.repeats} repeats", flush=True)
            table, results = repeat(benchmark, job, args.repeats)
            print(summary(table).to_string(float_format="{:.2f}".format, na_rep="-"))
            if benchmark == "crop":
                compare_boxes(results["original"], results["this"])
            tables.append(table)
            write_csv(args.csv, pd.concat(tables))


if __name__ == "__main__":
    run(main)
