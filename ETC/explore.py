"""What ETC/show_image.ipynb shows: who is in the data, their photos, and what may be wrong with
these.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from config import config
from data.augment import apply_transform, build_transform
from data.images import load_image
from data.labels import GENDER_LABELS, class_names, head_labels, merge_labels
from ETC.quality import brightness, sharpness
from ETC.sample import make_sample
from utils.plots import BLUE, GREEN, ORANGE

# By the labels of the heads.
MASKS = ("no mask", "mask", "incorrect mask")
GENDERS = tuple(GENDER_LABELS)
SAMPLES = ("demo/data", "demo/notebook")  # made by `make demo`, and by a notebook
SAMPLE_PEOPLE = 12  # whose photos are drawn in seconds
CELL = 1.6  # inches, the width of a photo


def find_data():
    """The data and crop directories of config.py or, if input/data has none, those of drawn people,
    who are drawn if need be.
    """
    if os.environ.get("MAG_DATA_DIR") or has_people(config.DATA_DIR):
        return config.DATA_DIR, config.CROP_DIR
    folder = next(filter(has_people, SAMPLES), SAMPLES[-1])
    if not has_people(folder):
        make_sample(folder, SAMPLE_PEOPLE, 6, config.SEED)
    print(f"No photos in {config.DATA_DIR}: these are drawn people, in {folder}.")
    return folder, None  # not CROP_DIR, where crops of the real photos may be


def has_people(folder):
    return Path(folder, "train", "train.csv").exists()


def choose_people(photos, count, seed):
    """The rows of photos, from list_train_images, of count people drawn by seed, or of all."""
    paths = photos["path"].drop_duplicates()
    chosen = paths.sample(min(count, len(paths)), random_state=seed)
    return photos[photos["path"].isin(chosen)]


def count_classes(photos):
    """How many photos each of the 18 official classes has, a Series by the class's name."""
    classes = merge_labels(*(head_labels(photos, target) for target in config.HEADS))
    return pd.Series(np.bincount(classes, minlength=18), index=class_names(), name="photos")


def count_misses(photos):
    """A table by shot: the photos, those without a face, and their share in percent.

    photos: with the columns shot and method, the latter from a manifest of crops.
    """
    table = (photos["method"] == "center").groupby(photos["shot"]).agg(["size", "sum"])
    table.columns = ["photos", "without a face"]
    table.loc["all"] = table.sum()
    return table.assign(percent=(100 * table["without a face"] / table["photos"]).round(1))


def measure(photos, source):
    """Add the columns brightness and sharpness, see ETC.quality, of the photos source/<file>."""

    def measure_one(file):
        image = load_image(Path(source, file))
        return brightness(image), sharpness(image)

    with ThreadPoolExecutor(config.NUM_WORKERS) as pool:  # decoding lets other threads run
        values = np.array(list(pool.map(measure_one, photos["file"]))).reshape(-1, 2)
    return photos.assign(brightness=values[:, 0], sharpness=values[:, 1])


def draw_statistics(photos):
    """People by gender and by age, in years, and photos by mask: a Figure of three plots."""
    people = photos.drop_duplicates("path")
    figure = Figure(figsize=(14, 3.8), layout="constrained")
    gender, age, mask = figure.subplots(1, 3, width_ratios=(1, 3, 1.4))
    counts = np.bincount(head_labels(people, "gender"), minlength=len(GENDERS))
    gender.bar_label(gender.bar(GENDERS, counts, color=BLUE))
    gender.set(title="gender", ylabel="people")
    # A bar a year: who is 29 is left of the border at 30.
    bins = np.arange(people["age"].min(), people["age"].max() + 2)
    age.hist(people["age"], bins, color=BLUE)
    age.axvline(30, color="black", label="30")
    age.axvline(config.AGE_BORDER, color=ORANGE, linestyle="--",
                label=f"{config.AGE_BORDER}: training labels")  # fmt: skip
    age.axvline(config.OFFICIAL_AGE_BORDER, color="black", linestyle=":",
                label=f"{config.OFFICIAL_AGE_BORDER}: official")  # fmt: skip
    age.set(title="age", xlabel="years", ylabel="people")
    age.legend(title="a group begins at")
    counts = np.bincount(head_labels(photos, "mask"), minlength=len(MASKS))
    mask.bar_label(mask.bar([name.replace(" ", "\n") for name in MASKS], counts, color=BLUE))
    mask.set(title="mask", ylabel="photos")
    for axes in (gender, mask):
        axes.margins(y=0.1)
    for axes in (gender, age, mask):
        axes.yaxis.get_major_locator().set_params(integer=True)
    return figure


