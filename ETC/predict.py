"""Classify any photos: `python -m ETC.predict holiday/ party.jpg`

predictions.csv has a row per face: file; face, 1 for the largest of its photo; method, box and prob
as in crops.csv; the answers of the three heads; ans, the official class; the probability of each
class of each head; and networks, a hash of the networks and arguments that decide the answers.
predictions_sheet.png beside it shows the photos with boxes and answers. Videos are not read: cut
them into pictures first.
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # before PyTorch

import csv
import hashlib
import os
import tempfile
from collections import Counter
from functools import partial
from itertools import chain, islice

import numpy as np
import pandas as pd
from tqdm import tqdm

from config import config
from data.crop import BOX, SECOND_LOOK, add_crop_batch_size, crop_photos
from data.dataset import crop_loader
from data.images import list_files, pick_photos, print_left_out, read_image
from data.labels import merge_labels, raise_problems
from ETC.names import printable
from ETC.sheet import draw_sheet
from models.inference import build_members, pick_backend, predict
from utils import cli
from utils.checkpoint import find_checkpoints
from utils.cli import InputError
from utils.device import pick_device, pick_precision, progress_off, use_deterministic_kernels
from utils.files import atomic_write, check_output, write_csv

CHUNK = 512  # photos in work at once: the most that a killed command has to do again
MAX_PHOTOS = 100  # on the sheet
ANSWERS = [f"{target}_{name}" for target, names in config.CLASSES.items() for name in names]
COLUMNS = ["file", "face", "method", *BOX, "prob", *config.CLASSES, "ans", *ANSWERS, "networks"]
SHEET = "_sheet.png"  # a sheet's name: its table's stem and this


def is_sheet(path):
    """Whether path is the contact sheet of a table of this command beside it."""
    if not path.name.endswith(SHEET):
        return False
    try:
        with open(f"{str(path).removesuffix(SHEET)}.csv", "rb") as table:
            return table.readline().startswith(b"file,face,method,")
    except OSError:
        return False


def find_photos(paths, left_out):
    """Yield the photos at paths, each once: files as named, and in or below folders, linked ones
    too, in order of their names, every file with a photo's suffix except hidden ones and contact
    sheets beside their tables. Other files are added to the list left_out.

    Raises InputError, before the first photo, for a path that doesn't exist and without photos.
    """
    for name in paths:
        if not name or not (os.path.isfile(name) or os.path.isdir(name)):
            raise InputError(f"{name or 'an empty path'}: no such file or folder")
    folders, seen = set(), set()
    for path in map(Path, paths):
        is_folder = path.is_dir()
        for file in list_files(path, folders):
            found, others = [file], []
            if is_folder and not os.path.isdir(file):  # one that can't be listed is named later
                found, others = pick_photos([file])
            left_out += others
            for photo in found:
                # Not the path itself, which takes ten times the memory; no two collide in millions.
                real = hash(os.path.realpath(photo))
                if real not in seen and not (is_folder and is_sheet(photo)):
                    seen.add(real)
                    yield photo
    if not seen:
        print_left_out(left_out)
        raise InputError(f"{', '.join(map(str, paths))}: no photos in it")


def crop_faces(args, photos, folder, settings, device, all_faces=False):
    """Crop the largest face of each photo or, if all_faces, all its faces, to files in folder.

    args: from a parser with add_photo_arguments; photos: a list of paths; settings: the crop of a
    checkpoint. Returns a DataFrame, a row per face in the order of photos, with file, a name to
    show, and the keys of crop_photos as columns; and a line for each photo that is damaged.
    """
    # Photos of many sizes make many convolutions, of which oneDNN would keep 1024 in memory.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    order = {photo: number for number, photo in enumerate(photos)}
    pairs = []
    for photo, number in order.items():
        suffix = ".png" if photo.suffix.lower() == ".png" else ".jpg"  # the formats of data.crop
        pairs.append((photo, folder / f"{number}{suffix}"))
    rows = crop_photos(pairs, settings, device, args, all_faces)
    rows = sorted(rows, key=lambda row: (order[row["photo"]], row["face"]))
    for row in rows:
        row["file"] = printable(str(row["photo"]))
    damaged = [f"{row['file']}: {row['why']}" for row in rows if row["why"] and row["face"] == 1]
    return pd.DataFrame([row for row in rows if row["method"] != "bad"]), damaged


def load_heads(args):
    """classify with the heads of args.runs, as a function of photos and folder; the largest side of
    what they see, in pixels; and the table's column networks.

    args: from a parser with add_prediction_arguments, with what classify needs.
    """
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    if args.deterministic:
        use_deterministic_kernels()
    backend = pick_backend(args.backend, device, precision)
    checkpoints = find_checkpoints(args.runs)
    members, views = build_members(checkpoints, device, backend, args.tta, args.age_views)
    digests = [checkpoint["digest"] for head in checkpoints.values() for checkpoint in head]
    identity = repr([*sorted(digests), args.tta, args.age_views, args.all_faces])
    networks = f"sha256:{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    settings = checkpoints["mask"][0]["crop"]  # those of all heads
    classify_photos = partial(classify, args, settings=settings, members=members, views=views,
                              networks=networks, device=device, precision=precision)  # fmt: skip
    return classify_photos, max(side for side, _ in views), networks


def classify(args, photos, folder, settings, members, views, networks, device, precision):
    """The table predictions.csv of a list of photos, with the columns photo and crop: their paths
    and those of the faces, which are written to folder. And a line for each photo that is damaged.

    args: as for crop_faces, with all_faces and batch_size; settings: as for it too;
    members, views: from build_members; networks: for that column.
    """
    columns = [*COLUMNS, "photo", "crop"]
    faces, damaged = crop_faces(args, photos, folder, settings, device, args.all_faces)
    if faces.empty:
        return pd.DataFrame(columns=columns), damaged
    loader = crop_loader(faces["crop"].tolist(), views, args.batch_size, args.num_workers, device)
    probs = predict(members, loader, device, precision)
    labels = {target: probs[target].argmax(axis=1) for target in config.CLASSES}
    for target, names in config.CLASSES.items():
        faces[target] = np.array(names)[labels[target]]
        faces[[f"{target}_{name}" for name in names]] = probs[target].round(6)
    faces = faces.assign(ans=merge_labels(*labels.values()), networks=networks)
    return faces[columns], damaged


def append_rows(path, table):
    """Append rows of classify to the table at path."""
    try:
        with open(path, "a", encoding="utf-8", newline="") as file:
            table.to_csv(file, columns=COLUMNS, header=False, index=False, lineterminator="\n")
    except OSError as error:
        raise InputError(
            f"{path}: can't be written ({error.strerror or error}); free space, then --resume"
        ) from error


class Tally:
    """What was done so far."""

    def __init__(self):
        self.photos = self.good = 0  # all of them, and those that could be read
        self.methods = Counter()  # of the rows
        self.shown = []  # the photo of each row of the first MAX_PHOTOS photos

    def add(self, rows):
        """rows: the photo, the number of the face and the method of each."""
        for photo, face, method in rows:
            self.good += face == 1
            self.methods[method] += 1
            if self.good <= MAX_PHOTOS:
                self.shown.append(photo)


def rows_by_photo(path, rows):
    """Yield a list of each photo's rows, but for the last photo, which may lack some. rows: of the
    table at path. Raises InputError for a damaged one.
    """
    faces = []
    for row in rows:
        if len(row) != len(COLUMNS) or not row[1].isdecimal():
            if next(rows, None) is not None:  # only the last one may be cut off
                raise InputError(f"{path}: damaged after {faces[0][0] if faces else 'its header'}; "
                                 "start over without --resume")  # fmt: skip
            return
        if row[1] == "1" and faces:
            yield faces
            faces = []
        faces.append(row)


def next_readable(photos, file, tally):
    """The next of photos, an iterator, that is called file or can be read; None at the end. Those
    before it, which have no rows, are named on stderr; tally counts all.
    """
    for photo in photos:
        tally.photos += 1
        name = printable(str(photo))
        if name == file:
            return photo
        image, *_, why = read_image(photo)
        if image is not None:
            return photo
        print(f"{name}: {why}", file=sys.stderr)
    return None


def keep_finished(path, photos, networks, tally):
    """Keep what a killed command wrote to path, except for its last photo, and add it to tally.

    photos: an iterator, which goes on behind the photos that are kept; networks: that column.
    Raises InputError for another table, other networks, and when the photos have changed.
    """
    with (
        atomic_write(path, "w") as new,
        open(path, encoding="utf-8", errors="replace", newline="") as old,
    ):
        table, kept = csv.reader(old), csv.writer(new, lineterminator="\n")
        header, first = next(table, COLUMNS), next(table, None)
        torn = first is None and ",".join(COLUMNS).startswith(",".join(header))
        if header != COLUMNS and not torn:
            raise InputError(f"{path}: no table of this version of ETC.predict; choose another "
                             "--output")  # fmt: skip
        kept.writerow(COLUMNS)
        rows = table if first is None else chain([first], table)
        for faces in rows_by_photo(path, rows):
            file = faces[0][0]
            if faces[0][-1] != networks:
                raise InputError(f"{path}: made with other networks, --tta, --age-views or "
                                 "--all-faces; repeat those, start over without --resume, or "
                                 "choose another --output")  # fmt: skip
            photo = next_readable(photos, file, tally)
            found = printable(str(photo)) if photo else "none"
            if found != file:
                raise InputError(
                    f"{path}: the next row is of {file}, but the next photo is {found}: photos "
                    "were added, removed, renamed, or unreadable before, or --shard was another; "
                    "repeat it, choose another --output, or start over without --resume"
                )
            kept.writerows(faces)
            tally.add((photo, int(row[1]), row[2]) for row in faces)


def end_with_bad(args, photos, good):
    """Exit with status 1, unless args.skip_bad, if some of so many photos aren't good."""
    if photos > good and not args.skip_bad:
        print(f"{photos - good} of {photos} photos can't be read", file=sys.stderr)
        sys.exit(1)


