"""What ETC/show_image.ipynb shows: who is in the data, their photos, and what may be wrong with
these.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from config import config
from data.augment import augment, build_augmentation, resize
from data.crop import SECOND_LOOK
from data.images import load_image
from data.labels import head_labels, merge_labels
from ETC.names import class_names
from ETC.sample import make_sample
from utils.plots import BLUE, GREEN, ORANGE

SAMPLE = "demo/notebook"  # where people are drawn if there are no photos
CELL = 1.6  # inches, the width of a photo


def find_data():
    """The data and crop directories of config.py or, if there are no photos in input/data, those
    of drawn people, who are drawn at first use.
    """
    if os.environ.get("MAG_DATA_DIR") or Path(config.DATA_DIR, "train", "train.csv").exists():
        return config.DATA_DIR, config.CROP_DIR
    if not Path(SAMPLE, "train", "train.csv").exists():
        make_sample(SAMPLE, 12, 6, config.SEED)
    print(f"No photos in {config.DATA_DIR}: these are drawn people, in {SAMPLE}.")
    return SAMPLE, None  # not CROP_DIR, where the crops of real photos may be


def choose_people(photos, count, seed):
    """The rows of photos, from list_train_images, of count people, or of all if they are fewer."""
    paths = photos["path"].drop_duplicates()
    chosen = paths.sample(min(count, len(paths)), random_state=seed)
    return photos[photos["path"].isin(chosen)]


def count_classes(photos):
    """How many photos each of the 18 official classes has: a Series by the name of the class."""
    classes = merge_labels(*(head_labels(photos, target) for target in config.CLASSES))
    return pd.Series(np.bincount(classes, minlength=18), index=class_names(), name="photos")


def count_misses(photos):
    """A table by shot: the photos, those whose face the second look found, those without a face,
    and these in percent.

    photos: with the columns shot and, from a manifest, method.
    """
    methods = photos["method"]
    found = {"second look": methods == SECOND_LOOK, "without a face": methods == "center"}
    by_shot = pd.DataFrame(found).groupby(photos["shot"])
    table = by_shot.sum()
    table.insert(0, "photos", by_shot.size())
    table.loc["all"] = table.sum()
    return table.assign(percent=(100 * table["without a face"] / table["photos"]).round(1))


def brightness_and_sharpness(image):
    """Of a uint8 RGB array (H, W, 3), the mean grey, from 0 (black) to 255 (white), and the
    variance of the Laplacian, in squared grey levels: 0 for a plain surface, and less for a blurred
    photo than for the same one in focus. The latter compares photos of one size only.

    Source: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy".
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return grey.mean(), cv2.Laplacian(grey, cv2.CV_64F).var()


def measure(photos, source):
    """Add the columns brightness and sharpness of the photos source/<file>."""

    def measure_photo(file):
        return brightness_and_sharpness(load_image(Path(source, file)))

    with ThreadPoolExecutor(config.NUM_WORKERS) as pool:  # threads suffice: decoding frees the GIL
        values = np.array(list(pool.map(measure_photo, photos["file"]))).reshape(-1, 2)
    return photos.assign(brightness=values[:, 0], sharpness=values[:, 1])


def draw_statistics(photos):
    """People by gender and by age, and photos by mask: a Figure of three plots."""
    people = photos.drop_duplicates("path")
    figure = Figure(figsize=(14, 3.8), layout="constrained")
    gender, age, mask = figure.subplots(1, 3, width_ratios=(1, 3, 1.4))
    for axes, target, rows, unit in (
        (gender, "gender", people, "people"),
        (mask, "mask", photos, "photos"),
    ):
        names = config.CLASSES[target]
        counts = np.bincount(head_labels(rows, target), minlength=len(names))
        axes.bar_label(axes.bar(names, counts, color=BLUE))
        axes.set(title=target, ylabel=unit)
        axes.margins(y=0.1)
    years = np.arange(people["age"].min(), people["age"].max() + 2)  # a bar for each
    age.hist(people["age"], years, color=BLUE)
    age.axvline(config.AGE_BORDER, color=ORANGE, linestyle="--", label="in training labels")
    age.axvline(config.OFFICIAL_AGE_BORDER, color="black", label="official")
    age.set(title="age", xlabel="years", ylabel="people")
    age.legend(title="the oldest group begins")
    return figure


