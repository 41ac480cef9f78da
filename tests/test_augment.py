import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from config.config import AUGMENTATIONS
from data.augment import apply_transform, augmentations, build_transform
from data.dataset import FaceDataset, build_loader
from models.network import normalize

CPU = torch.device("cpu")


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (150, 110, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path, photo):
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for path in paths:
        Image.fromarray(photo).save(path)  # the same pixels: views differ by their seed alone
    return paths


def batches(paths, num_workers, epoch, augment="age", shuffle=False, seed=777):
    dataset = FaceDataset(paths, np.arange(len(paths)), [build_transform(32, augment)], seed)
    loader = build_loader(dataset, 4, num_workers, CPU, shuffle)
    loader.batch_sampler.epoch = epoch
    images, labels = zip(*loader)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("augment", ["mask", "age", "gender"])
def test_pixels_do_not_depend_on_the_number_of_workers(photos, augment):
    for epoch in (1, 2):
        alone, order = batches(photos, 0, epoch, augment, shuffle=True)
        for num_workers in (1, 3):
            images, labels = batches(photos, num_workers, epoch, augment, shuffle=True)
            assert torch.equal(labels, order)
            assert torch.equal(images, alone)


def test_epochs_workers_and_seeds_never_repeat_each_other(photos, photo):
    passes = ({"epoch": 1}, {"epoch": 2}, {"epoch": 1, "seed": 778})
    # Not age: a grid shuffle alone has only 24 outcomes.
    seen = [image for each in passes for image in batches(photos, 2, augment="gender", **each)[0]]
    plain = torch.from_numpy(apply_transform(build_transform(32), photo, [0]))
    changed = [image for image in seen if not torch.equal(image, plain)]
    assert len(changed) > len(seen) / 2
    assert len({image.numpy().tobytes() for image in changed}) == len(changed)


def test_a_transform_listed_twice_gives_two_views(photos):
    transform = build_transform(32, "gender")
    dataset = FaceDataset(photos, np.arange(12), [transform, transform], 777)
    pairs = [dataset[0, index][:2] for index in range(12)]
    assert sum(torch.equal(one, other) for one, other in pairs) < 6


def test_one_loader_gives_new_pixels_and_order_each_epoch(photos):
    dataset = FaceDataset(photos, np.arange(12), [build_transform(32, "age")], 777)
    loader = build_loader(dataset, 12, 1, CPU, train=True)
    epochs = []
    for loader.batch_sampler.epoch in (1, 2, 1):
        epochs.extend(loader)
    assert not torch.equal(epochs[0][1], epochs[1][1])
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(epochs[0][0], epochs[2][0])


class Recorder:
    """Stands for a Compose and keeps the names of what it applied."""

    def __init__(self, transforms):
        self.compose = A.Compose(transforms, save_applied_params=True)
        self.set_random_state = self.compose.set_random_state
        self.applied = []

    def __call__(self, image):
        result = self.compose(image=image)
        self.applied.append([name for name, _ in result["applied_transforms"]])
        return result


# What each head applies and how often: seed.md's one-of groups at p 0.5 share it out evenly.
SHARES = {
    "mask": {"Perspective": 0.25, "Rotate": 0.25, "RandomBrightnessContrast": 1 / 3,
             "HueSaturationValue": 1 / 6},
    "age": {"Rotate": 0.5, "RandomGridShuffle": 0.25, "Perspective": 0.25, "GaussNoise": 0.5},
    "gender": {"Rotate": 0.5, "Perspective": 0.5, "GaussNoise": 0.5},
    "light": {"HorizontalFlip": 0.5, "Affine": 0.8, "RandomBrightnessContrast": 0.5},
    "none": {},
}  # fmt: skip


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_augmentation_is_applied_as_often_as_it_should(name, photo):
    recorder, count = Recorder(augmentations(name)), 2000
    for index in range(count):
        apply_transform(recorder, photo[:16, :16], [777, 1, index])
    names = [applied for call in recorder.applied for applied in call]
    assert set(names) == set(SHARES[name])
    for applied, share in SHARES[name].items():
        assert names.count(applied) / count == pytest.approx(share, abs=0.04)


def test_augmentations_are_applied_independently_of_each_other(photo):
    recorder, count = Recorder(augmentations("gender")), 2000
    for index in range(count):
        apply_transform(recorder, photo[:16, :16], [777, 1, index])
    together = sum({"Rotate", "GaussNoise"} <= set(call) for call in recorder.applied)
    assert together / count == pytest.approx(0.25, abs=0.04)


def test_noise_has_the_originals_strength():
    (noise,) = (t for t in augmentations("age") if isinstance(t, A.GaussNoise))
    assert noise.std_range == pytest.approx((0.0124, 0.0277), abs=1e-4)
    noise.p = 1.0
    grey = np.full((64, 64, 3), 128, np.uint8)
    stds = [float(apply_transform(A.Compose([noise]), grey, [i]).std()) for i in range(200)]
    # albumentations rounds noise towards zero, which takes up to 0.4 grey values off.
    assert 10**0.5 - 0.45 < min(stds) < 10**0.5
    assert 50**0.5 - 0.45 < max(stds) < 50**0.5


def test_rotation_stays_within_20_degrees_and_repeats_the_border():
    for name in ("mask", "age", "gender"):
        rotate = next(t for t in flat(augmentations(name)) if isinstance(t, A.Rotate))
        assert tuple(rotate.limit) == (-20, 20)
        assert rotate.border_mode == cv2.BORDER_REPLICATE


def flat(transforms):
    for transform in transforms:
        yield from transform.transforms if isinstance(transform, A.OneOf) else [transform]


def test_colours_of_the_mask_head_change_one_at_a_time_by_the_originals_limits():
    transforms = list(flat(augmentations("mask")))
    limits = [
        (t.brightness_limit, t.contrast_limit)
        for t in transforms
        if isinstance(t, A.RandomBrightnessContrast)
    ]
    assert limits == [((-0.2, 0.2), (0, 0)), ((0, 0), (-0.2, 0.2))]
    (hue,) = (t for t in transforms if isinstance(t, A.HueSaturationValue))
    shifts = hue.hue_shift_limit, hue.sat_shift_limit, hue.val_shift_limit
    assert shifts == ((-20, 20), (-30, 30), (-20, 20))


def test_albumentations_warnings_are_errors_here():
    with pytest.raises(UserWarning):
        A.GaussNoise(var_limit=(10, 50))


def test_normalize_is_albumentations_normalize(photo):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = A.Normalize()(image=photo)["image"]
    ours = normalize(torch.from_numpy(photo)[None], torch.tensor(mean), torch.tensor(std))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(ours[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_every_head_ends_at_the_same_size(photo):
    for name in AUGMENTATIONS:
        image = apply_transform(build_transform(48, name), photo, [1])
        assert image.shape == (48, 48, 3)
        assert image.dtype == np.uint8