def draw_classes(counts):
    """A bar a class, named with its number; counts: from count_classes."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    names = [f"{number}: {name}" for number, name in enumerate(counts.index)]
    axes.bar_label(axes.barh(names, counts, color=BLUE), padding=3)
    axes.set(xlabel="photos", ylabel="official class")
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.02)
    return figure


def picture_grid(rows, columns, height=CELL * 4 / 3):
    """A Figure and its axes, (rows, columns), for photos three by four or cells of that height."""
    figure = Figure(figsize=(CELL * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    return figure, grid


def draw_box(axes, box, face):
    """A box x0, y0, x1, y1 on a picture: of a face, or dashed, in another colour, of the centre."""
    x0, y0, x1, y1 = box
    style = {"edgecolor": BLUE} if face else {"edgecolor": ORANGE, "linestyle": "--"}
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=2, **style))


def draw_people(photos, source, crops):
    """Each person's photos in a row, source/<file>, and below the faces cut out of them,
    crops/<file>.
    """
    people = list(photos.groupby("path", sort=False))
    figure, grid = picture_grid(2 * len(people), max(len(its) for _, its in people))
    for (top, bottom), (_, its) in zip(grid.reshape(len(people), 2, -1), people):
        top[0].set_ylabel(f"{its['gender'].iloc[0]}, {its['age'].iloc[0]} years")
        bottom[0].set_ylabel("crops")
        for file, shot, above, below in zip(its["file"], its["shot"], top, bottom):
            above.imshow(load_image(Path(source, file)))
            above.set_title(shot, fontsize=9)
            below.imshow(load_image(Path(crops, file)))
    return figure


def draw_nothing():
    """A Figure in the place of pictures, where there are none to show."""
    figure = Figure(figsize=(4, 0.5))
    figure.text(0.5, 0.5, "there are none", ha="center", va="center")
    return figure


def draw_photos(photos, source, titles, columns=6):
    """The photos source/<file> with a title each, and the boxes x0 .. y1 that they were cropped to,
    if photos has these columns of a manifest.
    """
    if photos.empty:
        return draw_nothing()
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
    values = measured["sharpness"].clip(lower=0.1)  # a plain surface has 0, which has no logarithm
    focus.hist(values, bins=np.geomspace(values.min(), values.max() + 0.1, 50), color=GREEN)
    focus.set(xlabel="sharpness: variance of the Laplacian, squared grey levels", ylabel="photos")
    focus.set_xscale("log")
    for axes in (light, focus):
        axes.yaxis.get_major_locator().set_params(integer=True)
    return figure


def draw_augmentations(face, views, seed):
    """What a network sees of a crop, uint8 RGB array (H, W, 3): a row a head, first without its
    augmentation, then so many views with it.
    """
    figure, grid = picture_grid(len(config.HEADS), 1 + views, height=CELL + 0.1)
    plain = build_transform(config.RESIZE)
    for row, (target, head) in zip(grid, config.HEADS.items()):
        row[0].set_ylabel(f"{target} head")
        row[0].imshow(plain(image=face)["image"])
        augment = build_transform(config.RESIZE, head["augment"])
        for view, axes in enumerate(row[1:], start=1):
            axes.imshow(apply_transform(augment, face, [seed, view]))
    for view, axes in enumerate(grid[0]):
        axes.set_title(f"view {view}" if view else "plain", fontsize=9)
    return figure
