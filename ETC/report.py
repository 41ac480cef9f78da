"""A run, or a submission with known answers, as one HTML file: `python -m ETC.report RUN ...`.

ETC/report.html is its template. Without JavaScript it still shows all but the photos.
"""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from config.config import HEADS
from utils.cli import ArgumentParser, InputError, answer_early, run


def get_args_parser():
    parser = ArgumentParser(
        "python -m ETC.report",
        description="Write report.html, curves.png and confusion.png of runs into their folders.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run of train.py (no default)"
    )
    return parser


if __name__ == "__main__":
    answer_early(get_args_parser())  # the imports below take seconds

import jinja2
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from data.images import load_image
from data.labels import class_names, problems_by_line, raise_problems, read_table, split_classes
from data.manifest import crop_folder
from utils.files import atomic_write
from utils.metrics import accuracy, bootstrap_confusions, calibration, macro_f1
from utils.plots import draw_confusion, draw_curves, save_figure

# Of a crop in the report: shown at 80 x 100 pixels, sharp on a phone, too, and 1 KB in size.
THUMBNAIL_SIZE = (96, 120)
WEBP_QUALITY = 50
SAMPLES = 1000
INTERVAL = (0.025, 0.975)
ANEW = "run train.py anew with --overwrite"
NO_EPOCH = "the run has no finished epoch"
MEND = "the run's own command with --resume writes it anew"


def read_arguments(folder):
    """The arguments of train.py in a run's config.json: {name: plain value}. Raises InputError."""
    path = Path(folder) / "config.json"
    try:
        arguments = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file; name the folder of a run of train.py") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); {MEND}") from error
    kinds = {"target": str, "fold": int, "data_dir": str, "crop_dir": str | None, "model": str,
             "resize": int, "epochs": int}  # fmt: skip
    if not (
        isinstance(arguments, dict)
        and kinds.keys() <= arguments.keys()
        and all(isinstance(arguments[name], kind) for name, kind in kinds.items())
        and arguments["target"] in HEADS
    ):
        raise InputError(f"{path}: not the arguments of train.py; {MEND}")
    return arguments


def read_numbers(path, columns, hint, way_out):
    """read_table with columns as finite numbers. Raises InputError, also for anything else, that
    ends with hint if path isn't there, and names way_out if it is damaged.
    """
    try:
        table = read_table(path, columns, hint)
    except InputError as error:
        raise InputError(f"{error}; {way_out}" if path.exists() else str(error)) from error
    for column in columns:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    problems = problems_by_line(
        *((~np.isfinite(table[column]), f"{column} is no finite number") for column in columns)
    )
    raise_problems(f"{path}: damaged, {way_out}", problems)
    return table


def read_log(folder):
    """A run's log.csv, a row an epoch, all columns numbers. Raises InputError."""
    path = Path(folder) / "log.csv"
    f1 = [f"f1_{name}" for name in HEADS[read_arguments(folder)["target"]]["classes"]]
    scores = ["accuracy", "macro_f1", *f1]
    columns = ["epoch", "train_loss", "valid_loss", *scores]
    table = read_numbers(path, columns, NO_EPOCH, MEND)
    problems = problems_by_line(
        (table["epoch"] != np.arange(1, len(table) + 1), "epochs don't count from 1"),
        (~table[scores].apply(lambda score: score.between(0, 1)).all(axis=1), "no score in [0, 1]"),
    )
    raise_problems(f"{path}: damaged, {MEND}", problems)
    return table[columns]


