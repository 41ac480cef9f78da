"""data/dataset.py: the same pixels for every number of workers, with and without the cache."""

import contextlib
import re
import shutil
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import data.dataset
from config import config
from data.augment import resize
from data.crop import (
    BOX,
    TYPES,
    crop_folder,
    crop_settings,
    crop_split,
    get_args_parser,
    write_manifest,
)
from data.dataset import (
    CropFiles,
    FaceDataset,
    ResizedCrops,
    build_loader,
    load_fold,
    resize_crops,
    val_predictions,
)
from data.images import load_image
from data.labels import assign_folds, head_labels, list_train_images
from utils.cli import InputError

CPU = torch.device("cpu")


@pytest.fixture
def crops(tmp_path):
    """Twelve crops of the same pixels, so that views differ by their seeds alone."""
    pixels = np.random.default_rng(0).integers(0, 256, (150, 110, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for path in paths:
        Image.fromarray(pixels).save(path)
    return CropFiles(paths)


def read_manifest(sample_dir):
    return pd.read_csv(sample_dir / "train/crops.csv", dtype=TYPES)


def epochs(crops, num_workers, augment="gender", seed=777):
    """The images and labels of two epochs of one loader."""
    dataset = FaceDataset(crops, np.arange(len(crops)), [(32, augment)], seed)
    loader = build_loader(dataset, 4, num_workers, CPU, train=True)
    passes = []
    for epoch in (1, 2):
        loader.sampler.set_epoch(epoch)
        dataset.epoch.fill_(epoch)
        images, labels = zip(*loader)
        passes.append((torch.cat(images), torch.cat(labels)))
    return passes


def assert_same(passes, others):
    for (images, labels), (other_images, other_labels) in zip(passes, others):
        assert torch.equal(labels, other_labels)
        assert torch.equal(images, other_images)


def test_items_are_views_and_a_label(crops):
    views = [(32, "none"), (48, "gender"), (48, "gender")]
    dataset = FaceDataset(crops, np.arange(12) + 5, views, 777)
    plain, one, other, label = dataset[3]
    assert len(dataset) == 12
    assert (plain.shape, plain.dtype) == ((32, 32, 3), torch.uint8)
    assert np.array_equal(plain, resize(crops[3], 32))
    assert one.shape == other.shape == (48, 48, 3)
    assert label == 8
    again = dataset[3]
    assert all(torch.equal(image, same) for image, same in zip((plain, one, other), again))
    assert sum(torch.equal(*dataset[i][1:3]) for i in range(12)) < 6


def test_pixels_do_not_depend_on_the_number_of_workers(crops):
    first, second = alone = epochs(crops, 0)
    for num_workers in (1, 3):
        assert_same(epochs(crops, num_workers), alone)
    assert sorted(first[1].tolist()) == list(range(12))
    assert not torch.equal(first[1], second[1])
    other_seed = epochs(crops, 0, seed=778)
    assert not torch.equal(other_seed[0][1], first[1])
    assert not torch.equal(other_seed[0][1], second[1])
    # No two augmented views are equal, in whichever epoch or of whichever seed.
    plain = resize(crops[0], 32).tobytes()
    images = [image for images, _ in (*alone, *other_seed) for image in images]
    changed = [image.numpy().tobytes() for image in images]
    changed = [pixels for pixels in changed if pixels != plain]
    assert len(changed) > len(images) / 2
    assert len(set(changed)) == len(changed)


def test_cached_crops_are_the_crops_in_spawned_workers_too(sample_dir, spawned):
    manifest = read_manifest(sample_dir)
    folder = crop_folder(sample_dir, None, "train")
    rows = np.arange(3, 15)
    files = CropFiles([folder / file for file in manifest["file"][rows]])
    cached = ResizedCrops(resize_crops(folder, manifest, 32, 2), rows)
    expected = epochs(files, 0)
    assert_same(epochs(cached, 0), expected)
    assert_same(epochs(cached, 1), expected)


@pytest.mark.parametrize("content", [b"", b"\0" * 4000, "half"])
def test_a_damaged_file_of_resized_crops_is_named(tmp_path, content):
    path = tmp_path / "resized_32.npy"
    np.save(path, np.ones((4, 32, 32, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:6000] if content == "half" else content)
    with pytest.raises(InputError, match=r"resized_32\.npy: damaged; delete it"):
        ResizedCrops(path, np.arange(4))


def test_each_process_has_its_share_of_the_batches(crops, monkeypatch):
    dataset = FaceDataset(crops, np.arange(12), [(32, "none")])
    seen = []
    monkeypatch.setattr(data.dataset, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(data.dataset, "rank", lambda rank=rank: rank)
        batches = [labels.tolist() for _, labels in build_loader(dataset, 4, 0, CPU, train=True)]
        assert [len(batch) for batch in batches] == [2, 2, 2]
        seen += [label for batch in batches for label in batch]
    assert sorted(seen) == list(range(12))


# --- resized crops


def copy_crops(sample_dir, folder):
    """Copy the train crops and their record below folder; returns the folder of the crops."""
    crops = shutil.copytree(sample_dir / "train/new_img", folder / "train/new_img")
    for name in ("crops.csv", "crops.json"):
        shutil.copy(sample_dir / "train" / name, folder / "train")
    return crops


def test_resized_crops_are_made_once_and_again_when_crops_change(sample_dir, tmp_path, monkeypatch):
    folder = copy_crops(sample_dir, tmp_path)
    manifest = read_manifest(sample_dir)
    path = resize_crops(folder, manifest, 64, 0)
    pixels = np.load(path)
    assert (pixels.shape, pixels.dtype) == ((84, 64, 64, 3), np.uint8)
    for row in (0, 50, 83):
        assert np.array_equal(pixels[row], resize(load_image(folder / manifest["file"][row]), 64))
    time = path.stat().st_mtime_ns
    assert resize_crops(folder, manifest, 64, 2) == path
    assert path.stat().st_mtime_ns == time

    def held(*_):
        """The lock, which another command holds while it resizes them too."""
        return contextlib.nullcontext(shutil.copy(path, expected))

    expected = path.with_name(path.name.replace("resized_64", "resized_96"))
    with monkeypatch.context() as patch:
        patch.setattr(data.dataset, "crop_lock", held)
        assert resize_crops(folder, manifest, 96, 2) == expected
    assert np.load(expected).shape == pixels.shape  # as the other command left it
    expected.unlink()

    other_size = resize_crops(folder, manifest, 80, 2)
    Image.new("RGB", (90, 120)).save(folder / manifest["file"][0])
    manifest.loc[0, "source_mtime_ns"] += 1
    write_manifest(
        folder, manifest["file"], {row["file"]: row for row in manifest.to_dict("records")}
    )
    remade = resize_crops(folder, manifest, 64, 2)
    assert not np.load(remade)[0].any()
    assert set(path.parent.glob("*.npy")) == {other_size, remade}  # the old one is gone

    manifest.loc[3, "x0"] += 1  # as if another command had cropped with other margins meanwhile
    with pytest.raises(InputError, match="another command replaced these crops"):
        resize_crops(folder, manifest, 64, 2)


def test_a_photo_that_went_bad_meanwhile_is_named(sample_dir, tmp_path):
    folder = copy_crops(sample_dir, tmp_path)
    manifest = read_manifest(sample_dir)
    rows = {row["file"]: row for row in manifest.to_dict("records")}
    rows[manifest["file"][0]] |= {"method": "bad", **dict.fromkeys(BOX, pd.NA)}
    write_manifest(folder, manifest["file"], rows)  # as another command with --skip-bad does
    with pytest.raises(InputError, match="another command replaced these crops"):
        resize_crops(folder, manifest, 64, 2)


def test_resized_crops_are_known_again_without_bad_photos(sample_dir, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(sample_dir / "train/images", folder / "train/images")
    shutil.copy(sample_dir / "train/train.csv", folder / "train")
    photo = next((folder / "train/images").glob("*/mask1.jpg"))
    photo.write_bytes(b"no photo")
    images, files = list_train_images(folder), []
    options = ["--data-dir", str(folder), "--skip-bad"]
    args = get_args_parser().parse_args(options)
    settings = crop_settings(args, images["file"].tolist(), CPU)
    for _ in range(2):  # the second one reads what the first one wrote
        manifest = crop_split(args, "train", images["file"], images["shot"], settings, CPU)
        readable = manifest[manifest["method"] != "bad"]
        files.append(resize_crops(folder / "train/new_img", readable, 64, 0))
    assert files[0] == files[1]


# --- folds


def fold_of(sample_dir, first_age=None, **changes):
    """The photos and load_fold's results; first_age: the age of the first photo's person."""
    args = Namespace(target="age", fold=1, loss="focal", age_border=59, data_dir=sample_dir,
                     crop_dir=None, no_cache=False, resize=64, augment="age", seed=777,
                     batch_size=16, num_workers=0)  # fmt: skip
    vars(args).update(changes)
    images = list_train_images(sample_dir)
    images["fold"] = assign_folds(images, 777)
    images.loc[0, "age"] = first_age or images.loc[0, "age"]
    return images, *load_fold(images, read_manifest(sample_dir), args, CPU)


def test_a_fold_keeps_people_apart(sample_dir):
    seen = []
    for fold in range(config.NUM_FOLDS):
        images, train, val, photos, _ = fold_of(sample_dir, fold=fold)
        train_crops, val_crops = train.dataset.crops, val.dataset.crops
        people = images["group"].to_numpy()
        assert not set(people[train_crops.rows]) & set(people[val_crops.rows])
        assert len(train_crops) + len(val_crops) == 84
        assert photos["file"].equals(images["file"].iloc[val_crops.rows])
        seen += photos["file"].tolist()
    assert sorted(seen) == sorted(images["file"])


def test_labels_of_a_fold(sample_dir):
    images, train, val, photos, digest = fold_of(sample_dir, age_border=45)
    ages = images["age"].to_numpy()[train.dataset.crops.rows]
    assert 45 in ages
    assert np.array_equal(train.dataset.labels, np.digitize(ages, [30, 45]))
    assert np.array_equal(val.dataset.labels, head_labels(photos, "age", 60))
    labels = torch.cat([labels for _, labels in val])
    assert np.array_equal(labels, head_labels(photos, "age"))
    _, train, _, _, _ = fold_of(sample_dir, loss="age_distribution")
    assert np.array_equal(train.dataset.labels, ages)
    assert fold_of(sample_dir, no_cache=True)[-1] == digest
    assert fold_of(sample_dir, first_age=77)[-1] != digest


def test_race_is_told_where_it_is_known_and_trains_nothing(sample_dir, tmp_path):
    _, _, _, photos, digest = fold_of(sample_dir)
    table = val_predictions(photos, torch.zeros(len(photos), 3), "age")
    assert table["race"].equals(photos["race"])
    assert set(table["race"]) == {"Drawn"}
    copy_crops(sample_dir, tmp_path)
    (tmp_path / "train/images").symlink_to(sample_dir / "train/images", True)
    people = pd.read_csv(sample_dir / "train/train.csv", dtype=str)
    people.drop(columns="race").to_csv(tmp_path / "train/train.csv", index=False)
    _, _, _, photos, other = fold_of(tmp_path)
    assert other == digest  # --resume goes on with the runs of earlier versions
    expected = table.drop(columns="race")
    pd.testing.assert_frame_equal(
        val_predictions(photos, torch.zeros(len(photos), 3), "age"), expected
    )


def test_a_damaged_crop_is_named_with_the_way_out(sample_dir, tmp_path):
    copy_crops(sample_dir, tmp_path)
    crop = next((tmp_path / "train/new_img").rglob("mask1.jpg"))
    crop.write_bytes(b"half")
    hint = rf"^{re.escape(str(crop))}: not a readable image .*; delete this crop"
    with pytest.raises(InputError, match=hint):
        fold_of(sample_dir, data_dir=tmp_path)
