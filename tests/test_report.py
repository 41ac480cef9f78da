import itertools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select
from sklearn import metrics

from config.config import CLASSES as HEADS
from conftest import ROOT, assert_refused, run, run_ok
from data.labels import split_classes
from ETC.report import report_run
from ETC.statistics import bootstrap_confusions, calibration, macro_f1

CLASSES = HEADS["age"]
PROBS = [f"p_{name}" for name in CLASSES]
SHOTS = ("normal", "incorrect_mask", "mask1", "mask2")
# A person's folder. Unescaped, its name would run as a script, an event handler or a template.
# Windows doesn't allow its letters.
HOSTILE = (
    "a b'&amp;{{7*7}}"
    if os.name == "nt"
    else "a\"b'<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u2028<!--{{7*7}}"
)


def write_run(folder, table, target="age", fold=0, **arguments):
    """A run's files as train.py leaves them, without its crops. table: val_predictions.csv."""
    folder.mkdir(parents=True)
    table.to_csv(folder / "val_predictions.csv", index=False)
    arguments |= {"target": target, "fold": fold, "epochs": 2, "resize": 224,
                  "model": "efficientnet-b3", "weights": "<b>weights</b>.pth"}  # fmt: skip
    arguments = {"crop_dir": None, "data_dir": "data", **arguments}
    (folder / "config.json").write_text(json.dumps(arguments, default=str))
    f1 = metrics.f1_score(table["label"], table["predicted"], average="macro")
    log = {"epoch": [1, 2], "train_loss": 0.9, "val_loss": 0.7, "accuracy": 0.5,
           "macro_f1": [f1 / 2, f1], **{f"f1_{name}": 0.4 for name in HEADS[target]}}  # fmt: skip
    pd.DataFrame(log).to_csv(folder / "log.csv", index=False)
    return folder


def make_table(target="age", fold=0, share=0.7, seed=0, first="first", worse=0):
    """val_predictions.csv of 30 people, a share of it correct, for men one less by worse; first:
    the first one's folder.
    """
    classes, rng = np.array(HEADS[target]), np.random.default_rng([seed, fold])
    folders = [first, *(f"{fold}{number:05d}_female_Asian_51" for number in range(1, 30))]
    table = pd.DataFrame(itertools.product(folders, SHOTS), columns=["person", "shot"])
    table.insert(0, "file", table["person"] + "/" + table["shot"] + ".jpg")
    methods = ["mtcnn", "mtcnn, second look", "center"]
    table["method"] = rng.choice(methods, len(table), p=[0.7, 0.2, 0.1])
    people = np.random.default_rng([8, fold])
    table["gender"] = people.choice(["female", "male"], 30).repeat(len(SHOTS))
    table["age"] = people.integers(8, 105, 30).repeat(len(SHOTS))
    table["race"] = people.choice(["Asian", "asian", HOSTILE, "NA", ""], 30).repeat(len(SHOTS))
    shares = share - worse * (table["gender"] == "male").to_numpy()
    # The labels are those of all tables of a head and fold.
    labels = np.random.default_rng([7, fold, len(classes)]).integers(len(classes), size=len(table))
    predicted = (labels + (rng.random(len(table)) > shares)) % len(classes)
    probs = rng.dirichlet(np.ones(len(classes)), len(table)) + np.eye(len(classes))[predicted]
    table["label"], table["predicted"] = classes[labels], classes[predicted]
    table[[f"p_{name}" for name in classes]] = probs.round(6) / 2
    table["loss"] = -np.log(probs[np.arange(len(table)), labels] / 2).round(6)
    return table


@pytest.fixture(scope="module")
def table():
    return make_table(first=HOSTILE, worse=0.4)


@pytest.fixture(scope="module")
def finished_run(table, tmp_path_factory):
    """A run with its report, made by the command."""
    data_dir = tmp_path_factory.mktemp("data")
    for file in table["file"]:
        (data_dir / "train/new_img" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 30)).save(data_dir / "train/new_img" / file)
    folder = write_run(tmp_path_factory.mktemp("runs") / "age_fold0", table, data_dir=data_dir)
    assert str(folder / "report.html") in run_ok("-m", "ETC.report", folder)
    return folder