def read_predictions(folder):
    """A run's valid_predictions.csv as valid_predictions in utils.predictions makes it: age int,
    probabilities and loss float, the others strings. Raises InputError when it is missing or
    damaged.
    """
    path = Path(folder) / "valid_predictions.csv"
    classes = HEADS[read_arguments(folder)["target"]]["classes"]
    probs = [f"p_{name}" for name in classes]
    table = read_numbers(path, ["age", *probs, "loss"], NO_EPOCH, ANEW)
    texts = ["file", "person", "shot", "method", "gender", "label", "predicted"]
    missing = [name for name in texts if name not in table]
    if missing:
        raise InputError(f"{path}: damaged, {ANEW}: no column {', '.join(missing)}")
    problems = problems_by_line(
        (table["file"].duplicated(), "file stands there twice"),
        (~table["label"].isin(classes), "label is no class"),
        (~table["predicted"].isin(classes), "predicted is no class"),
        (
            ~(table["age"].between(0, 120) & (table["age"] % 1 == 0)),
            "age is not a whole number from 0 to 120",
        ),
        (table["loss"] < 0, "loss is below 0"),
        ((table[probs].sum(axis=1) - 1).abs() > 1e-3, "probabilities don't add up to 1"),
        ((table[probs] < 0).any(axis=1), "a probability is below 0"),
    )
    raise_problems(f"{path}: damaged, {ANEW}", problems)
    return table[[*texts, *probs, "age", "loss"]].astype({"age": int})


def thumbnail(path):
    """The photo at path, made small, as a WebP file in base64. Raises InputError."""
    image = Image.fromarray(load_image(path))
    image.thumbnail(THUMBNAIL_SIZE)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY)
    return base64.b64encode(buffer.getbuffer()).decode()


def thumbnails(folder, photos):
    """The thumbnail of the crop of each of photos, None where it is "bad". Raises InputError."""

    def of(file, method):
        return None if method == "bad" else thumbnail(folder / file)

    with ThreadPoolExecutor() as pool:
        try:
            return list(pool.map(of, photos["file"], photos["method"]))
        except InputError as error:
            raise InputError(
                f"{error}; data.crop makes crops anew that are lost or, being damaged, deleted; a "
                "relative path counts from where train.py was started"
            ) from error


def describe(name, classes, targets, predictions, confidences, groups):
    """A classification's scores and tables, for the template.

    targets, predictions: int arrays (N,) in [0, len(classes)); confidences: float (N,), the
    predictions' probabilities, NaN for photos without; groups: as for bootstrap_confusions.
    """
    labels = range(len(classes))
    confusion = confusion_matrix(targets, predictions, labels=labels)
    resampled = bootstrap_confusions(targets, predictions, groups, len(classes), SAMPLES)
    scores = {
        "macro-F1": (macro_f1(confusion), np.quantile(macro_f1(resampled, confusion), INTERVAL)),
        "accuracy": (accuracy(confusion), np.quantile(accuracy(resampled), INTERVAL)),
    }
    precision, recall, f1, count = precision_recall_fscore_support(
        targets, predictions, labels=labels, zero_division=0
    )
    known = ~np.isnan(confidences)
    *bins, error = calibration(confidences[known], (targets == predictions)[known])
    return {
        "name": name,
        "classes": classes,
        "scores": scores,
        "by_class": list(zip(classes, zip(f1, precision, recall), count)),
        "confusion": confusion,
        "shares": confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1),
        "bins": list(zip(*bins)),
        "error": error,
    }


def rounded(values, digits):
    """A list of a float array, to so many digits, None for NaN."""
    return [None if np.isnan(value) else round(value, digits) for value in values.tolist()]


