"""Files with bytes or values changed at random: each is taken or refused in one line.

`make test` tries 500 images and 320 tables and checkpoints, `make soak` twenty times as many.
"""

import copy
import io
import os
import random
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import test
from conftest import SMALL, assert_refused, run, run_ok
from data.images import load_image
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.cli import InputError
from utils.runs import load_last, restore

TIMES = 20 if os.environ.get("SOAK") else 1


def mutate(content, rng):
    """Change bytes in one to three of the ways in which files break."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        start = rng.randrange(len(content) + 1)
        stop = min(len(content), start + rng.choice([1, 2, 4, 16, 256]))
        way = rng.randrange(7)
        if way == 0:
            del content[start:]
        elif way == 1:
            del content[start:stop]
        elif way == 2:
            content[start:start] = rng.randbytes(stop - start)
        elif way == 3:
            content[start:stop] = rng.randbytes(stop - start)
        elif way == 4:
            content[start:stop] = bytes([rng.choice([0, 255])]) * (stop - start)
        elif way == 5:
            content[start:start] = content[start:stop]
        elif start < len(content):
            content[start] ^= 1 << rng.randrange(8)
    return bytes(content)


def image_files():
    """Small images in all the formats and modes that photos come in, as bytes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8).repeat(9, axis=0).repeat(7, axis=1)
    photo = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a photo"
    exif.get_ifd(0x8769)[0x9003] = "2021:03-29 00:00:00"
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    for image, kind, options in (
        (photo, "JPEG", {"exif": exif}),
        (photo, "JPEG", {"progressive": True, "quality": 60}),
        (photo.convert("L"), "JPEG", {}),
        (photo.convert("CMYK"), "JPEG", {}),
        (photo, "PNG", {"exif": exif}),
        (photo.convert("P"), "PNG", {"transparency": bytes(range(256))}),
        (photo.convert("LA"), "PNG", {}),
        (deep, "PNG", {}),
        (photo, "PNG", {"save_all": True, "append_images": [photo.rotate(180)]}),
        (photo, "GIF", {"save_all": True, "append_images": [photo.rotate(180)]}),
        (photo, "WEBP", {"exif": exif}),
        (photo, "BMP", {}),
        (photo, "TIFF", {"compression": "tiff_lzw"}),
        (photo, "TIFF", {}),
        (photo, "PPM", {}),
        (photo, "ICO", {"sizes": [(48, 48)]}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield buffer.getvalue()


@pytest.mark.parametrize("turn", range(TIMES))
def test_mutated_images(tmp_path, turn):
    rng = random.Random(f"images {turn}")
    originals = list(image_files())
    images = tmp_path / "eval/images"
    images.mkdir(parents=True)
    for number in range(500):
        (images / f"{number}.jpg").write_bytes(mutate(rng.choice(originals), rng))
    names = [path.name for path in sorted(images.iterdir())]
    pd.DataFrame({"ImageID": names, "ans": 0}).to_csv(tmp_path / "eval/info.csv", index=False)
    command = ["-m", "data.crop", "--data-dir", tmp_path, "--split", "eval"]
    out = run_ok(*command, "--skip-bad")
    manifest = pd.read_csv(tmp_path / "eval/crops.csv")
    assert manifest["file"].tolist() == names
    crops = tmp_path / "eval/new_images"
    bad = manifest["method"] == "bad"
    assert f"bad photos, in no crop: {bad.sum()}" in out
    assert 100 < bad.sum() < 450  # some broken, some not
    assert {path.name for path in crops.iterdir()} == set(manifest["file"][~bad])
    for row in manifest[~bad].itertuples():
        assert load_image(crops / row.file).shape == (row.y1 - row.y0, row.x1 - row.x0, 3)
    assert_refused(run(*command), f"{bad.sum()} bad photos", "--skip-bad")


def run_quietly(*command):
    """Run a command that may fail, but in one line; returns its exit status."""
    done = run(*command)
    if done.returncode:
        assert_refused(done)
    return done.returncode


@pytest.mark.parametrize("turn", range(TIMES))
def test_mutated_tables(sample_dir, tmp_path, turn):
    rng = random.Random(f"tables {turn}")
    data = tmp_path / "data"
    shutil.copytree(sample_dir, data, copy_function=shutil.copy2)
    crop = ["-m", "data.crop", "--data-dir", data, "--split"]
    codes = []
    for name, command, count in (
        ("train/train.csv", [*crop, "train"], 80),
        ("train/crops.csv", [*crop, "train"], 30),
        ("train/crops.json", [*crop, "train"], 10),
        ("eval/info.csv", [*crop, "eval"], 60),
    ):
        whole = (data / name).read_bytes()
        manifest = (data / "train/crops.csv").read_bytes(), (data / "eval/crops.csv").read_bytes()
        for _ in range(count):
            (data / name).write_bytes(mutate(whole, rng))
            codes.append(run_quietly(*command))
            for split, content in zip(("train", "eval"), manifest):
                (data / split / "crops.csv").write_bytes(content)
        (data / name).write_bytes(whole)
    assert codes.count(0) > 5
    assert codes.count(2) > 50


def test_mutated_answers(sample_dir, tmp_path):
    rng = random.Random("answers")
    info = pd.read_csv(sample_dir / "eval/info.csv", dtype=str)
    whole = (sample_dir / "eval/answers.csv").read_bytes()
    path = tmp_path / "answers.csv"
    refused = 0
    for _ in range(40):
        path.write_bytes(mutate(whole, rng))
        try:
            assert set(test.read_answers(path, info)) <= set(range(18))
        except InputError:
            refused += 1
    assert refused > 20


@pytest.fixture(scope="module")
def run_of_one_epoch(sample_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("one")
    run_ok("train.py", "--target", "mask", "--data-dir", sample_dir, "--num-workers", 0,
           *SMALL, "--epochs", 1, "--output-dir", output)  # fmt: skip
    return output / "mask_fold0"


def places(value, path=()):
    """The paths of all values in nested dicts and lists."""
    yield path
    items = ()
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(checkpoint, rng):
    """A copy with one value replaced by another, perhaps of another type."""
    checkpoint = copy.deepcopy(checkpoint)
    name = rng.choice(list(checkpoint))
    below = list(places(checkpoint[name])) if isinstance(checkpoint[name], dict | list) else [()]
    *path, last = (name, *rng.choice(below))
    holder = checkpoint
    for key in path:
        holder = holder[key]
    odd = [None, -1, 1e300, float("nan"), "x", [], {}, [1, "2"], {"a": 1}, True,
           torch.zeros(0), torch.ones(3, 3), 2**70]  # fmt: skip
    if rng.random() < 0.2 and isinstance(holder, dict):
        del holder[last]
    elif not isinstance(holder, tuple):
        holder[last] = rng.choice(odd)
    return checkpoint


@pytest.mark.parametrize("turn", range(TIMES))
@pytest.mark.parametrize("name", ["best.pth", "last.pth"])
def test_mutated_checkpoints(run_of_one_epoch, tmp_path, name, turn):
    rng = random.Random(f"{name} {turn}")
    shutil.copytree(run_of_one_epoch, tmp_path / "mask_fold0")
    path = tmp_path / "mask_fold0" / name
    whole = path.read_bytes()
    checkpoint = load_checkpoint(path)
    del checkpoint["path"]
    network = test.load_network(load_checkpoint(path))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-4, fused=True)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    codes = []
    for number in range(60):
        if number % 2:
            path.write_bytes(mutate(whole, rng))
        else:
            save_checkpoint(path, replaced(checkpoint, rng))
        try:
            if name == "best.pth":
                test.load_network(load_checkpoint(path))
            else:
                last = load_last(path.parent, checkpoint["arguments"], 1)
                restore(last, network, optimizer, scaler)
                optimizer.step()
            codes.append(0)
        except InputError:
            codes.append(2)
    assert codes.count(2) > 20
