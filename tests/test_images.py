"""data/images.py: every photo is read upright as RGB, or named in one line."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from conftest import FACES, damage
from data.images import load_image, load_smaller, pick_photos, print_left_out, read_image
from utils.cli import InputError


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_of_every_orientation_are_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 3)).astype(np.uint8)
    photo = Image.fromarray(pixels.repeat(16, axis=0).repeat(16, axis=1))
    for name in ("a.jpg", "a.png", "a.webp"):
        photo.save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as image:
            expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        assert np.array_equal(load_image(tmp_path / name), expected)
    for mode in ("RGB", "L", "RGBA"):  # Pillow maps some of them to memory
        photo.convert(mode).save(tmp_path / "a.tif", tiffinfo={0x0112: orientation})
        photo.convert(mode).save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(load_image(tmp_path / "a.tif"), load_image(tmp_path / "a.png"))


def test_a_large_jpeg_may_come_smaller(tmp_path):
    photo = Image.fromarray(np.linspace(0, 255, 800 * 600).reshape(800, 600).astype(np.uint8))
    for name in ("a.jpg", "a.png"):
        photo.save(tmp_path / name)
    assert load_smaller(tmp_path / "a.png", 150)[0].shape == (800, 600, 3)
    assert read_image(tmp_path / "a.jpg", 150, max_shrink=2)[0].shape == (400, 300, 3)
    for side, size in ((150, (200, 150)), (151, (400, 300)), (601, (800, 600))):
        image, whole = load_smaller(tmp_path / "a.jpg", side)
        assert image.shape == (*size, 3)
        assert whole == (600, 800)
        assert abs(image.astype(int) - np.asarray(photo.resize(size[::-1]))[..., None]).max() < 9


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_of_the_whole_photo_is_known(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.new("RGB", (301, 203))
    photo.save(tmp_path / "a.jpg", exif=exif)
    photo.save(tmp_path / "a.png", exif=exif)
    photo.save(tmp_path / "a.tif", tiffinfo={0x0112: orientation})
    turned = slice(None, None, -1 if orientation == 6 else 1)
    image, size = load_smaller(tmp_path / "a.jpg", 100)
    assert (image.shape[1::-1], size) == ((151, 102)[turned], (301, 203)[turned])
    for name in ("a.jpg", "a.png", "a.tif"):
        image, size = load_smaller(tmp_path / name, 200)
        assert image.shape[1::-1] == size == (301, 203)[turned]


UPRIGHT_EXIF = Image.Exif()
UPRIGHT_EXIF[0x0112] = 2  # mirrored: above and below stay


def photo_files():
    """Photos, dark above and bright below, in the formats and modes that photos come in: [(format,
    mode, bytes)].
    """
    grey = Image.fromarray(np.linspace(0, 255, 64 * 48).reshape(64, 48).astype(np.uint8))
    deep = Image.fromarray(np.linspace(0, 65535, 64 * 48).reshape(64, 48).astype(np.uint16))
    frames = {"save_all": True, "append_images": [grey.rotate(180)]}
    for image, kind, options in (
        (grey.convert("RGB"), "JPEG", {}),
        (grey, "JPEG", {"progressive": True}),
        (grey.convert("CMYK"), "JPEG", {}),
        (grey.convert("P"), "PNG", {"transparency": bytes(range(256))}),
        (grey.convert("LA"), "PNG", {}),
        (deep, "PNG", {}),
        (deep, "PNG", {"exif": UPRIGHT_EXIF}),
        (grey, "GIF", frames),
        (grey.convert("RGB"), "WEBP", {}),
        (grey.convert("RGB"), "TIFF", {"compression": "tiff_lzw"}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield kind, image.mode, buffer.getvalue()


def test_photos_of_every_format_and_mode_look_as_they_should(tmp_path):
    for kind, mode, content in photo_files():
        (tmp_path / "photo.JPG").write_bytes(content)
        pixels = load_image(tmp_path / "photo.JPG")
        assert (pixels.shape, pixels.dtype) == ((64, 48, 3), np.uint8), (kind, mode)
        assert pixels[:8].mean() < 60, (kind, mode)
        assert pixels[-8:].mean() > 190, (kind, mode)


def png_of(width, height):
    """The bytes of a PNG that claims a size, without any pixels."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PHOTO = FACES[0].read_bytes()


def saved(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.open(FACES[0]).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, content, checksum=None):
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


TURN = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"  # EXIF: by 180 degrees
ODD_CHUNKS = {
    "ICC profile of 3 MB": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(3 << 20))),
    "text of 3 MB": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20))),
    "wrong checksum": chunk(b"pHYs", bytes(9), checksum=1),
    "EXIF that is none": chunk(b"eXIf", b"junk"),
    "EXIF profile that is none": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 20\nzzzz"),
    "transparency cut off": chunk(b"tRNS", b"\0"),
    "EXIF behind a wrong checksum": chunk(b"tEXt", b"a\0b", checksum=1) + chunk(b"eXIf", TURN),
}


