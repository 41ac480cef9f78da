"""From a cropped face to what the network sees: one place for all image transforms."""

import os
import random

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations asks PyPI at import

import albumentations as A
import cv2
import numpy as np

from config.config import AUGMENTATIONS
from utils.cli import InputError

cv2.setNumThreads(1)  # loader workers are the parallelism; threads below them only get in the way

ROTATE = {"limit": 20, "border_mode": cv2.BORDER_REPLICATE}
# A variance of 10 to 50 on the 0..255 scale, as a standard deviation of full scale.
NOISE_STD = (10**0.5 / 255, 50**0.5 / 255)


def augmentations(name):
    """The train-time albumentations by name: a head's, each as strong as in the original, or
    "light", which fits all heads and keeps a face as a camera might see it.
    """
    if name == "none":
        return []
    if name == "mask":
        return [
            A.OneOf([A.Perspective(), A.Rotate(**ROTATE)], p=0.5),
            A.OneOf(
                [
                    A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0),
                    A.HueSaturationValue(),
                    A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=0.2),
                ],
                p=0.5,
            ),
        ]
    if name == "light":
        return [
            A.HorizontalFlip(p=0.5),
            A.Affine(
                scale=(0.9, 1.1),
                translate_percent=(-0.05, 0.05),
                rotate=(-10, 10),
                border_mode=cv2.BORDER_REPLICATE,
                p=0.8,
            ),
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
        ]
    if name not in AUGMENTATIONS:
        raise InputError(f"augmentation {name}: unknown; there are {', '.join(AUGMENTATIONS)}")
    if name == "age":
        warp = A.OneOf([A.RandomGridShuffle(grid=(2, 2)), A.Perspective()], p=0.5)
    else:
        warp = A.Perspective(p=0.5)
    return [A.Rotate(**ROTATE, p=0.5), warp, A.GaussNoise(std_range=NOISE_STD, p=0.5)]


def build_transform(resize, augment="none"):
    """Resize to resize x resize pixels, then augment.

    Resizing comes first, so that the cost of a view does not depend on the size of the crop.
    """
    return A.Compose([A.Resize(resize, resize), *augmentations(augment)])


def apply_transform(transform, image, seed):
    """Transform a uint8 RGB array (H, W, 3); the same seed (a list of ints) gives the same pixels.

    Seeded per image, the result depends neither on the worker nor on what it did before.
    """
    # Not Compose.set_random_seed: that gives every transform a generator of the same seed, and
    # then all those with p=0.5 fire together or not at all.
    generator = np.random.default_rng(seed)
    transform.set_random_state(generator, random.Random(int(generator.integers(2**63))))
    return transform(image=image)["image"]
