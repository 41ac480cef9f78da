"""From labelled photos to batches: the door through which train.py and test.py read data."""

import hashlib

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.augment import apply_transform, build_transform
from data.cache import ImageCache, cache_limit
from data.crop import crop_sets, crop_settings
from data.images import load_image
from data.labels import head_labels
from data.manifest import crop_folder
from utils.cli import InputError, leave_ctrl_c_to_the_parent
from utils.distributed import rank, world_size


class FaceDataset(Dataset):
    """Cropped faces at one or more sizes, each with its label.

    files: paths of crops; labels: int64 (N,); transforms: from build_transform, one a size.
    An item's key is (epoch, index); its pixels depend on these, seed and the transform's place
    in the list alone, so that a transform listed twice gives two views. cache: an ImageCache of
    its images at the one size of the transforms, or None.
    Items: one uint8 RGB tensor (resize, resize, 3) per transform, then the label.
    """

    def __init__(self, files, labels, transforms, seed=0, cache=None):
        self.files, self.labels, self.transforms, self.seed = files, labels, transforms, seed
        self.cache = cache

    def __len__(self):
        return len(self.files)

    def __getitem__(self, key):
        epoch, index = key
        image = self.load(index)
        images = (
            # Places count from 1: numpy takes [1, 2] and [1, 2, 0] for one seed.
            torch.from_numpy(apply_transform(transform, image, [self.seed, epoch, index, place]))
            for place, transform in enumerate(self.transforms, start=1)
        )
        return *images, self.labels[index]

    def load(self, index):
        """The crop at index, uint8 (H, W, 3): at its own size, or at the cache's if there is one.

        Raises InputError when it can't be read.
        """
        if self.cache and (image := self.cache.get(index)) is not None:
            return image
        try:
            image = load_image(self.files[index])
        except InputError as error:
            raise InputError(f"{error}; delete this crop and it is made anew") from error
        if self.cache:
            image = self.cache.put(index, image)
        return image


class EpochBatches(Sampler):
    """Yields this process's part of each batch: lists of the keys (epoch, index) of a FaceDataset.

    train: in an order shuffled anew in each epoch, each process taking every world-th image of
    every batch. Otherwise in order, each process taking every world-th batch as a whole.
    Set .epoch before each pass: it travels to the workers with each key, so that they can live
    through all epochs. sizes: the images in each batch, of all processes together.
    """

    def __init__(self, count, batch_size, train, seed):
        self.count, self.train, self.seed, self.epoch = count, train, seed, 0
        self.rank, self.world = rank(), world_size()
        self.sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
        if train and len(self.sizes) > 1 and self.sizes[-1] < self.world:
            self.sizes[-2:] = [sum(self.sizes[-2:])]  # no process goes without an image

    def __len__(self):
        return len(self.sizes if self.train else self.sizes[self.rank :: self.world])

    def __iter__(self):
        order = np.arange(self.count)
        if self.train:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        batches = np.split(order, np.cumsum(self.sizes)[:-1])
        if self.train:
            batches = (batch[self.rank :: self.world] for batch in batches)
        else:
            batches = batches[self.rank :: self.world]
        for batch in batches:
            yield [(self.epoch, index) for index in batch.tolist()]


def build_loader(dataset, batch_size, num_workers, device, train=False):
    """A DataLoader over dataset whose batch sampler, at .batch_sampler, is an EpochBatches."""
    return DataLoader(
        dataset,
        batch_sampler=EpochBatches(len(dataset), batch_size, train, dataset.seed),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=leave_ctrl_c_to_the_parent,
        pin_memory=device.type == "cuda",
        # A loader draws a seed now and then, how often depends on its workers: not from the
        # generator that dropout uses.
        generator=torch.Generator(),
    )


def load_fold(images, args, device):
    """The train and valid DataLoaders of args.target and args.fold, the valid photos and a digest;
    crops what is missing.

    images: from list_train_images, with the column fold. Train labels use args.age_border, or are
    ages in years for the loss age_distribution; valid labels use the official border. The valid
    photos are rows of images, in the loader's order, with the manifest's column method; the digest
    is one string that other photos or labels would change. Raises InputError for bad data.
    """
    photos = ("train", images["file"].tolist(), images["shot"].tolist())
    [manifest] = crop_sets(args, [photos], crop_settings(args), device)
    # Its size tells whether a photo is the same, on another machine, too.
    images = images.assign(source_size=manifest["source_size"].to_numpy())
    good = (manifest["method"] != "bad").to_numpy()  # all, but with --skip-bad
    images, methods = images[good], manifest["method"].to_numpy()[good]
    folder = crop_folder(args.data_dir, args.crop_dir, "train")

    # In a run of one epoch, no image is read twice.
    gigabytes = 0 if args.epochs == 1 else args.cache
    memory = cache_limit(gigabytes, len(images) * args.resize**2 * 3)

    def loader(rows, labels, augment, train=False):
        nonlocal memory
        cache = ImageCache(len(rows), args.resize, memory)
        memory -= cache.nbytes
        dataset = FaceDataset(
            [folder / file for file in rows["file"]],
            labels,
            [build_transform(args.resize, augment)],
            args.seed,
            cache,
        )
        return build_loader(dataset, args.batch_size, args.num_workers, device, train)

    is_valid = images["fold"] == args.fold
    train, valid = images[~is_valid], images[is_valid]
    if train.empty or valid.empty:
        raise InputError(f"{args.data_dir}: no readable photos are left to train or validate on")
    if len(train) < world_size():
        raise InputError(f"{args.data_dir}: fewer photos to train on than processes")
    if args.loss == "age_distribution":
        train_labels = train["age"].to_numpy(dtype=np.int64)
    else:
        train_labels = head_labels(train, args.target, args.age_border)
    return (
        loader(train, train_labels, args.augment, train=True),
        loader(valid, head_labels(valid, args.target), "none"),
        valid.assign(method=methods[is_valid.to_numpy()]),
        hashlib.sha256(images.to_csv(index=False, lineterminator="\n").encode()).hexdigest(),
    )
