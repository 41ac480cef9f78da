"""What ETC/crop_test_img.ipynb shows: ways to find where to crop, on the same photos."""

import time
from pathlib import Path

import numpy as np
import pandas as pd

from config import config
from data.crop import build_detector, center_box, equal_size_batches, find_boxes
from data.manifest import BOX
from ETC.explore import draw_box, draw_nothing, picture_grid
from utils.cli import InputError


def compare_ways(ways, images, device):
    """Where each way would crop each image, and how long it takes.

    ways: {name: settings}, as from crop_settings; the detector may be "center", which looks for
    nothing. images: {file: uint8 RGB array (H, W, 3)}. A way whose weights can't be downloaded is
    left out, and a line says so.
    Returns a DataFrame with a row a way and image: way, file, method ("center": no face was found),
    the box x0 .. y1 in pixels, and ms, milliseconds per image in its batch, reading aside.
    """
    finders = {}
    for way, settings in ways.items():
        try:
            finders[way] = way_to_find(settings, device)
        except InputError as error:
            print(f"{way} is left out: {error}")
    sizes = {file: image.shape[1::-1] for file, image in images.items()}
    batches = list(equal_size_batches(sizes, config.CROP_BATCH_SIZES[device.type]))
    rows = []
    # The first batch twice: what is slow only once, kernels and memory, is not to count. All ways
    # take turns: what else the machine does slows all of them.
    for number, batch in enumerate([batches[0], *batches]):
        stack = np.stack([images[file] for file in batch])
        for way, find in finders.items():
            start = time.perf_counter()
            results = find(stack)
            ms = (time.perf_counter() - start) / len(batch) * 1000
            if number > 0:
                rows += [
                    (way, file, method, *box, ms) for file, (method, box, _) in zip(batch, results)
                ]
    return pd.DataFrame(rows, columns=["way", "file", "method", *BOX, "ms"])


def way_to_find(settings, device):
    """A function from images of one size to what find_boxes returns of them."""
    if settings["detector"] == "center":
        side = settings["center_size"]
        return lambda images: [
            ("center", center_box((image.shape[1], image.shape[0]), side), np.nan)
            for image in images
        ]
    detector = build_detector(settings, device)
    return lambda images: find_boxes(detector, images, settings)


def count_misses(found, photos):
    """A table with a row a way: how many photos show it no face, by shot and of all, and its mean
    time in milliseconds.

    found: from compare_ways; photos: rows of list_train_images.
    """
    missed = found.merge(photos[["file", "shot"]], on="file")
    missed["missed"] = missed["method"] == "center"
    table = missed.pivot_table(
        index="way", columns="shot", values="missed", aggfunc="sum", sort=False
    ).astype(int)
    by_way = missed.groupby("way", sort=False)
    table = table[sorted(table.columns)]
    table["all"] = by_way["missed"].sum()
    table["of"] = by_way.size()
    table["ms per photo"] = by_way["ms"].mean().round(1)
    return table


def draw_ways(found, images):
    """The images, {file: uint8 RGB array (H, W, 3)}, in a row a way of compare_ways, with the boxes
    that it would crop them to.
    """
    if not images:
        return draw_nothing()
    boxes = found.set_index(["way", "file"])
    ways = found["way"].unique()
    figure, grid = picture_grid(len(ways), len(images))
    for row, way in zip(grid, ways):
        row[0].set_ylabel(way, fontsize=9)
        for axes, (file, image) in zip(row, images.items()):
            axes.imshow(image)
            axes.set_title(Path(file).stem if way == ways[0] else "", fontsize=9)
            result = boxes.loc[(way, file)]
            draw_box(axes, result[BOX], result["method"] != "center")
    return figure
