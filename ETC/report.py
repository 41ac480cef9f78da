"""A run, or a submission with known answers, as one HTML page.

python -m ETC.report runs/age_fold0
python -m ETC.report submission.csv --answers answers.csv

ETC/report.html is the template. Without JavaScript the page shows all but the photos.
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # before PyTorch

import base64
import contextlib
import io
import json
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from PIL import Image

from config import config
from config.config import CLASSES
from data.crop import crop_folder, read_record
from data.images import load_image
from data.labels import find_names, read_answers, split_classes
from ETC import statistics
from ETC.names import class_names
from utils import cli
from utils.cli import InputError
from utils.files import atomic_write
from utils.plots import save_plots

THUMBNAIL_SIZE = 96, 120  # pixels; shown at 80 x 100, so sharp on a phone too, in 1 KB
WEBP_QUALITY = 50
SAMPLES = 1000

# name: str; classes: their names; targets, predictions: int (N,); losses: float (N,), NaN for bad
# photos; heads: those whose probabilities multiply to that of the answer.
Classification = namedtuple("Classification", "name classes targets predictions losses heads")


@contextlib.contextmanager
def readable(path, way_out):
    """Turn what json and pandas raise for a missing or damaged file into an InputError."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: can't be read ({why}); {way_out}") from error


def read_table(path, types, way_out, optional=(), **converters):
    """The columns of a CSV file that types, {name: dtype}, and converters, functions of a text,
    name, and the optional ones that it has, as str. Empty fields are NaN. Raises InputError, ending
    in way_out.
    """
    columns, types = {*types, *converters}, {**types, **dict.fromkeys(optional, str)}
    wanted = columns.union(optional)
    with readable(path, way_out):
        table = pd.read_csv(
            path,
            usecols=lambda name: name in wanted,
            dtype=types,
            converters=converters,
            keep_default_na=False,
            na_values=[""],
        )
        if missing := columns.difference(table):
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        if table.empty:
            raise ValueError("no rows")
    return table


def read_run(folder):
    """The files of a run: config.json, {name: value}; log.csv; and val_predictions.csv, with label
    and predicted as labels of the head and, if it has them, gender and race. Raises InputError when
    one is missing or damaged.
    """
    path, way_out = Path(folder) / "config.json", "name the folder of a run with a finished epoch"
    with readable(path, way_out):
        arguments = json.loads(path.read_text(encoding="utf-8"))
        needed = {"target", "fold", "epochs", "model", "resize", "data_dir", "crop_dir"}
        if missing := needed - {*arguments}:
            raise ValueError(f"no {', '.join(sorted(missing))}")
        if arguments["target"] not in CLASSES:
            raise ValueError(f"target {arguments['target']!r} is none of {', '.join(CLASSES)}")
        classes = CLASSES[arguments["target"]]
    numbers = ["epoch", "train_loss", "val_loss", "accuracy", "macro_f1"]
    numbers += [f"f1_{name}" for name in classes]
    log = read_table(path.with_name("log.csv"), dict.fromkeys(numbers, float), way_out)
    types = {**dict.fromkeys(("file", "person", "shot", "method"), str), "age": int}
    types |= dict.fromkeys([*(f"p_{name}" for name in classes), "loss"], float)

    def class_label(name):
        if name not in classes:
            raise ValueError(f"{name!r} is none of {', '.join(classes)}")
        return classes.index(name)

    labels = dict.fromkeys(("label", "predicted"), class_label)
    path, optional = path.with_name("val_predictions.csv"), ("gender", "race")
    table = read_table(path, types, way_out, optional, **labels)
    for name in ("file", "person", "shot", "method"):
        if table[name].isna().any():
            line = table[name].isna().idxmax() + 2
            raise InputError(f"{path}: line {line}: no {name}; restore it, or train again")
    probs = table[[f"p_{name}" for name in classes]].to_numpy()
    if not ((probs >= 0) & (probs <= 1)).all():
        raise InputError(f"{path}: a probability is missing or not within 0 and 1; {way_out}")
    if not np.isfinite(table["loss"]).all():
        raise InputError(f"{path}: a loss is missing or not finite; {way_out}")
    return arguments, log, table


