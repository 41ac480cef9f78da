"""Speed and memory, measured.

python -m ETC.benchmark all      the original, this repository and the machine's limit, compared
python -m ETC.benchmark scale    does the time per image grow with the number of images?

all, or crop, train or test alone, runs each workload in a fresh process after a warm-up. They take
turns, and the medians are printed. The original is rebuilt from its description: MTCNN on one
full-size photo at a time; training in fp32 and NCHW with the package's network and scikit-learn's
F1 of every batch; one pass over the images for each head in prediction. The limit leaves out all
that can be left out: crop only decodes and encodes, train and test run the networks on one batch in
memory, again and again.

scale crops, trains on and predicts ever larger sets of drawn people by the commands that users run,
whose start counts.
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # before PyTorch

import contextlib
import importlib.metadata
import importlib.util
import io
import itertools
import multiprocessing
import os
import platform
import shutil
import subprocess
import tempfile
import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import psutil
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet as EfficientNetLite
from efficientnet_pytorch import EfficientNet
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from config import config
from data.augment import AUGMENTATIONS
from data.crop import BOX, crop_box, crop_folder, crop_split, save_crop
from data.dataset import (
    FaceDataset,
    ResizedCrops,
    build_loader,
    crop_loader,
    resize_crops,
)
from data.images import load_image
from data.labels import list_train_images
from ETC.portrait import SHOTS
from ETC.sample import make_sample
from models.inference import build_members, build_predictor, pick_backend, predict
from models.network import EFFICIENTNETS, build_network, network_name, normalization, normalize
from train import describe_head, train_one_epoch
from utils import cli
from utils.cli import InputError
from utils.device import autocast, pick_device, pick_precision
from utils.files import check_output, write_csv
from utils.metrics import classification_scores

# Enough images for a measurement of a few seconds with EfficientNet-B3.
IMAGES = {
    "cpu": {"crop": 500, "train": 64, "test": 160},
    "cuda": {"crop": 2000, "train": 8192, "test": 8192},
}
BATCH_SIZES = {"cpu": 16, "cuda": 64}
COLUMNS = ("benchmark", "way", "repeat", "images", "seconds", "images_per_s", "peak_mb", "gpu_mb")
SCALE_COLUMNS = ("what", "images", "seconds", "images_per_s", "peak_mb")
# The margins of the competition's photos, and as many looks for a face as the original's.
CROP = {**config.CROP, "face_width": None, "second_look": False}
DRAWN = 60  # people that scale draws and then repeats

# --- the workloads: each prepares for a job, from make_job, and returns the function to be timed


def crop_original(job):
    from facenet_pytorch import MTCNN

    detector = MTCNN(keep_all=True, device=job.device)

    def work():
        found = {}
        for i, file in enumerate(job.files):
            with Image.open(job.images / file) as photo:
                image = photo.convert("RGB")
            boxes, _ = detector.detect(image)
            found[file] = None if boxes is None else crop_box(boxes[0], image.size, CROP)
            box = found[file] or crop_box(None, image.size, CROP)
            image.crop(box).save(job.folder / f"{i}.jpg", quality=95)
        return found

    return work


def crop_train_photos(job, crop_dir):
    """Crop job.files of job.data_dir as train.py does; returns their manifest."""
    args = Namespace(**vars(job), crop_dir=crop_dir, crop_batch_size=None, skip_bad=False)
    with contextlib.redirect_stdout(io.StringIO()):
        return crop_split(args, "train", job.files, ["photo"] * len(job.files), CROP, job.device)


def crop_this(job):
    def work():
        manifest = crop_train_photos(job, tempfile.mkdtemp(dir=job.folder))
        rows = zip(manifest["file"], manifest["method"], manifest[BOX].to_numpy().tolist())
        return {file: box if method == "mtcnn" else None for file, method, box in rows}

    return work


def crop_limit(job):
    def recode(i, file):
        image = load_image(job.images / file)
        size = image.shape[1::-1]
        save_crop(image, (0, 0, *size), job.folder / f"{i}.jpg", size)

    def work():
        with ThreadPoolExecutor(max(1, job.num_workers)) as pool:
            list(pool.map(recode, itertools.count(), job.files))

    return work


class OriginalFaces(Dataset):
    """Crops augmented at full size, then resized and normalised: float32 (3, resize, resize)."""

    def __init__(self, job, augment):
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        steps = [A.Resize(job.resize, job.resize), A.Normalize(), ToTensorV2()]
        self.transform = A.Compose([*AUGMENTATIONS[augment](A), *steps])
        self.paths = [job.images / file for file in job.files]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        image = np.array(Image.open(self.paths[i]).convert("RGB"))
        return self.transform(image=image)["image"], i % 3


def original_loader(job, augment):
    dataset = OriginalFaces(job, augment)
    workers = 4 if job.device.type == "cuda" else 0
    return DataLoader(dataset, job.batch_size, shuffle=augment != "none", num_workers=workers)


def original_network(job):
    """The package's own network, with its own defaults; of others, this repository's in NCHW."""
    torch.backends.cudnn.deterministic = True
    if job.model not in EFFICIENTNETS:
        network = build_network(job.model, 3, job.resize).to(memory_format=torch.contiguous_format)
        return network.to(job.device)
    package = EfficientNetLite if "lite" in job.model else EfficientNet
    return package.from_name(job.model, num_classes=3).to(job.device)


def train_original(job):
    network = original_network(job).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    loader = original_loader(job, job.augment)

    def work():
        f1 = 0
        for images, targets in loader:
            images, targets = images.to(job.device), targets.to(job.device)
            logits = network(images)
            loss = F.cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            predictions = logits.argmax(dim=1).cpu().numpy()
            f1 += classification_scores(targets.cpu().numpy(), predictions, 3)["macro_f1"]

    return work


def train_this(job):
    network = build_network(job.model, 3, job.resize).to(job.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == torch.float16)
    path = resize_crops(job.images, job.manifest, job.resize, job.num_workers)
    rows = np.arange(len(job.files)) % len(job.manifest)
    views = [(job.resize, job.augment)]
    dataset = FaceDataset(ResizedCrops(path, rows), rows % 3, views, config.SEED)
    loader = build_loader(dataset, job.batch_size, job.num_workers, job.device, train=True)
    stats = torch.tensor(normalization(job.model), device=job.device)
    rates, epochs = [1e-4] * len(loader), itertools.count(1)

    def work():
        epoch = next(epochs)
        loader.sampler.set_epoch(epoch)
        dataset.epoch.fill_(epoch)
        train_one_epoch(
            network, loader, F.cross_entropy, optimizer, scaler, rates, stats, job.precision
        )

    return work


def batch_in_memory(job):
    shape = job.batch_size, job.resize, job.resize, 3
    return torch.randint(256, shape, dtype=torch.uint8).to(job.device)


def train_limit(job, network):
    """The steps of train_this on a normalised batch in memory."""
    network = network.to(job.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == torch.float16)
    stats = torch.tensor(normalization(job.model), device=job.device)
    images = normalize(batch_in_memory(job), *stats)
    targets = torch.arange(job.batch_size, device=job.device) % 3

    def work():
        for _ in range(len(job.files) // job.batch_size):
            with autocast(job.device, job.precision):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), targets)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    return work


def limit_of_package(job, module, function):
    """train_limit with a package's network."""
    build = getattr(importlib.import_module(module), function)
    return train_limit(job, build(job.model.replace("-", "_"), num_classes=3))