def as_json(value):
    """JSON that is safe inside a <script>, whatever strings it holds; all of it ASCII."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def write_report(path, title, settings, log, photos, folder, heads, classifications):
    """Write the page. What a run's and a submission's have in common.

    settings: {name: plain value}; log: the table log.csv, or None; photos: a DataFrame with file,
    method and, where known, person, shot and age; folder: where their crops are; heads: {name:
    float (N, C), NaN for photos without}; classifications: of each its name, class names, targets
    and predictions, int (N,), losses, float (N,), and the names of its heads. The probability of
    several heads' answer is the product of theirs.
    """
    persons = photos.get("person")
    groups = np.arange(len(photos)) if persons is None else persons
    described, data = [], []
    for name, classes, targets, predictions, losses, its_heads in classifications:
        confidences = np.prod([heads[head].max(axis=1) for head in its_heads], axis=0)
        described.append(describe(name, classes, targets, predictions, confidences, groups))
        data.append(
            {
                "name": name,
                "classes": list(classes),
                "target": np.asarray(targets).tolist(),
                "predicted": np.asarray(predictions).tolist(),
                "loss": rounded(losses, 6),
                "heads": its_heads,
            }
        )
    known = photos.columns.intersection(["file", "method", "shot", "age"])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=title,
        settings=settings,
        log=log,
        count=len(photos),
        people=None if persons is None else persons.nunique(),
        has_shots="shot" in photos,
        samples=SAMPLES,
        classifications=described,
        data=as_json(
            {
                "classifications": data,
                "classes": {head: HEADS[head]["classes"] for head in heads},
                "probabilities": {
                    head: [rounded(row, 3) for row in probs] for head, probs in heads.items()
                },
                "photos": photos[known].to_dict("list"),
                "thumbnails": thumbnails(folder, photos),
            }
        ),
    )
    with atomic_write(path, "w") as file:
        file.write(page)


def write_submission_report(path, settings, photos, folder, heads, answers, classes):
    """Write the report of a submission with known answers: of the 18 classes and of each head.

    path: of the HTML file; settings: {name: plain value}; photos: a DataFrame with a row an eval
    image, file and method as in the manifest of crops, and, where known, person, shot and age;
    folder: where the crops are; heads: {target: float (N, C)} probabilities, NaN for photos that
    couldn't be read; answers, classes: the true and the predicted official class, int (N,) in
    [0, 18). Raises InputError when a crop is missing or path can't be written.
    """
    losses = {}
    for (target, probs), true in zip(heads.items(), split_classes(answers)):
        right = np.maximum(probs[np.arange(len(probs)), true], np.finfo(float).tiny)
        losses[target] = -np.log(right)
    whole = ("18 classes", class_names(), answers, classes, sum(losses.values()), list(HEADS))
    parts = [
        (target, HEADS[target]["classes"], true, predicted, losses[target], [target])
        for target, true, predicted in zip(HEADS, split_classes(answers), split_classes(classes))
    ]
    write_report(path, "Submission", settings, None, photos, folder, heads, [whole, *parts])


def report_run(folder):
    """Write curves.png, confusion.png and report.html of the run of train.py in folder, and say so.

    Raises InputError when a file of the run or a crop of its valid photos is missing or damaged.
    """
    folder = Path(folder)
    arguments, photos, log = read_arguments(folder), read_predictions(folder), read_log(folder)
    target = arguments["target"]
    classes = list(HEADS[target]["classes"])
    targets, predictions = (photos[name].map(classes.index) for name in ("label", "predicted"))
    confusion = confusion_matrix(targets, predictions, labels=range(len(classes)))
    if not np.isclose(macro_f1(confusion), log["macro_f1"].max()):
        raise InputError(
            f"{folder}: stopped between log.csv and valid_predictions.csv of an epoch; go on with "
            "train.py --resume"
        )
    title = f"{target}, fold {arguments['fold']}"
    save_figure(folder / "curves.png", draw_curves(log, title))
    save_figure(folder / "confusion.png", draw_confusion(confusion, classes, title))
    write_report(
        folder / "report.html",
        f"{title}: {arguments['model']} at {arguments['resize']} px",
        arguments,
        log,
        photos,
        crop_folder(arguments["data_dir"], arguments["crop_dir"], "train"),
        {target: photos[[f"p_{name}" for name in classes]].to_numpy()},
        [(target, classes, targets, predictions, photos["loss"].to_numpy(), [target])],
    )
    print(f"report: {folder / 'report.html'}, with curves.png and confusion.png beside it")


def main():
    for folder in get_args_parser().parse_args().runs:
        report_run(folder)


if __name__ == "__main__":
    run(main)
