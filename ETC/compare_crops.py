"""What ETC/crop_test_img.ipynb shows: where different ways to find a face crop the same photos."""

import time
from pathlib import Path

import pandas as pd

from data.crop import BOX, crop_box, smallest_face
from data.detect import build_detector, find_largest_faces, look_again
from ETC.explore import draw_box, picture_grid
from ETC.keypoints import build_keypoint_rcnn, find_heads
from utils.cli import InputError


def build_finder(detector, settings, device):
    """A function from an image, uint8 RGB (H, W, 3), to its largest face: [(box, probability)] as
    in find_largest_faces, or [].

    detector: "mtcnn", "keypoint_rcnn" or, for a function that finds no face, "center"; settings: as
    from crop_settings.
    """
    if detector == "center":
        return lambda image: []
    mtcnn = detector == "mtcnn"
    network = build_detector(device) if mtcnn else build_keypoint_rcnn(device)

    def find(image):
        look = find_largest_faces if mtcnn else find_heads
        [faces] = look(network, image[None], smallest_face(settings, image.shape[1::-1]))
        if mtcnn and settings["second_look"] and not faces:
            [faces] = look_again(network, image[None])
        return faces

    return find


def compare_ways(ways, images, device):
    """Where each way crops each image, and how long it looks for the face.

    ways: {name: (detector as for build_finder, settings as from crop_settings)}; images: {file:
    uint8 RGB array (H, W, 3)}. A way whose weights can't be downloaded is left out, and a line
    says so.
    Returns a DataFrame, a row per way and image: way, file, method ("center": no face was found),
    the box x0 .. y1 in pixels, and ms, milliseconds.
    """
    finders = {}
    for way, (detector, settings) in ways.items():
        try:
            finders[way] = build_finder(detector, settings, device)
        except InputError as error:
            print(f"left out: {way}: {error}")
    rows = []
    # The first image twice, as the first call of a network is slow. All ways take turns: whatever
    # else the machine does slows all of them.
    for number, file in enumerate([next(iter(images)), *images]):
        for way, find in finders.items():
            detector, settings = ways[way]
            start = time.perf_counter()
            faces = find(images[file])
            ms = (time.perf_counter() - start) * 1000
            method, face = (detector, faces[0][0]) if faces else ("center", None)
            size = images[file].shape[1::-1]
            box = crop_box(face, size, settings) or crop_box(None, size, settings)
            if number > 0:
                rows.append((way, file, method, *box, ms))
    return pd.DataFrame(rows, columns=["way", "file", "method", *BOX, "ms"])


def count_misses(found, photos):
    """A table with a row per way: the photos in which it finds no face, by shot and in all, and the
    milliseconds it takes for a photo.

    found: from compare_ways; photos: rows of list_train_images.
    """
    found = found.merge(photos[["file", "shot"]], on="file")
    missed = (found["method"] == "center").groupby([found["way"], found["shot"]], sort=False)
    table = missed.sum().unstack().sort_index(axis=1)
    by_way = found.groupby("way", sort=False)
    return table.assign(
        **{"all": table.sum(axis=1), "of": by_way.size(), "ms": by_way["ms"].mean().round(1)}
    )


def draw_ways(found, images):
    """The images, {file: uint8 RGB array (H, W, 3)}, in a row for each way of compare_ways, with
    the boxes that they are cropped to. Without images, a text instead of a Figure.
    """
    if not images:
        return "there are none"
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