def test_original(job):
    networks = [original_network(job).eval() for _ in config.CLASSES]
    loader = original_loader(job, "none")

    @torch.no_grad()
    def work():
        for network in networks:
            for images, _ in loader:
                network(images.to(job.device)).softmax(dim=1).cpu().numpy()

    return work


def random_checkpoints(job):
    """A checkpoint of random weights for each head, as from find_checkpoints."""
    checkpoints = {}
    for target in config.CLASSES:
        args = Namespace(**vars(job), target=target, fold=0, tta="none")
        head = describe_head(args, 0, CROP)
        network = build_network(job.model, len(head["classes"]), job.resize)
        file = {"path": str(job.folder / f"{target}.pth"), "digest": "random"}
        checkpoints[target] = [{**head, **file, "network": network.state_dict()}]
    return checkpoints


def test_this(job, backend):
    members, views = build_members(random_checkpoints(job), job.device, backend)
    paths = [job.images / file for file in job.files]
    loader = crop_loader(paths, views, job.batch_size, job.num_workers, job.device)
    return lambda: predict(members, loader, job.device, job.precision)


def test_limit(job, backend):
    """The networks of test_this on a batch in memory."""
    heads = random_checkpoints(job).values()
    networks = [build_predictor(head[0], job.device, backend) for head in heads]
    images = batch_in_memory(job)

    @torch.inference_mode()
    def work():
        with autocast(job.device, job.precision):
            for network in networks:
                for _ in range(len(job.files) // job.batch_size):
                    network(images)

    return work


WORKLOADS = {
    "crop": {"original": crop_original, "this": crop_this, "limit": crop_limit},
    "train": {
        "original": train_original,
        "this": train_this,
        "limit": lambda job: train_limit(job, build_network(job.model, 3, job.resize)),
        "limit, timm": lambda job: limit_of_package(job, "timm", "create_model"),
        "limit, torchvision": lambda job: limit_of_package(job, "torchvision.models", "get_model"),
    },
    "test": {
        "original": test_original,
        "this, torch": lambda job: test_this(job, "torch"),
        "limit, torch": lambda job: test_limit(job, "torch"),
        "this, onnx": lambda job: test_this(job, "onnx"),
        "limit, onnx": lambda job: test_limit(job, "onnx"),
    },
}


def is_available(name, job):
    """Whether the packages of a workload are installed and have the network."""
    if "onnx" in name:
        return pick_backend("auto", job.device, job.precision) == "onnx"
    if "timm" in name:
        return job.model in EFFICIENTNETS and importlib.util.find_spec("timm") is not None
    return "torchvision" not in name or job.model.startswith("efficientnet-b")


# --- all, crop, train, test


def peak_memory(has_ended):
    """The most megabytes of memory that a child process and all below it have until has_ended();
    what they share counts in each.
    """
    peak = 0
    while not has_ended():
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                family = child, *child.children(recursive=True)
                peak = max(peak, sum(member.memory_info().rss for member in family))
        time.sleep(0.2)
    return peak / 1e6


def measure_here(benchmark, name, job):
    """Time a workload in this process: returns (seconds, megabytes of the GPU, its result)."""
    multiprocessing.set_start_method(None, force=True)  # loaders start workers as usual
    prepare = WORKLOADS[benchmark][name]
    work = prepare(job)
    warm_up = work
    if benchmark == "crop":  # a few photos are enough
        warm_up = prepare(Namespace(**{**vars(job), "files": job.files[:8]}))
    warm_up()
    on_gpu = job.device.type == "cuda"
    wait = partial(torch.cuda.synchronize, job.device) if on_gpu else lambda: None
    wait()
    start = time.perf_counter()
    result = work()
    wait()
    seconds = time.perf_counter() - start
    gpu = torch.cuda.max_memory_allocated(job.device) / 1e6 if on_gpu else 0
    return seconds, gpu, result


def measure(benchmark, name, job):
    """Measure a workload in a fresh process: returns (seconds, megabytes of memory at the peak,
    megabytes of the GPU, its result).
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(measure_here, benchmark, name, job)
        peak = peak_memory(future.done)
        seconds, gpu, result = future.result()
    return seconds, peak, gpu, result


def summary(table):
    """A row per workload: medians, and medians of the ratios to the original and to the limit, each
    ratio taken within a repeat. table: with COLUMNS, of one benchmark.
    """
    speeds = table.pivot(index="repeat", columns="way", values="images_per_s")
    limits = {name: name.replace("this", "limit") for name in speeds if name.startswith("this")}
    of_limit = {name: (speeds[name] / speeds[limit]).median() for name, limit in limits.items()}
    medians = table.groupby("way", sort=False).median(numeric_only=True)
    columns = {
        "images/s": medians["images_per_s"],
        "x original": speeds.div(speeds["original"], axis=0).median(),
        "of limit": pd.Series(of_limit),
        "peak MB": medians["peak_mb"],
        "GPU MB": medians["gpu_mb"],
    }
    return pd.DataFrame(columns, index=medians.index)


def compare_boxes(original, this):
    """Print how well two {file: box or None} agree."""
    from torchvision.ops import box_iou

    pairs = [(original[file], this[file]) for file in original if original[file] and this[file]]
    boxes = torch.tensor(pairs).reshape(-1, 2, 4)
    agree = (box_iou(boxes[:, 0], boxes[:, 1]).diagonal() >= 0.8).double().mean()
    print(
        f"without a face: original {sum(box is None for box in original.values())}, "
        f"this {sum(box is None for box in this.values())}; IoU of the boxes >= 0.8 on "
        f"{agree:.2%} of the {len(pairs)} images where both find one"
    )


def describe_machine(device):
    """The machine and the versions, in two lines."""
    packages = ("torch", "torchvision", "facenet-pytorch", "albumentations", "onnxruntime", "timm")
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    versions = [f"{name} {installed[name]}" for name in packages if name in installed]
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    cores = f"{config.CORES} cores, {torch.get_num_threads()} threads"
    return f"{machine}, {cores}, Python {platform.python_version()}\n{', '.join(versions)}"


def make_job(args, benchmark, folder, device):
    """What the workloads of a benchmark get: args and what follows from them. files are photos in
    the folder images or, for train and test, crops, with a manifest.
    """
    count = args.images or IMAGES[device.type][benchmark]
    job = Namespace(**vars(args), augment="age")
    job.device, job.precision, job.folder = device, pick_precision("auto", device), folder
    job.batch_size = args.batch_size or BATCH_SIZES[device.type]
    job.data_dir = Path(args.data_dir or folder / "data")
    if not args.data_dir and not job.data_dir.exists():
        people = max(6, min(128, -(-count // len(SHOTS))))
        make_sample(job.data_dir, people, eval_people=6, seed=1)
    files = list_train_images(job.data_dir)["file"].sample(frac=1, random_state=1)
    job.images, job.files = job.data_dir / "train" / "images", files.tolist()[:count]
    if benchmark != "crop":
        job.manifest = crop_train_photos(job, folder / "crops")
        job.images = crop_folder(job.data_dir, folder / "crops", "train")
        # Whole batches; where there are too few crops, some of them several times.
        count = max(1, count // job.batch_size) * job.batch_size
        job.files = list(itertools.islice(itertools.cycle(job.files), count))
    return job


def measure_workloads(args):
    device = pick_device(args.device)
    print(describe_machine(device))
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        for benchmark in WORKLOADS if args.benchmark == "all" else [args.benchmark]:
            job = make_job(args, benchmark, Path(folder), device)
            count = len(job.files)
            what = f"{count} images"
            if benchmark != "crop":
                what += f", {job.model} at {job.resize} px, batch {job.batch_size}"
                what += f", {job.num_workers} workers, {job.precision}"
            print(f"\n{benchmark}: {what}, {args.repeats} repeats", flush=True)
            rows, boxes = [], {}
            names = [name for name in WORKLOADS[benchmark] if is_available(name, job)]
            for repeat, name in itertools.product(range(1, args.repeats + 1), names):
                seconds, peak, gpu, boxes[name] = measure(benchmark, name, job)
                rows.append((benchmark, name, repeat, count, seconds, count / seconds, peak, gpu))
                print(f"  {name} {repeat}/{args.repeats}: {count / seconds:.1f} images/s",
                      flush=True)  # fmt: skip
            tables.append(pd.DataFrame(rows, columns=COLUMNS))
            print(summary(tables[-1]).to_string(float_format="{:.2f}".format, na_rep="-"))
            if benchmark == "crop":
                compare_boxes(boxes["original"], boxes["this"])
            write_csv(args.output, pd.concat(tables))


# --- scale


def repeat_people(drawn, folder, people):
    """Make a data set of so many people in folder, copies of those in the data set drawn, by hard
    links. Each of their photos is both a train and an eval photo.
    """
    table = pd.read_csv(drawn / "train" / "train.csv", dtype=str)
    table = table.iloc[np.arange(people) % len(table)].reset_index(drop=True)
    originals = table["path"].tolist()
    table["id"] = [f"{i:06d}" for i in range(people)]
    table["path"] = table["id"] + "_" + table["path"].str.split("_", n=1).str[1]
    evaluated = folder / "eval" / "images"
    evaluated.mkdir(parents=True)
    for original, path in zip(originals, table["path"]):
        person = folder / "train" / "images" / path
        shutil.copytree(drawn / "train" / "images" / original, person, copy_function=os.link)
        for photo in person.iterdir():
            os.link(photo, evaluated / f"{path}_{photo.name}")
    write_csv(folder / "train" / "train.csv", table)
    names = sorted(photo.name for photo in evaluated.iterdir())
    write_csv(folder / "eval" / "info.csv", pd.DataFrame({"ImageID": names, "ans": 0}))


def measure_command(*command):
    """Run a command of this repository: returns its seconds and megabytes of memory at the peak.
    Raises InputError when it fails.
    """
    command = [sys.executable, *map(str, command)]
    start = time.perf_counter()
    root = Path(__file__).parents[1]
    environment = {**os.environ, "MAG_CROP_DIR": ""}  # not where the user's own crops are
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=root, env=environment)
    peak = peak_memory(lambda: process.poll() is not None)
    if process.returncode:
        raise InputError(f"{' '.join(command[1:])}: failed, see above")
    return time.perf_counter() - start, peak


def measure_scale(args):
    machine = ["--device", args.device, "--num-workers", args.num_workers]
    train = ["train.py", "--epochs", 1, "--model", args.model, "--resize", args.resize,
             "--no-pretrained", *machine, "--target"]  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        drawn, runs = folder / "drawn", folder / "runs"
        make_sample(drawn, DRAWN, eval_people=6, seed=1)
        for target in config.CLASSES:
            measure_command(*train, target, "--data-dir", drawn, "--output-dir", runs)
        for wanted in dict.fromkeys(args.images):
            data, people = folder / f"{wanted}", -(-wanted // len(SHOTS))
            repeat_people(drawn, data, people)
            commands = {
                "crop": ["-m", "data.crop", "--data-dir", data, *machine, "--split", "train"],
                "train": [*train, "mask", "--data-dir", data, "--output-dir", data / "runs"],
                "test": ["test.py", "--data-dir", data, *machine, "--runs", runs,
                         "--output", data / "submission.csv"],
            }  # fmt: skip
            measure_command(*commands["test"])  # crops, which test below then needn't
            for what, command in commands.items():
                seconds, peak = measure_command(*command)
                count = people * len(SHOTS)
                rows.append((what, count, seconds, count / seconds, peak))
                print(f"{what:<6}{count:>7} images{count / seconds:>8.1f} images/s{peak:>8.0f} MB",
                      flush=True)  # fmt: skip
            write_csv(args.output, pd.DataFrame(rows, columns=SCALE_COLUMNS))


# fmt: off
def get_args_parser():
    parser = cli.ArgumentParser("python -m ETC.benchmark", description="Measure speed and memory.")
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    add = commands.add_parser("all", aliases=[*WORKLOADS],
        help="compare the original, this repository and the machine's limit").add_argument
    add("--data-dir",
        help="train photos in the competition's layout (default: people drawn for the benchmark)")
    add("--images", type=cli.positive_int,
        help="images per measurement (default: enough for a few seconds with EfficientNet-B3)")
    add("--repeats", type=cli.positive_int, default=3,
        help="measurements of each workload (default: %(default)s)")
    add("--batch-size", type=cli.positive_int,
        help="images per step of train and test (default: 16 on a CPU, 64 on a GPU)")
    add_shared_arguments(add, config.MODEL, config.RESIZE, "benchmark.csv")
    add = commands.add_parser("scale", help="measure ever larger sets of photos").add_argument
    add("--images", type=cli.positive_int, nargs="+", default=[1000, 4000, 16000], metavar="N",
        help="sizes of the sets (default: 1000 4000 16000)")
    add_shared_arguments(add, "efficientnet-lite0", 112, "scale.csv")
    return parser


def add_shared_arguments(add, model, resize, output):
    add("--model", type=network_name, default=model, metavar="NAME",
        help="network of train and test, with random weights (default: %(default)s)")
    add("--resize", type=cli.input_size, default=resize,
        help="side of the network's input in pixels, 64 to 4096 (default: %(default)s)")
    add("--output", default=output, metavar="FILE",
        help="every measurement, as CSV (default: %(default)s)")
    cli.add_machine_arguments(add)
# fmt: on


def main():
    args = get_args_parser().parse_args()
    check_output(args.output, [".csv"], [])
    measure_scale(args) if args.benchmark == "scale" else measure_workloads(args)


if __name__ == "__main__":
    cli.run(main)