def classify_all(args, photos, output, classify_chunk, networks):
    """Write the table of photos, an iterator, to output, a chunk at a time. Returns a Tally.

    classify_chunk, networks: from load_heads. Names damaged photos on stderr. Raises InputError
    when none can be read; a share of them then gets an empty table, unless it has one.
    """
    tally, damaged = Tally(), []
    started = args.resume and output.exists()
    if started:
        keep_finished(output, photos, networks, tally)
        print(f"{output}: going on after {tally.photos} photos")
    with tqdm(desc="photos", initial=tally.photos, unit="photo", disable=progress_off()) as bar:
        while chunk := list(islice(photos, CHUNK)):
            with tempfile.TemporaryDirectory() as folder:
                table, lines = classify_chunk(chunk, Path(folder))
            damaged += lines
            tally.photos += len(chunk)
            tally.add(zip(table["photo"], table["face"], table["method"]))
            if tally.good and not started:  # until then, an earlier table stays
                write_csv(output, pd.DataFrame(columns=COLUMNS))
                started = True
            if started:
                append_rows(output, table)
            bar.update(len(chunk))
            if tally.good and damaged:
                tqdm.write("\n".join(damaged), file=sys.stderr)
                damaged = []
    # A share may hold no readable photo, but an empty table replaces no earlier one.
    keeps_earlier = not started and output.exists()
    if not args.shard or keeps_earlier:
        raise_problems("no readable photos", damaged)
    for line in damaged:
        print(line, file=sys.stderr)
    if not started:  # a share without photos, or without readable ones
        write_csv(output, pd.DataFrame(columns=COLUMNS))
    return tally