def grouped(values):
    """The group of each photo by a column gender, age (in decades) or race of a table of read_run,
    as a pandas.Categorical (N,).
    """
    if values.name == "age":
        return pd.Categorical(values // 10 * 10).rename_categories("{}s".format)
    return pd.Categorical(values.fillna("unknown"))


def report_run(folder, data_dir=None, crop_dir=None):
    """Write report.html, curves.png and confusion.png of the run in folder into it.

    data_dir, crop_dir: where the crops are, as for train.py; without both, where they were in
    training. Raises InputError when a file of the run or a crop is missing or damaged.
    """
    folder = Path(folder)
    arguments, log, table = read_run(folder)
    target, classes = arguments["target"], CLASSES[arguments["target"]]
    answers = (table[name].to_numpy() for name in ("label", "predicted", "loss"))
    if not (data_dir or crop_dir):
        crop_dir = arguments["crop_dir"]
    crops = crop_folder(data_dir or arguments["data_dir"], crop_dir, "train")
    save_plots(folder, classes)
    write_report(
        folder / "report.html",
        title="{target}, fold {fold}: {model} at {resize} px".format(**arguments),
        settings=arguments,
        photos=table[["file", "person", "shot", "method", "age"]],
        folder=crops,
        heads={target: table[[f"p_{name}" for name in classes]].to_numpy()},
        classifications=[Classification(target, classes, *answers, [target])],
        groups={name: grouped(table[name]) for name in ("gender", "age", "race") if name in table},
        log=log,
    )
    print(f"{folder / 'report.html'}, with curves.png and confusion.png beside it")


def report_submission(path, answers_path, data_dir, crop_dir):
    """Write report.html beside the submission at path, of the 18 classes and of each head.

    Raises InputError when it, the answers, probabilities.csv beside it or a crop is missing or
    damaged.
    """
    path, way_out = Path(path), "name a submission of test.py, or run test.py again"
    submission = read_table(path, {"ImageID": str, "ans": int}, way_out)
    if submission["ImageID"].isna().any():
        raise InputError(f"{path}: an ImageID is empty; {way_out}")
    columns = [f"{target}_{name}" for target, names in CLASSES.items() for name in names]
    types = {"ImageID": str, **dict.fromkeys(columns, float)}
    table = read_table(path.with_name("probabilities.csv"), types, way_out)
    answers, classes = read_answers(answers_path, submission), submission["ans"].to_numpy()
    other = InputError(f"{path}: not of the probabilities.csv beside it; {way_out}")
    if not (table["ImageID"].equals(submission["ImageID"]) and np.isin(classes, range(18)).all()):
        raise other

    heads, parts, rows = {}, [], np.arange(len(table))
    for target, true, predicted in zip(CLASSES, split_classes(answers), split_classes(classes)):
        probs = table[[f"{target}_{name}" for name in CLASSES[target]]].to_numpy()
        # Rounded to six digits, two classes may be equal. Images that can't be read have NaN.
        if (probs[rows, predicted] < probs.max(axis=1) - 2e-6).any():
            raise other
        losses = -np.log(np.maximum(probs[rows, true], 1e-6))
        heads[target] = probs
        parts.append(Classification(target, CLASSES[target], true, predicted, losses, [target]))
    losses = sum(part.losses for part in parts)
    whole = Classification("18 classes", class_names(), answers, classes, losses, [*CLASSES])
    folder = crop_folder(data_dir, crop_dir, "eval")
    _, manifest = read_record(folder)
    files = find_names(folder, submission["ImageID"])
    methods = [manifest.get(file, {}).get("method", "unknown") for file in files]
    photos = pd.DataFrame({"file": files, "method": methods})
    settings = {"submission": path, "answers": answers_path, "crops": folder}
    report = path.with_name("report.html")
    groups = {
        part.name: pd.Categorical.from_codes(part.targets, part.classes) for part in parts[1:]
    }
    write_report(
        report, title="Submission", settings=settings, photos=photos, folder=folder, heads=heads,
        classifications=[whole, *parts], groups=groups,
    )  # fmt: skip
    print(report)


def write_report(
    path, *, title, settings, photos, folder, heads, classifications, groups, log=None
):
    """Fill in the template and write the page.

    settings: {name: plain value}; photos: a DataFrame with file, method and, where known, person,
    shot and age; folder: where the crops are; heads: {target: float (N, C)}, NaN for bad photos;
    groups: {field: grouped of it}; log: the table log.csv of a run.
    """
    import jinja2  # seldom needed

    people = photos.get("person", pd.Series(range(len(photos))))  # else each photo by itself
    data = {
        "classifications": [
            {**part._asdict(), "losses": rounded(part.losses, 6)} for part in classifications
        ],
        "classes": {target: CLASSES[target] for target in heads},
        "probabilities": {target: rounded(probs, 3) for target, probs in heads.items()},
        "photos": photos.drop(columns="person", errors="ignore").to_dict("list"),
        "thumbnails": thumbnails(folder, photos),
    }
    text = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    template = jinja2.Template(text, autoescape=True, undefined=jinja2.StrictUndefined)
    page = template.render(
        title=title,
        settings=settings,
        log=log,
        count=len(photos),
        people=people.nunique() if "person" in photos else None,
        has_shots="shot" in photos,
        samples=SAMPLES,
        classifications=[summarize(part, heads, people, groups) for part in classifications],
        data=as_json(data),
    )
    with atomic_write(path, "w") as file:
        file.write(page)


def summarize(part, heads, people, groups):
    """The scores and tables of a Classification, for the template. people: (N,), any type; groups:
    {field: grouped of it}.
    """
    size, answers = len(part.classes), (part.targets, part.predictions)
    confusion = statistics.confusion_matrix(*answers, size)
    resampled = statistics.bootstrap_confusions(*answers, people, size, SAMPLES)
    held = confusion.sum(axis=1) > 0
    scores = {
        "macro-F1": (statistics.macro_f1(confusion), statistics.macro_f1(resampled, held)),
        "accuracy": (statistics.accuracy(confusion), statistics.accuracy(resampled)),
    }
    hits, true, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = 2 * hits / np.maximum(true + predicted, 1)
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(true, 1)
    confidences = np.prod([heads[head].max(axis=1) for head in part.heads], axis=0)
    known, correct = ~np.isnan(confidences), part.targets == part.predictions
    *bins, error = statistics.calibration(confidences[known], correct[known])
    return {
        **part._asdict(),
        "scores": {
            name: (score, np.quantile(drawn, statistics.INTERVAL))
            for name, (score, drawn) in scores.items()
        },
        "by_class": list(zip(part.classes, zip(f1, precision, recall), true)),
        "by_group": {
            field: statistics.score_groups(values, *answers, people, size, SAMPLES)
            for field, values in groups.items()
        },
        "confusion": confusion,
        "shares": confusion / np.maximum(true, 1)[:, None],
        "bins": list(zip(*bins)),
        "error": error,
    }


def thumbnails(folder, photos):
    """The thumbnail of each photo's crop, None for bad photos. Raises InputError."""
    paths = [None if row.method == "bad" else folder / row.file for row in photos.itertuples()]
    try:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda path: path and thumbnail(path), paths))
    except InputError as error:
        raise InputError(
            f"{error}; name the crops' folder with --data-dir or --crop-dir, or delete this crop "
            "and run python -m data.crop"
        ) from error


