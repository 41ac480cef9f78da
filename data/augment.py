"""From a cropped face to what the network sees: one place for all image transforms."""

import os
import random

import cv2
import numpy as np

from utils.cli import InputError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks PyPI for a version
cv2.setNumThreads(1)  # the loader's workers use the cores already

ROTATE = {"limit": 20, "border_mode": cv2.BORDER_REPLICATE}
# A variance of 10 to 50 on the 0..255 scale, as a standard deviation of full scale.
NOISE = {"std_range": (10**0.5 / 255, 50**0.5 / 255)}


# The original took its steps before it resized a crop. Here, where crops are resized once,
# they come after.


def for_mask(A):
    """The original's for the mask head: a change of shape, then one of colour."""
    brightness = A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0)
    contrast = A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=0.2)
    colour = A.OneOf([brightness, A.HueSaturationValue(), contrast], p=0.5)
    return [A.OneOf([A.Perspective(), A.Rotate(**ROTATE)], p=0.5), colour]


def for_age(A):
    """The original's for the age head; may shuffle the quarters of a face."""
    warp = A.OneOf([A.RandomGridShuffle(grid=(2, 2)), A.Perspective()], p=0.5)
    return [A.Rotate(**ROTATE, p=0.5), warp, A.GaussNoise(**NOISE, p=0.5)]


def for_gender(A):
    """The original's for the gender head: the age head's without the shuffle."""
    return [A.Rotate(**ROTATE, p=0.5), A.Perspective(p=0.5), A.GaussNoise(**NOISE, p=0.5)]


def light(A):
    """Changes that a camera might make, for any head."""
    limits = {"scale": (0.9, 1.1), "translate_percent": (-0.05, 0.05), "rotate": (-10, 10)}
    move = A.Affine(**limits, border_mode=cv2.BORDER_REPLICATE, p=0.8)
    brightness = A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5)
    return [A.HorizontalFlip(p=0.5), move, brightness]


def wide(A):
    """Other places, sizes, lights, colours and qualities than one source of photos has: a network
    that sees these doesn't know a drawn mask by its edges.
    """
    limits = {"scale": (0.75, 1.3), "translate_percent": (-0.12, 0.12), "rotate": (-20, 20)}
    move = A.Affine(**limits, border_mode=cv2.BORDER_REPLICATE, p=0.9)
    gamma = A.RandomGamma(gamma_limit=(60, 160), p=0.3)  # in percent
    local = [A.RandomShadow(p=0.2), A.CLAHE(p=0.15), A.Sharpen(p=0.2), A.ISONoise(p=0.2)]
    brightness = A.RandomBrightnessContrast(brightness_limit=0.3, contrast_limit=0.3, p=0.6)
    shift = A.RGBShift((-20, 20), (-20, 20), (-20, 20))
    colour = A.OneOf([A.HueSaturationValue(15, 40, 20), shift, A.ToGray()], p=0.5)
    coarse = A.Downscale(scale_range=(0.25, 0.8))
    blur = A.OneOf(
        [A.GaussianBlur(sigma_limit=(0.3, 2.0)), coarse, A.MotionBlur(blur_limit=5)], p=0.4
    )
    quality = A.ImageCompression(quality_range=(30, 95), p=0.4)
    noise = A.GaussNoise(**NOISE, p=0.3)
    flip = A.HorizontalFlip(p=0.5)
    return [flip, move, gamma, *local, brightness, colour, blur, quality, noise]


# Functions of albumentations, whose import takes a second.
AUGMENTATIONS = {"none": lambda A: [], "mask": for_mask, "age": for_age, "gender": for_gender,
                 "light": light, "wide": wide}  # fmt: skip


def build_augmentation(name):
    """The albumentations of one of AUGMENTATIONS, for an image that is resized already."""
    import albumentations

    return albumentations.Compose(AUGMENTATIONS[name](albumentations))


def augment(augmentation, image, seed):
    """Augment a uint8 RGB array (H, W, 3); the same seed, a list of ints, gives the same pixels.
    Raises InputError for an augmentation that changes the size or type: val images keep theirs.
    """
    # Not Compose.set_random_seed, which gives every transform a generator of the same seed: all
    # those with p=0.5 would then fire together or not at all.
    generator = np.random.default_rng(seed)
    augmentation.set_random_state(generator, random.Random(int(generator.integers(2**63))))
    view = augmentation(image=image)["image"]
    if (view.shape, view.dtype) != (image.shape, image.dtype):
        raise InputError(f"data/augment.py: an augmentation gives {view.dtype} {view.shape} of "
                         f"{image.dtype} {image.shape}; keep type and size")  # fmt: skip
    return view


def resize(image, side):
    """Resize a uint8 RGB array (H, W, 3) to (side, side, 3): shrink by area, enlarge linearly."""
    height, width = image.shape[:2]
    smaller = (min(width, side), min(height, side))
    if smaller != (width, height):
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (side, side):
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
    return image