def main():
    args = get_args_parser().parse_args()
    output = Path(args.output)
    sheet = output.parent / f"{output.stem}{SHEET}"
    left_out = []
    photos = find_photos(args.photos, left_out)
    photos = chain([next(photos)], photos)  # without photos, stop before anything is loaded
    if sheet.exists() and not output.exists():
        raise InputError(f"--output {output}: would overwrite {sheet}, which may be a photo, as no "
                         "table is beside it; move it, or choose another --output")  # fmt: skip
    check_output(output, [".csv"], filter(os.path.isfile, args.photos), [sheet.name])
    classify_chunk, _, networks = load_heads(args)
    if args.shard:
        number, shards = args.shard
        total = sum(1 for _ in photos)
        photos = find_photos(args.photos, [])
        photos = islice(photos, total * (number - 1) // shards, total * number // shards)
    tally = classify_all(args, photos, output, classify_chunk, networks)
    outputs, picture = [output], None
    if tally.shown:
        shown = pd.read_csv(output, nrows=len(tally.shown), dtype={"file": str}, na_filter=False)
        try:
            picture = draw_sheet(shown.assign(photo=tally.shown))
        except InputError as error:  # a photo vanished meanwhile; the table is whole
            print(f"no sheet: {error}", file=sys.stderr)
    if picture:
        with atomic_write(sheet) as file:
            picture.save(file, "PNG")
        outputs.append(sheet)
    else:
        sheet.unlink(missing_ok=True)  # an earlier one
    missed, again = tally.methods["center"], tally.methods[SECOND_LOOK]
    print(
        f"{tally.good} photos, {tally.methods.total() - missed} faces ({again} found by the second "
        f"look), {missed} without a face, classified by their centre -> "
        f"{', '.join(map(str, outputs))}"
    )
    if sheet in outputs and tally.good > MAX_PHOTOS:
        print(f"{sheet} shows the first {MAX_PHOTOS} photos")
    print_left_out(left_out)
    end_with_bad(args, tally.photos, tally.good)


# fmt: off
def add_photo_arguments(add):
    """Add what find_photos and crop_faces need, with add, an add_argument method."""
    add("photos", nargs="+", metavar="PATH",
        help="photos, and folders that are searched for photos")
    add("--skip-bad", action="store_true",
        help="exit with status 0 even if some photos can't be read (default: 1; if none can, 2); "
             "they are left out either way")
    add_crop_batch_size(add)
    cli.add_machine_arguments(add)


def get_args_parser():
    parser = cli.ArgumentParser("python -m ETC.predict", description="Classify any photos.")
    add = parser.add_argument
    add_photo_arguments(add)
    add("--output", type=cli.file_name, default="predictions.csv", metavar="FILE",
        help="the answers, with a contact sheet beside them (default: %(default)s)")
    add("--all-faces", action="store_true",
        help="classify every face of a photo (default: the largest)")
    add("--resume", action="store_true",
        help="go on with an --output that the same command left when it was killed (default: "
             "start over)")
    shard = cli.checked(lambda text: tuple(map(int, text.split("/"))),
                        lambda pair: len(pair) == 2 and 1 <= pair[0] <= pair[1],
                        "K/N with whole numbers, K from 1 to N")
    add("--shard", type=shard, metavar="K/N",
        help="classify the K-th of N equal shares of the photos, in their order (default: all)")
    cli.add_prediction_arguments(add)
    cli.add_precision_arguments(add)
    return parser
# fmt: on


if __name__ == "__main__":
    cli.run(main, "the same command with --resume goes on")
