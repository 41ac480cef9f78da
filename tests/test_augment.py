"""data/augment.py: what each augmentation does and how often, and one resize for all."""

import albumentations as A
import cv2
import numpy as np
import pytest

from data.augment import AUGMENTATIONS, augment, build_augmentation, resize
from utils.cli import InputError

# How often each is applied: the original's one-of groups share out their p of 0.5 evenly.
SHARES = {
    "none": {},
    "mask": {"Perspective": 0.25, "Rotate": 0.25, "RandomBrightnessContrast": 1 / 3,
             "HueSaturationValue": 1 / 6},
    "age": {"Rotate": 0.5, "RandomGridShuffle": 0.25, "Perspective": 0.25, "GaussNoise": 0.5},
    "gender": {"Rotate": 0.5, "Perspective": 0.5, "GaussNoise": 0.5},
    "light": {"HorizontalFlip": 0.5, "Affine": 0.8, "RandomBrightnessContrast": 0.5},
    "wide": {"HorizontalFlip": 0.5, "Affine": 0.9, "RandomBrightnessContrast": 0.6,
             "HueSaturationValue": 1 / 6, "RGBShift": 1 / 6, "ToGray": 1 / 6,
             "GaussianBlur": 0.4 / 3, "Downscale": 0.4 / 3, "MotionBlur": 0.4 / 3,
             "ImageCompression": 0.4, "GaussNoise": 0.3, "RandomGamma": 0.3, "RandomShadow": 0.2,
             "CLAHE": 0.15, "Sharpen": 0.2, "ISONoise": 0.2},
}  # fmt: skip


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_transform_is_applied_as_often_as_it_should(name, photo):
    compose = A.Compose(AUGMENTATIONS[name](A), save_applied_params=True)
    names = []

    def recorder(image):
        result = compose(image=image)
        names.extend(transform for transform, _ in result["applied_transforms"])
        return result

    recorder.set_random_state = compose.set_random_state
    count = 600
    for i in range(count):
        augment(recorder, photo[:16, :16], [777, 1, i])
    assert set(names) == set(SHARES[name])
    for transform, share in SHARES[name].items():
        assert names.count(transform) / count == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_seed_alone_decides_the_pixels(name, photo):
    augmentation = build_augmentation(name)
    views = [augment(augmentation, photo, [777, 1, i]) for i in range(60)]
    again = augment(build_augmentation(name), photo, [777, 1, 5])
    assert np.array_equal(again, views[5])
    assert all((view.shape, view.dtype) == (photo.shape, np.uint8) for view in views)
    changed = {view.tobytes() for view in views} - {photo.tobytes()}
    assert len(changed) == 0 if name == "none" else len(changed) > 30


@pytest.mark.parametrize("step", [A.Normalize(), A.RandomCrop(24, 24), A.CenterCrop(24, 48)])
def test_an_augmentation_that_changes_size_or_type_is_refused(step, photo):
    with pytest.raises(InputError, match=r"data/augment.py: an augmentation gives"):
        augment(A.Compose([step]), photo, [0])


def test_noise_has_the_originals_strength():
    (noise,) = (t for t in AUGMENTATIONS["age"](A) if isinstance(t, A.GaussNoise))
    noise.p = 1.0
    grey = np.full((64, 64, 3), 128, np.uint8)
    stds = [float(augment(A.Compose([noise]), grey, [i]).std()) for i in range(200)]
    # albumentations rounds noise towards zero, which takes up to 0.4 grey values off.
    assert 10**0.5 - 0.45 < min(stds) < 10**0.5
    assert 50**0.5 - 0.45 < max(stds) < 50**0.5


def test_resize_shrinks_by_area_and_enlarges_linearly(photo):
    board = (np.indices((240, 192)).sum(axis=0) % 2 * 255).astype(np.uint8)
    board = np.dstack([board] * 3)
    assert resize(board, 96).std() < 1  # grey, not the stripes of a coarser sampling
    assert abs(resize(board, 96).mean() - 127.5) < 1
    blocks = photo.astype(float).reshape(16, 3, 16, 3, 3).mean(axis=(1, 3))
    assert np.abs(resize(photo, 16) - blocks).max() <= 0.51
    linear = cv2.resize(photo, (80, 80), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(resize(photo, 80), linear)
    assert np.array_equal(resize(photo, 48), photo)
