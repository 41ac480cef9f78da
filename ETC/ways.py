"""What ETC.benchmark measures: the original's way, this repository's and the limit.

Each way is a function of the job, a Namespace with the arguments, the device, the precision and the
files of photos or crops. It prepares, and returns the function that does the work.
"""

import importlib.util
import itertools
import os
import tempfile
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import albumentations as A
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from albumentations.pytorch import ToTensorV2
from efficientnet_lite_pytorch import EfficientNet as EfficientNetLite
from efficientnet_pytorch import EfficientNet
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from config import config
from data.augment import augmentations, build_transform
from data.cache import ImageCache
from data.crop import center_box, crop_images, crop_settings, face_box, save_crop
from data.dataset import FaceDataset, build_loader
from data.images import load_image
from models.network import build_network, fold_batch_norm, normalization, normalize
from models.onnx_runtime import missing_packages
from test import build_predictor, load_network, load_views, predict
from train import train_one_epoch
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.device import autocast
from utils.metrics import classification_scores

CROP = crop_settings(
    Namespace(**{name: getattr(config, name.upper()) for name in config.CROP_SETTINGS})
)


def crop_original(job):
    from facenet_pytorch import MTCNN

    detector = MTCNN(keep_all=True, device=job.device)

    def work():
        found = {}
        for number, file in enumerate(job.files):
            with Image.open(file) as photo:
                image = photo.convert("RGB")
            boxes, _ = detector.detect(image)
            box = None if boxes is None else face_box(boxes[0], image.size, CROP)
            found[str(file)] = box
            box = box or center_box(image.size, CROP["center_size"])
            image.crop(box).save(job.folder / f"{number}.jpg", quality=95)
        return found

    return work


def crop_this(job):
    root = Path(os.path.commonpath([file.parent for file in job.files]))
    files = [str(file.relative_to(root)) for file in job.files]

    def work():
        folder = Path(tempfile.mkdtemp(dir=job.folder)) / "new_img"
        settings = Namespace(crop_batch_size=None, num_workers=max(1, job.num_workers))
        table, _, _ = crop_images(root, folder, files, CROP, job.device, settings)
        boxes = table[["x0", "y0", "x1", "y1"]].to_numpy().tolist()
        found = zip(table["file"], table["method"], boxes)
        return {str(root / file): box if how == "mtcnn" else None for file, how, box in found}

    return work


def crop_limit(job):
    def recode(number, file):
        image = load_image(file)
        save_crop(image, (0, 0, image.shape[1], image.shape[0]), job.folder / f"{number}.jpg")

    def work():
        with ThreadPoolExecutor(max(1, job.num_workers)) as pool:
            list(pool.map(recode, itertools.count(), job.files))

    return work


class OriginalFaces(Dataset):
    """Crops augmented at their own size, then resized and normalised: float32 (3, size, size)."""

    def __init__(self, files, resize, augment):
        steps = [*augmentations(augment), A.Resize(resize, resize), A.Normalize(), ToTensorV2()]
        self.files, self.transform = files, A.Compose(steps)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        image = np.array(Image.open(self.files[index]).convert("RGB"))
        return self.transform(image=image)["image"], index % 3


def original_loader(job, augment):
    dataset = OriginalFaces(job.files, job.resize, augment)
    workers = 4 if job.device.type == "cuda" else 0
    return DataLoader(dataset, job.batch_size, shuffle=augment != "none", num_workers=workers)


def original_network(job):
    """The package's own network, as it is built by itself."""
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
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
    cache = ImageCache(len(job.files), job.resize, 10**12)
    transforms = [build_transform(job.resize, job.augment)]
    dataset = FaceDataset(job.files, np.arange(len(job.files)) % 3, transforms, config.SEED, cache)
    loader = build_loader(dataset, job.batch_size, job.num_workers, job.device, train=True)
    stats = torch.tensor(normalization(job.model), device=job.device)
    rates = np.full(len(loader), 1e-4)

    def work():
        loader.batch_sampler.epoch += 1
        train_one_epoch(
            network, loader, F.cross_entropy, optimizer, rates, scaler, stats, job.precision
        )

    return work