def test_the_command_takes_runs_of_train(runs_dir, tmp_path):
    ignore = shutil.ignore_patterns("*.pth", "*.png")  # a stopped run has no pictures
    runs = [shutil.copytree(runs_dir / name, tmp_path / name, ignore=ignore)
            for name in ("gender_fold1", "age_fold3")]  # fmt: skip
    run_ok("-m", "ETC.report", *runs)
    for folder in runs:
        page = (folder / "report.html").read_bytes()
        assert b"photos of" in page
        for name in ("curves.png", "confusion.png"):
            with Image.open(folder / name) as picture:
                assert picture.width > 300
        report_run(folder)
        assert (folder / "report.html").read_bytes() == page  # the same run, the same bytes


@pytest.mark.parametrize("name", ["val_predictions.csv", "config.json", "log.csv"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00{", b"[1]", b"epoch,file\n1,2\n"])
def test_missing_and_damaged_files_are_refused(table, name, content, tmp_path):
    folder = write_run(tmp_path / "run", table, data_dir=tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    done = run("-m", "ETC.report", folder)
    assert_refused(done, f"{folder / name}: can't be read", "name the folder of a run")
    assert not (folder / "report.html").exists()


def test_damaged_values_are_refused(table, tmp_path):
    folder = write_run(tmp_path / "run", table, data_dir=tmp_path)
    for value in ("", "inf", "-5"):
        text = table.assign(p_30to59=table["p_30to59"].astype(str))
        text.loc[3, "p_30to59"] = value
        text.to_csv(folder / "val_predictions.csv", index=False)
        assert_refused(run("-m", "ETC.report", folder), "val_predictions.csv", "probability")
    for column, value, words in (
        ("loss", "inf", "a loss is missing or not finite"),
        ("method", "", "line 5: no method; restore it"),
        ("label", "old", "can't be read ('old' is none of under30, 30to59, 60plus)"),
    ):
        text = table.astype(str)
        text.loc[3, column] = value
        text.to_csv(folder / "val_predictions.csv", index=False)
        assert_refused(run("-m", "ETC.report", folder), "val_predictions.csv", words)
    arguments = json.loads((folder / "config.json").read_text())
    del arguments["epochs"]
    (folder / "config.json").write_text(json.dumps(arguments))
    assert_refused(run("-m", "ETC.report", folder), "config.json: can't be read (no epochs)")
    (folder / "config.json").write_text(json.dumps({**arguments, "epochs": 1, "target": "nose"}))
    refused = run("-m", "ETC.report", folder)
    assert_refused(refused, "config.json: can't be read (target 'nose' is none of mask, gender")


def test_crops_elsewhere(finished_run, table, tmp_path):
    gone = {"data_dir": tmp_path / "gone", "crop_dir": tmp_path / "gone"}
    folder = write_run(tmp_path / "run", table, **gone)
    assert_refused(run("-m", "ETC.report", folder), "normal.jpg", "--data-dir", "data.crop")
    arguments = json.loads((finished_run / "config.json").read_text())
    run_ok("-m", "ETC.report", folder, "--data-dir", arguments["data_dir"])
    crops = tmp_path / "crops/train"
    shutil.copytree(Path(arguments["data_dir"]) / "train/new_img", crops / "new_img")
    run_ok("-m", "ETC.report", folder, "--crop-dir", crops.parent)
    folder = write_run(tmp_path / "other", table, **{**gone, "crop_dir": crops.parent})
    run_ok("-m", "ETC.report", folder)


@pytest.fixture
def page(browser, finished_run):
    """The run's report, just opened; at the end, nothing is in the console, no dialog is open."""
    browser.get((finished_run / "report.html").as_uri())
    yield browser
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text
    assert browser.get_log("browser") == []


def texts(page, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
    return page.execute_script(script, selector)


def find(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def show_all(page):
    while find(page, "#more").is_displayed():
        find(page, "#more").click()


def assert_shows(page, expected, table):
    """The page shows the photos of a part of the table, by loss, and counts them."""
    assert find(page, "#count").text == f"{len(expected)} of {len(table)} photos"
    show_all(page)
    order = expected.sort_values("loss", ascending=False, kind="stable")["file"]
    assert texts(page, ".file") == order.tolist()


def choose(page, name, value):
    Select(find(page, f"select[name={name}]")).select_by_value(value)


def test_all_photos_are_shown_by_loss_a_hundred_at_a_time(page, table):
    assert len(texts(page, ".card")) == 100
    find(page, "#more").click()
    assert page.switch_to.active_element == page.find_elements(By.CSS_SELECTOR, ".card")[100]
    assert_shows(page, table, table)
    pixels = page.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert pixels == [24] * len(table) == [24] * 120
    row, card = table.loc[table["loss"].idxmax()], find(page, ".card")
    assert find(card, ".verdict").text == f"✗ {row['label']} predicted as {row['predicted']}"
    facts = find(card, ".facts").text.split("\n")
    assert facts[:3] == [f"loss {row['loss']:.3f}", f"age {row['age']}", row["shot"]]
    shown = [float(cell.text[:-2]) for cell in card.find_elements(By.TAG_NAME, "dd")]
    assert shown == pytest.approx([100 * row[name] for name in PROBS], abs=0.06)
    assert find(card, ".bars .top dt").text == row["predicted"]


def test_filters_agree_with_the_table(page, table):
    method = table["method"].replace("center", "no face found")
    outcome = np.where(table["label"] == table["predicted"], "correct", "wrong")
    for name, column in (
        ("true", table["label"]), ("predicted", table["predicted"]), ("shot", table["shot"]),
        ("method", method), ("outcome", pd.Series(outcome)),
    ):  # fmt: skip
        options = Select(find(page, f"select[name={name}]")).options
        counts = {option.get_attribute("value"): option.text for option in options[1:]}
        expected = {value: f"{value} ({n})" for value, n in column.value_counts().items()}
        assert counts == expected
        choose(page, name, value := next(iter(counts)))
        assert_shows(page, table[column == value], table)
        find(page, "#clear").click()
    choose(page, "true", "30to59")
    choose(page, "shot", "mask1")
    choose(page, "outcome", "wrong")
    find(page, "[name=text]").send_keys("ASIAN_51", Keys.ENTER)  # which must not send the form
    expected = table[
        (table["label"] == "30to59") & (table["shot"] == "mask1")
        & (table["predicted"] != "30to59") & table["file"].str.contains("Asian_51")
    ]  # fmt: skip
    assert 0 < len(expected) < 20
    assert_shows(page, expected, table)
    find(page, "[name=text]").send_keys("no such file")
    assert_shows(page, table[:0], table)


def confusion_cells(page, section):
    """The matrix in a section: counts, int (C, C)."""
    cells = page.execute_script(
        "return [...arguments[0].querySelectorAll('.confusion tbody tr')].map("
        "(row) => [...row.querySelectorAll('td')].map((cell) => cell.textContent))",
        section,
    )
    return [[int(re.match(r"\s*(\d+)", cell)[1]) for cell in row] for row in cells]


def test_the_confusion_matrix_is_scikit_learns_and_its_cells_filter(page, table):
    expected = metrics.confusion_matrix(table["label"], table["predicted"], labels=CLASSES)
    assert confusion_cells(page, find(page, ".classification")) == expected.tolist()
    choose(page, "shot", "mask1")  # a cell shows all of its photos, whatever was chosen before
    find(page, "button[data-true='1'][data-predicted='2']").click()
    assert page.switch_to.active_element.text == "Photos, highest loss first"
    chosen = (table["label"] == "30to59") & (table["predicted"] == "60plus")
    assert expected[1, 2] == chosen.sum() > 0
    assert_shows(page, table[chosen], table)


def test_the_scores_are_scikit_learns(page, table):
    pair = table["label"], table["predicted"]
    shown = texts(page, ".scores dd")
    assert shown[0] == f"{metrics.f1_score(*pair, average='macro'):.4f}"
    assert shown[2] == f"{metrics.accuracy_score(*pair):.4f}"
    labels = [labels.map(CLASSES.index) for labels in pair]
    drawn = bootstrap_confusions(*labels, table["person"], 3)
    low, high = np.quantile(macro_f1(drawn, True), [0.025, 0.975])
    assert shown[1] == f"95 % interval {low:.3f} to {high:.3f}"
    assert "whole people" in find(page, ".note").text
    assert texts(page, ".best th") == ["2 (best)"]
    scores = metrics.f1_score, metrics.precision_score, metrics.recall_score
    by_class = np.transpose([score(*pair, labels=CLASSES, average=None) for score in scores])
    expected = []
    for name, row in zip(CLASSES, by_class):
        expected += [*(f"{score:.4f}" for score in row), str((table["label"] == name).sum())]
    assert texts(page, ".classification table:not(.confusion) td")[:12] == expected
    # In the diagram, bars as high as the share correct, and lines at the mean probability.
    counts, confidence, share, error = calibration(table[PROBS].max(axis=1), np.equal(*pair))
    assert shown[4] == f"{error:.4f}"
    heights = page.execute_script(
        "return [...document.querySelectorAll('rect, .mean')]"
        ".map((bar) => Number(bar.getAttribute('height') ?? 260 - bar.getAttribute('y1')))"
    )
    expected = np.stack([share, confidence], axis=1)[counts > 0].ravel()
    assert np.array(heights) / 250 == pytest.approx(expected, abs=0.001)


def test_each_group_is_scored_and_those_served_worse_are_marked(page, table):
    """Rows as pandas and scikit-learn compute them; intervals are in test_statistics."""
    correct = table["label"] == table["predicted"]
    fields = {"gender": table["gender"], "age": (table["age"] // 10).astype(str) + "0s",
              "race": table["race"].replace("", "unknown")}  # fmt: skip
    fields["age"] = fields["age"].replace("00s", "0s")
    shown = page.execute_script(
        "return [...document.querySelectorAll('.groups tbody')].map((body) => [...body.rows].map("
        "(row) => [...row.cells].map((cell) => cell.textContent.trim().split(/\\s+/))))"
    )
    assert [[*field] for (((field, *_),), *_) in shown] == [[*field] for field in fields]
    marked = 0
    for (_, *rows), groups in zip(shown, fields.values()):
        names = [" ".join(name).removesuffix(" ▼") for name, *_ in rows]
        key = (lambda name: int(name[:-1])) if groups is fields["age"] else None
        assert names == [" ".join(name.split()) for name in sorted(groups.unique(), key=key)]
        for name, (label, photos, people, accuracy, difference, shown_f1) in zip(
            sorted(groups.unique(), key=key), rows
        ):
            part = table[groups == name]
            assert [int(*photos), int(*people)] == [len(part), part["person"].nunique()]
            share, rest = correct[groups == name].mean(), correct[groups != name].mean()
            assert accuracy[0] == f"{share:.3f}"
            assert difference[0] == f"{share - rest:+.3f}"
            held = sorted(part["label"].unique())
            f1 = metrics.f1_score(part["label"], part["predicted"], labels=held, average="macro")
            assert shown_f1[:1] == ([f"{f1:.3f}"] if len(held) > 1 else [])
            assert len(accuracy) == len(difference) == (4 if people != ["1"] else 1)
            few = min(part["person"].nunique(), 30 - part["person"].nunique()) < 10
            assert (label[-1] == "▼") == (not few and float(difference[3]) < 0)
            marked += label[-1] == "▼"
    assert marked == len(page.find_elements(By.CSS_SELECTOR, ".groups .worse")) > 0
    assert find(page, ".groups .worse th").text == "male ▼"


def test_runs_without_gender_and_race_have_groups_by_age(browser, finished_run, table, tmp_path):
    """Those of earlier versions have no race."""
    arguments = json.loads((finished_run / "config.json").read_text())
    folder = write_run(tmp_path / "run", table.drop(columns=["gender", "race"]),
                       data_dir=arguments["data_dir"])  # fmt: skip
    run_ok("-m", "ETC.report", folder)
    browser.get((folder / "report.html").as_uri())
    assert texts(browser, ".groups [scope=rowgroup]") == ["age"]


def test_a_hostile_file_name_stays_text_and_the_page_is_alone(page, table):
    find(page, "[name=text]").send_keys("<script>")
    assert_shows(page, table[table["file"].str.startswith(HOSTILE)], table)
    assert page.execute_script("return document.scripts.length") == 2
    assert page.execute_script("return document.querySelectorAll('[onerror], b b').length") == 0
    assert "<b>weights</b>.pth" in texts(page, ".settings dd")
    # It requests nothing, and could not.
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    refused = page.execute_async_script(
        "addEventListener('securitypolicyviolation', (event) => arguments[0](event.blockedURI));"
        "new Image().src = 'http://127.0.0.1:9/photo.png'"
    )
    assert refused == "http://127.0.0.1:9/photo.png"
    page.get_log("browser")  # the console tells of that


def test_the_keyboard_alone_can_filter(page, table):
    def tab_to(selector):
        for _ in range(40):
            ActionChains(page).send_keys(Keys.TAB).perform()
            focused = page.switch_to.active_element
            if focused == find(page, selector):
                return focused.value_of_css_property("outline-style") == "solid"  # visible
        return False

    assert tab_to("button[data-true='0'][data-predicted='0']")
    ActionChains(page).send_keys(Keys.ENTER).perform()
    chosen = (table["label"] == CLASSES[0]) & (table["predicted"] == CLASSES[0])
    assert_shows(page, table[chosen], table)
    assert tab_to("select[name=predicted]")
    ActionChains(page).send_keys("60").perform()
    chosen = (table["label"] == CLASSES[0]) & (table["predicted"] == "60plus")
    assert_shows(page, table[chosen], table)


def test_texts_have_contrast_in_both_schemes():
    """WCAG 2.2, 1.4.3, on the page, a card, and both under a full bar of their share."""

    def luminance(colour):
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    style = (ROOT / "ETC/report.html").read_text(encoding="utf-8")
    schemes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = {name: np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)]) / 255
                   for name, value in re.findall(r"--(\w+): #(\w{6})", scheme)}  # fmt: skip
        shade = np.array(re.search(r"--shade: (.*);", scheme)[1].split(), float) / 255
        for paper in (colours["page"], colours["card"]):
            inks = [(colours[name], paper) for name in ("text", "muted", "accent", "wrong")]
            for ink, below in [*inks, (colours["text"], (paper + shade) / 2)]:
                dark, light = sorted([luminance(ink), luminance(below)])
                assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_a_phone_scrolls_one_way_only(page, submission):
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for url in (page.current_url, (submission / "report.html").as_uri()):
        page.get(url)
        show_all(page)
        script = "return [document.scrollingElement.scrollWidth, innerWidth]"
        assert page.execute_script(script) == [360, 360]
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(scope="module")
def submission(sample_dir, runs_dir, tmp_path_factory):
    """The folder of a submission of test.py with its report; the first image is unreadable."""
    folder = shutil.copytree(sample_dir, tmp_path_factory.mktemp("submission") / "data")
    min((folder / "eval/images").iterdir()).write_bytes(b"")
    run_ok("test.py", "--data-dir", folder, "--runs", runs_dir, "--num-workers", 0, "--skip-bad",
           "--output", folder / "submission.csv")  # fmt: skip
    run_ok("-m", "ETC.report", *report_arguments(folder))
    return folder


def report_arguments(folder):
    answers = folder / "eval/answers.csv"
    return folder / "submission.csv", "--answers", answers, "--data-dir", folder


def test_other_probabilities_and_arguments_are_refused(submission, tmp_path):
    folder = shutil.copytree(submission, tmp_path / "copy")
    (folder / "report.html").unlink()
    table = pd.read_csv(folder / "submission.csv")
    for classes in ((table["ans"] + 1) % 18, 18):
        table.assign(ans=classes).to_csv(folder / "submission.csv", index=False)
        assert_refused(run("-m", "ETC.report", *report_arguments(folder)), "probabilities.csv")
    assert_refused(run("-m", "ETC.report", folder / "submission.csv"), "--answers")
    table.to_csv(folder / "submission.csv", index=False)
    unnamed = table.assign(ImageID=table["ImageID"].where(table.index != 3))
    unnamed.to_csv(folder / "submission.csv", index=False)
    assert_refused(run("-m", "ETC.report", *report_arguments(folder)), "an ImageID is empty")
    table.to_csv(folder / "submission.csv", index=False)
    shutil.rmtree(folder / "eval/new_images")
    assert_refused(run("-m", "ETC.report", *report_arguments(folder)), "new_images", "--data-dir")
    assert not (folder / "report.html").exists()


def test_a_submission_has_four_classifications(page, submission):
    page.get((submission / "report.html").as_uri())
    answers = pd.read_csv(submission / "eval/answers.csv")["ans"]
    table = pd.read_csv(submission / "probabilities.csv")
    classes = pd.read_csv(submission / "submission.csv")["ans"]
    assert "single photos" in find(page, ".note").text
    # The probability of an official class is the product of its heads' probabilities.
    losses, confidences = 0, 1
    for (head, names), labels in zip(HEADS.items(), split_classes(answers)):
        probs = table[[f"{head}_{name}" for name in names]].to_numpy()
        losses -= np.log(probs[np.arange(len(table)), labels].clip(1e-6))
        confidences *= probs.max(axis=1)
    *_, error = calibration(confidences[1:], (answers == classes)[1:])
    assert texts(page, ".scores dd")[4] == f"{error:.4f}"
    first, *_, last = page.find_elements(By.CSS_SELECTOR, ".card")
    assert find(first, ".file").text == table["ImageID"][np.nanargmax(losses)]
    assert f"loss {np.nanmax(losses):.3f}" in find(first, ".facts").text
    assert len(first.find_elements(By.TAG_NAME, "dd")) == 8
    assert find(last, ".missing").text == "no photo"
    assert find(last, ".facts").text.split("\n") == ["no loss", "unreadable"]
    assert last.find_elements(By.CSS_SELECTOR, "dd, img") == []

    _, gender, age = split_classes(answers)
    right = (answers == classes).to_numpy()
    groups = [(name, labels == number) for field, labels in (("gender", gender), ("age", age))
              for number, name in enumerate(HEADS[field]) if (labels == number).any()]  # fmt: skip
    sections = page.find_elements(By.CSS_SELECTOR, ".classification")
    rows = sections[0].find_elements(By.CSS_SELECTOR, ".groups tr:has(td)")
    for row, (name, chosen) in zip(rows, groups, strict=True):
        assert row.text.startswith(name)
        assert row.find_elements(By.TAG_NAME, "td")[0].text == str(chosen.sum())
        assert f"{right[chosen].mean():.3f}" in row.text
    assert page.find_elements(By.CSS_SELECTOR, ".worse") == []  # single photos prove too little
    expected = [(answers, classes), *zip(split_classes(answers), split_classes(classes))]
    menu = Select(find(page, "#classification"))
    assert [option.text for option in menu.options] == ["18 classes", *HEADS]
    for number, ((true, predicted), size) in enumerate(zip(expected, (18, 3, 2, 3))):
        menu.select_by_index(number)
        assert [section.is_displayed() for section in sections].index(True) == number
        matrix = metrics.confusion_matrix(true, predicted, labels=range(size))
        assert confusion_cells(page, sections[number]) == matrix.tolist()
        if number == 0:
            choose(page, "outcome", "wrong")  # stays chosen
        assert find(page, "#count").text == f"{(true != predicted).sum()} of 42 photos"
