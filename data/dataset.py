"""Datasets and loaders of labelled face crops, for training and prediction."""

import contextlib
import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from tqdm import tqdm

from config import config
from data.augment import augment, build_augmentation, resize
from data.crop import check_unchanged, crop_folder, crop_lock
from data.images import load_image
from data.labels import head_labels
from utils.cli import InputError, start_worker
from utils.device import gather, is_first, progress_off, rank, world_size
from utils.files import atomic_write, make_folder, remove_leftovers


class CropFiles:
    """Crops as a sequence of uint8 RGB arrays (H, W, 3), read from their files when asked for."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        try:
            return load_image(self.paths[i])
        except InputError as error:
            way_out = "delete this crop, or the whole folder, to have it made anew"
            raise InputError(f"{error}; {way_out}") from error


@lru_cache(maxsize=2)
def map_file(path):
    """The array in a .npy file, mapped to memory by each process for itself."""
    try:
        return np.load(path, mmap_mode="r")
    except OSError as error:  # removed by a command with other crops, or not mapped to memory here
        raise InputError(f"{path}: can't be mapped ({error}); try --no-cache") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: damaged; delete it to have it made anew") from error


class ResizedCrops:
    """Rows of a file of resize_crops as a sequence of uint8 RGB arrays (side, side, 3)."""

    def __init__(self, path, rows):
        self.path, self.rows = path, rows
        map_file(path)  # then forked workers can read it even if other crops replace the file

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return np.array(map_file(self.path)[self.rows[i]])


class FaceDataset(Dataset):
    """Face crops at one or more sizes, augmented, each with its label.

    crops: CropFiles or ResizedCrops; labels: int64 (N,); views: [(side in pixels, augmentation
    name)]; seed: of the augmentation, whose pixels depend on seed, epoch, i and view alone.
    Items: a uint8 RGB tensor (side, side, 3) for each view, then the label.
    """

    def __init__(self, crops, labels, views, seed=0):
        self.crops, self.labels, self.seed = crops, labels, seed
        self.views = [(side, build_augmentation(name)) for side, name in views]
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by all workers

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, i):
        crop, epoch = self.crops[i], self.epoch.item()
        # From 1, so that a seed gives the same pixels as in published runs.
        images = (
            torch.from_numpy(augment(steps, resize(crop, side), [self.seed, epoch, i, view]))
            for view, (side, steps) in enumerate(self.views, start=1)
        )
        return *images, self.labels[i]


def build_loader(dataset, batch_size, num_workers, device, train=False):
    """A DataLoader of this process's share of dataset: if train, of a shuffled epoch; otherwise
    every world_size()-th batch, for gather_batches. batch_size: if train, of all processes
    together, otherwise of each.
    """
    if train:
        # Times 1000, as the sampler shuffles by seed + epoch: else neighbouring seeds share orders.
        sampler = DistributedSampler(dataset, world_size(), rank(), seed=1000 * dataset.seed)
        batches = {"sampler": sampler, "batch_size": batch_size // world_size()}
    else:
        order = torch.arange(len(dataset)).split(batch_size)
        batches = {"batch_sampler": [batch.tolist() for batch in order[rank() :: world_size()]]}
    return DataLoader(
        dataset,
        **batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=start_worker,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else loaders would change what dropout draws
    )


def crop_loader(paths, views, batch_size, num_workers, device):
    """A DataLoader of the crops at paths, to predict: of a FaceDataset whose labels are all 0."""
    crops = CropFiles(paths)
    dataset = FaceDataset(crops, np.zeros(len(crops), np.int64), views, config.SEED)
    return build_loader(dataset, batch_size, num_workers, device)


def resize_crops(folder, manifest, side, num_workers):
    """Resize all crops of a manifest once, into a file beside them that training maps to memory:
    uint8 (photos, side, side, 3). Returns its path, which changes when the crops do.
    """
    digest = hashlib.sha256(manifest.to_csv(index=False).encode()).hexdigest()[:16]
    path = folder.parent / f"resized_{side}.{digest}.npy"
    if is_first() and not path.exists():
        crops = CropFiles([folder / file for file in manifest["file"]])
        make_folder(folder.parent, "use --no-cache")
        with crop_lock(folder):
            check_unchanged(folder, manifest)
            if not path.exists():  # another command may have made it
                remove_leftovers(folder.parent)
                write_resized(path, crops, side, max(1, num_workers))
        for other in folder.parent.glob(f"resized_{side}.*.npy"):
            if other != path:
                with contextlib.suppress(OSError):  # gone, or on Windows read by a training
                    other.unlink()
    gather(None)  # the other processes wait for the first one
    return path


def write_resized(path, crops, side, threads):
    """Write CropFiles, side pixels each way, as a .npy file: uint8 (N, side, side, 3)."""
    bar = tqdm(total=len(crops), desc="resize", unit="photo", disable=progress_off())
    with ThreadPoolExecutor(threads) as pool, bar, atomic_write(path) as file:
        shape = (len(crops), side, side, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in torch.arange(len(crops)).split(256):  # all at once would fill the memory
            for image in pool.map(lambda i: resize(crops[i], side), part.tolist()):
                file.write(image.data)
                bar.update()


def load_fold(images, manifest, args, device):
    """The train and the val DataLoader of args.target and args.fold, the val photos, in the
    loader's order, and a digest that other photos or labels would change.

    images: list_train_images with a column fold; manifest: from crop_split, for the same rows.
    Train labels use args.age_border or, for the loss age_distribution, are ages in years; val
    labels use the official border. val: the rows of images in the fold, with the manifest's columns
    method and source_size.
    """
    columns = manifest[["method", "source_size"]].set_axis(images.index)
    readable = (columns["method"] != "bad").to_numpy()  # all, unless args.skip_bad
    images, manifest = images.join(columns)[readable], manifest[readable]
    # Not how a face was found, which may differ between machines, nor race, which nothing learns.
    trained_on = images.drop(columns=["method", "race"], errors="ignore")
    digest = hashlib.sha256(trained_on.to_csv(index=False).encode()).hexdigest()
    is_val = (images["fold"] == args.fold).to_numpy()
    train, val = images[~is_val], images[is_val]
    if train.empty or val.empty:
        raise InputError(f"{args.data_dir}: no readable photos are left to train or validate on")
    if args.loss == "age_distribution":
        train_labels = train["age"].to_numpy(dtype=np.int64)
    else:
        train_labels = head_labels(train, args.target, args.age_border)

    folder = crop_folder(args.data_dir, args.crop_dir, "train")
    if args.no_cache:
        train_crops = CropFiles([folder / file for file in train["file"]])
        val_crops = CropFiles([folder / file for file in val["file"]])
    else:
        path = resize_crops(folder, manifest, args.resize, args.num_workers)
        train_crops = ResizedCrops(path, np.flatnonzero(~is_val))
        val_crops = ResizedCrops(path, np.flatnonzero(is_val))
    train_set = FaceDataset(train_crops, train_labels, [(args.resize, args.augment)], args.seed)
    val_set = FaceDataset(val_crops, head_labels(val, args.target), [(args.resize, "none")])
    train_loader = build_loader(train_set, args.batch_size, args.num_workers, device, train=True)
    val_loader = build_loader(val_set, args.batch_size, args.num_workers, device)
    return train_loader, val_loader, val, digest


def val_predictions(photos, logits, target):
    """The table val_predictions.csv, one row per photo.

    photos: the val photos of load_fold; logits: float tensor (N, C) of the head.
    Columns: file; person (an id's photos); shot; method (center: no face was found); gender, age
    and, if train.csv has it, race as labelled; label and predicted; p_<class>, probabilities; loss,
    -ln of the label's.
    """
    names = np.array(config.CLASSES[target])
    labels = head_labels(photos, target)
    log_probs = logits.double().log_softmax(dim=1).numpy()
    columns = ["file", "group", "shot", "method", "gender", "age", "race"]
    table = photos.filter(columns).rename(columns={"group": "person"})  # some have no race
    table["label"], table["predicted"] = names[labels], names[log_probs.argmax(axis=1)]
    for name, column in zip(names, np.exp(log_probs).round(6).T):
        table[f"p_{name}"] = column
    table["loss"] = -log_probs[np.arange(len(labels)), labels].round(6)
    return table