def thumbnail(path):
    """The image at path, made small, as a WebP file in base64."""
    image = Image.fromarray(load_image(path))
    image.thumbnail(THUMBNAIL_SIZE)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY)
    return base64.b64encode(buffer.getbuffer()).decode()


def rounded(values, digits):
    """A float array as lists, None for NaN."""
    return np.where(np.isnan(values), None, values.round(digits)).tolist()


def as_json(value):
    """ASCII JSON that is safe inside a <script>, whatever strings it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, default=np.ndarray.tolist)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def get_args_parser():
    parser = cli.ArgumentParser(
        "python -m ETC.report",
        description="Write report.html of runs into their folders, or of a submission with known "
        "answers beside it.",
    )
    # fmt: off
    add = parser.add_argument
    add("paths", type=cli.file_name, nargs="+", metavar="RUN",
        help="folders of runs of train.py or, with --answers, a submission.csv of test.py")
    add("--answers", type=cli.file_name, metavar="FILE",
        help="CSV with ImageID and the true ans, for a submission (default: paths are runs)")
    add("--data-dir", type=cli.file_name,
        help="folder that holds train/ and eval/ (default: the run's, or as for test.py)")
    add("--crop-dir", type=cli.file_name,
        help="folder of the face crops (default: --data-dir or else the run's, or as for test.py)")
    # fmt: on
    return parser


def main():
    args = get_args_parser().parse_args()
    if not args.answers:
        for path in args.paths:
            if Path(path).is_file():
                raise InputError(f"{path}: not a run's folder; for a submission, add --answers")
            report_run(path, args.data_dir, args.crop_dir)
    elif len(args.paths) > 1:
        raise InputError(f"{' '.join(args.paths)}: --answers goes with one submission")
    else:
        data_dir = args.data_dir or config.DATA_DIR
        report_submission(args.paths[0], args.answers, data_dir, args.crop_dir or config.CROP_DIR)


if __name__ == "__main__":
    cli.run(main, "reports that are finished are kept")