@pytest.mark.parametrize("case", ODD_CHUNKS)
def test_pngs_with_odd_metadata_are_read(tmp_path, case):
    png = saved("PNG")
    (tmp_path / "odd.png").write_bytes(png[:33] + ODD_CHUNKS[case] + png[33:])
    turn = 2 if "behind" in case else 0
    expected = np.rot90(np.array(Image.open(io.BytesIO(png))), turn)
    assert np.array_equal(load_image(tmp_path / "odd.png"), expected)


@pytest.mark.parametrize("name", [b"JFIF", b"ICC_PROFILE", b"Adobe", b"Photoshop 3.0", b"Exif"])
def test_jpegs_with_segments_cut_off_are_read(tmp_path, name):
    for content in (name, name + b"\0", name + b"\0\1", name + b"\0" * 9):
        for marker in (0xE0, 0xE1, 0xE2, 0xED, 0xEE):
            segment = bytes([255, marker]) + struct.pack(">H", len(content) + 2) + content
            (tmp_path / "odd.jpg").write_bytes(PHOTO[:2] + segment + PHOTO[2:])
            image, *_, damage = read_image(tmp_path / "odd.jpg")
            assert damage is None, (name, content, marker)
            assert image.shape == (512, 384, 3)


def test_odd_metadata_of_other_formats(tmp_path, monkeypatch):
    def fail(self):  # as Pillow 11.2.1 does for XMP in Latin-1
        raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid")

    (tmp_path / "odd.webp").write_bytes(saved("WEBP", exif=b"junk" * 4))
    load_image(tmp_path / "odd.webp")
    (tmp_path / "odd.jpg").write_bytes(PHOTO)
    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert load_image(tmp_path / "odd.jpg").shape == (512, 384, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_a_jpeg_is_read_if_only_its_end_marker_is_missing(tmp_path, options):
    path, whole = tmp_path / "cut.jpg", saved("JPEG", quality=90, **options)
    expected = np.array(Image.open(io.BytesIO(whole)))
    for cut in (1, 2):
        path.write_bytes(whole[:-cut])
        image, *_, damage = read_image(path)
        assert np.array_equal(image, expected)
        assert damage == "the file lacks its end, but all pixels are there"
    for cut in (30, 300, 3000):
        path.write_bytes(whole[:-cut])
        assert read_image(path)[0] is None
    whole = saved("JPEG", progressive=True)  # without its finer scans
    path.write_bytes(whole[: whole.index(b"\xff\xda", whole.index(b"\xff\xda") + 2)])
    assert "details are missing" in read_image(path)[3]


BAD_PHOTOS = {
    "truncated": PHOTO[: len(PHOTO) // 2],
    "empty": b"",
    "decompression bomb": png_of(30_000, 30_000),
    "floats": saved("TIFF", "F"),
    "32 bits": saved("TIFF", "I"),
    "unknown encoding": b"BLP2" + struct.pack("<i4b2i", 1, 9, 0, 0, 0, 64, 64) + bytes(2000),
}


@pytest.mark.parametrize("case", BAD_PHOTOS)
def test_bad_photos_are_named(tmp_path, case):
    path = tmp_path / "photo.jpg"
    path.write_bytes(BAD_PHOTOS[case])
    with pytest.raises(InputError) as raised:
        load_image(path)
    assert str(raised.value).startswith(f"{path}: not a readable image (")
    assert str(raised.value).endswith("; make it smaller") == (case == "decompression bomb")
    assert read_image(path) == (None, None, None, str(raised.value).removeprefix(f"{path}: "))


def test_damage_of_any_kind_is_never_a_traceback(tmp_path):
    rng = random.Random("images")
    originals = [content for _, _, content in photo_files() for _ in range(25)]
    refused = 0
    for number, content in enumerate(originals):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(damage(content, rng))
        image, *_, why = read_image(path)
        if image is None:
            refused += 1
            assert why.startswith("not a readable image (")
        else:
            assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
            assert image.size > 0
    assert 0.2 < refused / len(originals) < 0.9


def test_phones_with_200_megapixels_are_not_taken_for_bombs(tmp_path):
    (tmp_path / "large.png").write_bytes(png_of(16_320, 12_240))
    assert "smaller" not in read_image(tmp_path / "large.png")[3]


def test_what_is_no_photo_is_counted_by_suffix(tmp_path, capsys):
    names = ("a.JPG", "b.webp", "c.HEIC", "d.dng", "d.mpo", "e.dng", "f", ".hidden", "g.jpg/x")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    photos, others = pick_photos(sorted(tmp_path.iterdir()))
    assert [photo.name for photo in photos] == ["a.JPG", "b.webp", "c.HEIC", "d.mpo"]
    print_left_out(others)
    assert "Pillow reads: 2 .dng, 1 no suffix, 1 folder" in capsys.readouterr().out