def bare_batch(job):
    """A batch in memory, as the fastest way has it: normalised, channels_last, on the device."""
    images = torch.randint(256, (job.batch_size, job.resize, job.resize, 3), dtype=torch.uint8)
    return normalize(
        images.to(job.device), *torch.tensor(normalization(job.model), device=job.device)
    )


def bare_steps(network, job):
    network = network.to(job.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.precision == torch.float16)
    images, targets = bare_batch(job), torch.arange(job.batch_size, device=job.device) % 3

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


def train_limit(job):
    """The steps of train_this alone."""
    return bare_steps(build_network(job.model, 3, job.resize), job)


def by_timm(job):
    import timm

    return timm.create_model(job.model.replace("-", "_"), num_classes=3)


def by_torchvision(job):
    return torchvision.models.get_model(job.model.replace("-", "_"), num_classes=3)


def test_original(job):
    networks = [original_network(job).eval() for _ in config.HEADS]
    loader = original_loader(job, "none")

    @torch.no_grad()
    def work():
        for network in networks:
            for images, _ in loader:
                network(images.to(job.device)).softmax(dim=1).cpu().numpy()

    return work


def test_checkpoints(job):
    """A checkpoint with random weights for each head: {target: [checkpoint]}."""
    found = {}
    for target, head in config.HEADS.items():
        path = job.folder / f"{target}.pth"
        if not path.exists():
            mean, std = normalization(job.model)
            checkpoint = {
                "target": target, "classes": [*head["classes"]], "fold": 0, "model": job.model,
                "resize": job.resize, "mean": [*mean], "std": [*std], "augment": "none",
                "tta": "none", "age_border": 0,
                "crop": CROP, "network": build_network(
                    job.model, len(head["classes"]), job.resize).state_dict(),
            }  # fmt: skip
            save_checkpoint(path, checkpoint)
        found[target] = [load_checkpoint(path)]
    return found


def test_this(job, backend):
    checkpoints = test_checkpoints(job)
    args = Namespace(
        batch_size=job.batch_size, num_workers=job.num_workers, age_views=0, deterministic=False
    )
    loader, views = load_views(checkpoints, job.files, args, job.device)
    members = {
        target: [(build_predictor(folds[0], job.device, backend), views)]
        for target, folds in checkpoints.items()
    }
    return lambda: predict(members, loader, views, job.device, job.precision)


def bare_passes(networks, images, job):
    @torch.inference_mode()
    def work():
        with autocast(job.device, job.precision):
            for network in networks:
                for _ in range(len(job.files) // job.batch_size):
                    network(images)

    return work


def test_limit(job, backend):
    networks = [folds[0] for folds in test_checkpoints(job).values()]
    if backend == "torch":
        networks = [fold_batch_norm(load_network(one)).to(job.device) for one in networks]
        return bare_passes(networks, bare_batch(job), job)
    images = torch.randint(256, (job.batch_size, job.resize, job.resize, 3), dtype=torch.uint8)
    return bare_passes([build_predictor(one, job.device, backend) for one in networks], images, job)


def test_other(job, build):
    network = build(job).to(job.device, memory_format=torch.channels_last).eval()
    return bare_passes([network] * len(config.HEADS), bare_batch(job), job)


WAYS = {
    "crop": {"original": crop_original, "this": crop_this, "limit": crop_limit},
    "train": {
        "original": train_original,
        "this": train_this,
        "limit": train_limit,
        "limit, timm": lambda job: bare_steps(by_timm(job), job),
        "limit, torchvision": lambda job: bare_steps(by_torchvision(job), job),
    },
    "test": {
        "original": test_original,
        "this, torch": lambda job: test_this(job, "torch"),
        "limit, torch": lambda job: test_limit(job, "torch"),
        "this, onnx": lambda job: test_this(job, "onnx"),
        "limit, onnx": lambda job: test_limit(job, "onnx"),
        "limit, timm": lambda job: test_other(job, by_timm),
        "limit, torchvision": lambda job: test_other(job, by_torchvision),
    },
}


def available(way, job):
    """Whether what a way needs is there."""
    if "onnx" in way:
        return job.device.type == "cpu" and not missing_packages()
    if "timm" in way:
        return importlib.util.find_spec("timm") is not None
    return "torchvision" not in way or "lite" not in job.model