def draw_classes(counts):
    """A bar for each class, with its number and name; counts: from count_classes."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    names = [f"{number}: {name}" for number, name in enumerate(counts.index)]
    axes.bar_label(axes.barh(names, counts, color=BLUE), padding=3)
    axes.set(xlabel="photos", ylabel="official class")
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.02)
    return figure


def picture_grid(rows, columns, height=CELL * 4 / 3):
    """A Figure and its axes, (rows, columns), for pictures; height: of a row, in inches."""
    figure = Figure(figsize=(CELL * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    return figure, grid


def draw_box(axes, box, face):
    """Draw a box x0, y0, x1, y1, solid if it is that of a face, dashed if it is the centre."""
    x0, y0, x1, y1 = box
    style = {"edgecolor": BLUE} if face else {"edgecolor": ORANGE, "linestyle": "--"}
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=2, **style))


def draw_people(photos, source, crops):
    """Each person's photos source/<file> in a row, and below it their crops/<file>."""
    people = [rows for _, rows in photos.groupby("path", sort=False)]
    figure, grid = picture_grid(2 * len(people), max(map(len, people)))
    for (above, below), person in zip(grid.reshape(len(people), 2, -1), people):
        above[0].set_ylabel(f"{person['gender'].iloc[0]}, {person['age'].iloc[0]} years")
        below[0].set_ylabel("crops")
        for photo, crop, file, shot in zip(above, below, person["file"], person["shot"]):
            photo.imshow(load_image(Path(source, file)))
            photo.set_title(shot, fontsize=9)
            crop.imshow(load_image(Path(crops, file)))
    return figure


def draw_photos(photos, source, titles, columns=6):
    """The photos source/<file>, each with a title and, if photos has a manifest's columns, the box
    that it was cropped to. Without photos, a text instead of a Figure.
    """
    if photos.empty:
        return "there are none"
    figure, grid = picture_grid(-(-len(photos) // columns), columns, height=CELL * 4 / 3 + 0.35)
    for row, title, axes in zip(photos.to_dict("records"), titles, grid.flat):
        axes.imshow(load_image(Path(source, row["file"])))
        axes.set_title(title, fontsize=9)
        if "x0" in row:
            draw_box(axes, (row["x0"], row["y0"], row["x1"], row["y1"]), row["method"] != "center")
    return figure


def draw_quality(measured):
    """Histograms of brightness and, on a logarithmic axis, sharpness; measured: from measure."""
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    light, focus = figure.subplots(1, 2)
    light.hist(measured["brightness"], bins=np.arange(0, 256, 5), color=BLUE)
    light.set(xlabel="brightness: mean grey, 0 black to 255 white", ylabel="photos", xlim=(0, 255))
    values = measured["sharpness"].clip(lower=0.1)  # 0 has no logarithm
    focus.hist(values, bins=np.geomspace(values.min(), values.max() + 0.1, 50), color=GREEN)
    focus.set(xlabel="sharpness: variance of the Laplacian, squared grey levels", ylabel="photos")
    focus.set_xscale("log")
    return figure


def draw_augmentations(face, views, seed):
    """A crop, uint8 RGB array (H, W, 3), as the networks see it: for each head a row with the plain
    face, then so many views with the head's augmentation.
    """
    figure, grid = picture_grid(len(config.DEFAULTS), 1 + views, height=CELL + 0.1)
    face = resize(face, config.RESIZE)
    for row, (target, defaults) in zip(grid, config.DEFAULTS.items()):
        row[0].set_ylabel(f"{target} head")
        row[0].imshow(face)
        augmentation = build_augmentation(defaults["augment"])
        for view, axes in enumerate(row[1:], start=1):
            axes.imshow(augment(augmentation, face, [seed, view]))
    for view, axes in enumerate(grid[0]):
        axes.set_title(f"view {view}" if view else "plain", fontsize=9)
    return figure
