"""From labelled photos to batches: the door through which train.py and test.py read data."""

import hashlib
import signal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.augment import apply_transform, build_transform
from data.crop import crop_folder, crop_sets, crop_settings
from data.images import load_image
from data.labels import head_labels
from utils.cli import InputError


class FaceDataset(Dataset):
    """Cropped faces at one or more sizes, each with its label.

    files: paths of crops; labels: int64 (N,); transforms: from build_transform, one a size.
    An item's key is (epoch, index); its pixels depend on these, seed and the transform's place
    in the list alone, so that a transform listed twice gives two views.
    Items: one uint8 RGB tensor (resize, resize, 3) per transform, then the label.
    """

    def __init__(self, files, labels, transforms, seed=0):
        self.files, self.labels, self.transforms, self.seed = files, labels, transforms, seed

    def __len__(self):
        return len(self.files)

    def __getitem__(self, key):
        epoch, index = key
        try:
            image = load_image(self.files[index])
        except InputError as error:
            raise InputError(f"{error}; delete this crop and it is made anew") from error
        images = (
            # Places count from 1: numpy takes [1, 2] and [1, 2, 0] for one seed.
            torch.from_numpy(apply_transform(transform, image, [self.seed, epoch, index, place]))
            for place, transform in enumerate(self.transforms, start=1)
        )
        return *images, self.labels[index]


class EpochSampler(Sampler):
    """Yields the keys (epoch, index) of a FaceDataset; set .epoch before each pass.

    The epoch travels to the workers with each index, so that workers can live through all epochs.
    """

    def __init__(self, size, shuffle, seed):
        self.size, self.shuffle, self.seed, self.epoch = size, shuffle, seed, 0

    def __len__(self):
        return self.size

    def __iter__(self):
        order = range(self.size)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        return ((self.epoch, int(index)) for index in order)


def leave_ctrl_c_to_the_parent(worker):
    """A worker_init_fn: else a worker may die of Ctrl-C first, and that looks like a fault."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def build_loader(dataset, batch_size, num_workers, device, shuffle=False):
    """A DataLoader over dataset whose sampler, at loader.sampler, is an EpochSampler."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=EpochSampler(len(dataset), shuffle, dataset.seed),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=leave_ctrl_c_to_the_parent,
        pin_memory=device.type == "cuda",
        # A loader draws a seed now and then, how often depends on its workers: not from the
        # generator that dropout uses.
        generator=torch.Generator(),
    )


def load_fold(images, args, device):
    """The train and valid DataLoaders of args.target and args.fold, and a digest, one string that
    other photos or labels would change; crops what is missing.

    images: from list_train_images, with the column fold. Train labels use args.age_border, valid
    labels the official border. Raises InputError for bad data.
    """
    photos = ("train", images["file"].tolist(), images["shot"].tolist())
    [manifest] = crop_sets(args, [photos], crop_settings(args), device)
    # Its size tells whether a photo is the same, on another machine, too.
    images = images.assign(source_size=manifest["source_size"].to_numpy())
    images = images[(manifest["method"] != "bad").to_numpy()]  # all, but with --skip-bad
    folder = crop_folder(args.data_dir, args.crop_dir, "train")

    def loader(rows, labels, augment, shuffle):
        dataset = FaceDataset(
            [folder / file for file in rows["file"]],
            labels,
            [build_transform(args.resize, augment)],
            args.seed,
        )
        return build_loader(dataset, args.batch_size, args.num_workers, device, shuffle)

    train, valid = images[images["fold"] != args.fold], images[images["fold"] == args.fold]
    if train.empty or valid.empty:
        raise InputError(f"{args.data_dir}: no readable photos are left to train or validate on")
    train_labels = head_labels(train, args.target, args.age_border)
    return (
        loader(train, train_labels, args.augment, shuffle=True),
        loader(valid, head_labels(valid, args.target), "none", shuffle=False),
        hashlib.sha256(images.to_csv(index=False, lineterminator="\n").encode()).hexdigest(),
    )
