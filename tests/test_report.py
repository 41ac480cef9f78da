import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
)

from config.config import CLASSES as HEADS
from conftest import FACES, assert_refused, run, run_ok
from data.crop import TYPES
from data.labels import merge_labels, split_classes
from ETC import report
from ETC.statistics import bootstrap_macro_f1, calibration

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


# files


def write_crop(path, photo):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(path, "JPEG", quality=95)


def write_run(folder, table, data_dir):
    """A run's files as train.py leaves them, without its crops."""
    folder.mkdir(parents=True)
    table.to_csv(folder / "val_predictions.csv", index=False, lineterminator="\n")
    arguments = {
        "target": "age", "fold": 0, "data_dir": str(data_dir), "crop_dir": None,
        "model": "efficientnet-b3", "resize": 224, "weights": "<b>weights</b>.pth",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(arguments))
    f1 = f1_score(table["label"], table["predicted"], average="macro")
    log = {"epoch": [1, 2], "train_loss": [0.9, 0.5], "val_loss": [1.0, 0.7],
           "accuracy": [0.5, 0.6], "macro_f1": [f1 / 2, f1]}  # fmt: skip
    log = pd.DataFrame({**log, **{f"f1_{name}": [0.4, 0.5] for name in CLASSES}})
    log.to_csv(folder / "log.csv", index=False)
    return folder


def make_table(people):
    """val_predictions.csv of random probabilities; the first person has a hostile name."""
    rng = np.random.default_rng(3)
    folders = [HOSTILE, *(f"{number:06d}_female_Asian_51" for number in range(1, people))]
    table = pd.DataFrame(
        [(folder, shot) for folder in folders for shot in SHOTS], columns=["person", "shot"]
    )
    table.insert(0, "file", table["person"] + "/" + table["shot"] + ".jpg")
    table["method"] = rng.choice(["mtcnn", "center"], len(table), p=[0.8, 0.2])
    table["gender"], table["age"] = "female", rng.integers(18, 80, len(table))
    labels = rng.integers(3, size=len(table))
    log_probs = rng.normal(size=(len(table), 3)) + 1.5 * np.eye(3)[labels]
    log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
    names = np.array(CLASSES)
    table["label"], table["predicted"] = names[labels], names[log_probs.argmax(axis=1)]
    table[PROBS] = np.exp(log_probs).round(6)
    table["loss"] = -log_probs[np.arange(len(table)), labels].round(6)
    return table


@pytest.fixture(scope="module")
def table():
    return make_table(people=30)


@pytest.fixture(scope="module")
def finished_run(table, tmp_path_factory):
    """A run with its report, made by the command."""
    data_dir = tmp_path_factory.mktemp("data")
    colours = np.random.default_rng(4).integers(256, size=(len(table), 1, 1, 3), dtype=np.uint8)
    for file, colour in zip(table["file"], colours):
        write_crop(data_dir / "train/new_img" / file, np.tile(colour, (30, 24, 1)))
    folder = write_run(tmp_path_factory.mktemp("runs") / "age_fold0", table, data_dir)
    output = run_ok("-m", "ETC.report", folder)
    assert str(folder / "report.html") in output
    return folder


def test_the_command_writes_report_and_pictures(finished_run):
    for name in ("curves.png", "confusion.png"):
        with Image.open(finished_run / name) as picture:
            assert picture.width > 300
    page = (finished_run / "report.html").read_bytes()
    report.report_run(finished_run)
    assert (finished_run / "report.html").read_bytes() == page  # the same run, the same bytes


def test_the_command_takes_runs_of_train(runs_dir, tmp_path):
    ignore = shutil.ignore_patterns("*.pth", "*.png")  # a stopped run has no pictures
    runs = [shutil.copytree(runs_dir / name, tmp_path / name, ignore=ignore)
            for name in ("gender_fold1", "age_fold3")]  # fmt: skip
    run_ok("-m", "ETC.report", *runs)
    for folder in runs:
        assert "photos of" in (folder / "report.html").read_text(encoding="utf-8")
        assert (folder / "confusion.png").exists()


@pytest.mark.parametrize("name", ["val_predictions.csv", "config.json", "log.csv"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00{", b"[1]", b"epoch,file\n1,2\n"])
def test_missing_and_damaged_files_are_refused(table, name, content, tmp_path):
    folder = write_run(tmp_path / "run", table, tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    done = run("-m", "ETC.report", folder)
    assert_refused(done, f"{folder / name}: can't be read", "name the folder of a run")
    assert not (folder / "report.html").exists()


def test_crops_elsewhere(finished_run, table, tmp_path):
    folder = write_run(tmp_path / "run", table, tmp_path / "gone")
    assert_refused(run("-m", "ETC.report", folder), "normal.jpg", "--data-dir", "data.crop")
    arguments = json.loads((finished_run / "config.json").read_text())
    run_ok("-m", "ETC.report", folder, "--data-dir", arguments["data_dir"])


# the page, in a browser


@pytest.fixture(scope="module")
def browser():
    binaries = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    binary, driver = next(binaries, None), shutil.which("chromedriver")
    if not (binary and driver):  # Selenium would download one
        pytest.skip("chromium and chromedriver are needed: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, Service(driver))
    yield browser
    browser.quit()


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


def count(page):
    return find(page, "#count").text


def show_all(page):
    while find(page, "#more").is_displayed():
        find(page, "#more").click()


def assert_shows(page, expected, table):
    """The page shows the photos of a part of the table, by loss, and counts them."""
    assert count(page) == f"{len(expected)} of {len(table)} photos"
    show_all(page)
    order = expected.sort_values("loss", ascending=False, kind="stable")["file"]
    assert texts(page, ".file") == order.tolist()


def choose(page, name, value):
    Select(find(page, f"select[name={name}]")).select_by_value(value)


def test_all_photos_are_shown_by_loss_a_hundred_at_a_time(page, table):
    assert len(texts(page, ".card")) == 100
    find(page, "#more").click()
    assert len(texts(page, ".card")) == len(table) == 120
    assert page.switch_to.active_element == page.find_elements(By.CSS_SELECTOR, ".card")[100]
    assert_shows(page, table, table)
    pixels = page.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert pixels == [24] * 120


def test_a_card_tells_all_of_a_photo(page, table):
    row = table.loc[table["loss"].idxmax()]
    card = find(page, ".card")
    assert "wrong" in card.get_attribute("class")
    assert find(card, ".verdict").text == f"✗ {row['label']} predicted as {row['predicted']}"
    facts = find(card, ".facts").text.split("\n")
    assert facts[:3] == [f"loss {row['loss']:.3f}", f"age {row['age']}", row["shot"]]
    shown = [float(cell.text[:-2]) for cell in card.find_elements(By.TAG_NAME, "dd")]
    assert shown == pytest.approx([100 * row[name] for name in PROBS], abs=0.06)
    assert find(card, ".bars .top dt").text == row["predicted"]


def test_each_filter_agrees_with_the_table(page, table):
    method = table["method"].map({"center": "no face found", "mtcnn": "mtcnn"})
    outcome = np.where(table["label"] == table["predicted"], "correct", "wrong")
    for name, column in (
        ("true", table["label"]), ("predicted", table["predicted"]), ("shot", table["shot"]),
        ("method", method), ("outcome", pd.Series(outcome)),
    ):  # fmt: skip
        options = Select(find(page, f"select[name={name}]")).options
        counts = {option.get_attribute("value"): option.text for option in options[1:]}
        expected = {value: f"{value} ({n})" for value, n in column.value_counts().items()}
        assert counts == expected
        for value in counts:
            choose(page, name, value)
            assert_shows(page, table[column == value], table)
        find(page, "#clear").click()
    assert count(page) == "120 of 120 photos"


def test_filters_work_together(page, table):
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
    assert set(texts(page, ".verdict b:first-of-type")) == {"30to59"}
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
    expected = confusion_matrix(table["label"], table["predicted"], labels=CLASSES)
    assert confusion_cells(page, find(page, ".classification")) == expected.tolist()
    choose(page, "shot", "mask1")  # a cell shows all of its photos, whatever was chosen before
    find(page, "button[data-true='1'][data-predicted='2']").click()
    assert page.switch_to.active_element.text == "Photos, highest loss first"
    chosen = (table["label"] == "30to59") & (table["predicted"] == "60plus")
    assert expected[1, 2] == chosen.sum() > 0
    assert_shows(page, table[chosen], table)
    share = f"{100 * expected[1, 2] / expected[1].sum():.1f} %"
    assert share in find(page, "button[data-true='1'][data-predicted='2']").text


def test_the_scores_are_stated(page, table):
    macro = f1_score(table["label"], table["predicted"], average="macro")
    shown = texts(page, ".scores dd")
    assert shown[0] == f"{macro:.4f}"
    assert shown[2] == f"{accuracy_score(table['label'], table['predicted']):.4f}"
    labels = [table[name].map(CLASSES.index) for name in ("label", "predicted")]
    low, high = np.quantile(bootstrap_macro_f1(*labels, table["person"], 3), [0.025, 0.975])
    assert shown[1] == f"95 % interval {low:.3f} to {high:.3f}"
    assert "whole people" in find(page, ".note").text
    assert texts(page, ".best th") == ["2 (best)"]
    pair, scores = (table["label"], table["predicted"]), (f1_score, precision_score, recall_score)
    by_class = np.transpose([score(*pair, labels=CLASSES, average=None) for score in scores])
    expected = []
    for name, row in zip(CLASSES, by_class):
        expected += [*(f"{score:.4f}" for score in row), str((table["label"] == name).sum())]
    assert texts(page, ".classification table:not(.confusion) td")[:12] == expected


def test_the_diagram_shows_the_calibration(page, table):
    """Bars as high as the share of correct predictions, lines at the mean probability."""
    correct = table["label"] == table["predicted"]
    counts, confidence, share, error = calibration(table[PROBS].max(axis=1), correct)
    shown = page.execute_script(
        "return [...document.querySelectorAll('rect, .mean')]"
        ".map((bar) => Number(bar.getAttribute('height') ?? 260 - bar.getAttribute('y1')))"
    )
    filled = np.flatnonzero(counts)
    expected = np.stack([share[filled], confidence[filled]], axis=1).ravel()
    assert np.array(shown) / 250 == pytest.approx(expected, abs=0.001)
    assert texts(page, ".scores dd")[4] == f"{error:.4f}"


def test_a_hostile_file_name_stays_text(page, table):
    find(page, "[name=text]").send_keys("<script>")
    assert_shows(page, table[table["file"].str.startswith(HOSTILE)], table)
    assert page.execute_script("return document.scripts.length") == 2
    assert page.execute_script("return document.querySelectorAll('[onerror], b b').length") == 0
    assert "<b>weights</b>.pth" in texts(page, ".settings dd")


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

    style = Path(report.__file__).with_suffix(".html").read_text(encoding="utf-8")
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
    for url in (page.current_url, (submission["folder"] / "report.html").as_uri()):
        page.get(url)
        show_all(page)
        script = "return [document.scrollingElement.scrollWidth, innerWidth]"
        assert page.execute_script(script) == [360, 360]
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_is_alone(page):
    """It requests nothing, and could not."""
    show_all(page)
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    refused = page.execute_async_script(
        "addEventListener('securitypolicyviolation', (event) => arguments[0](event.blockedURI));"
        "new Image().src = 'http://127.0.0.1:9/photo.png'"
    )
    assert refused == "http://127.0.0.1:9/photo.png"
    page.get_log("browser")  # the console tells of that


# submissions, and many photos


@pytest.fixture(scope="module")
def submission(tmp_path_factory):
    """The report of 60 eval images, one of them unreadable, and what it was made from."""
    folder = tmp_path_factory.mktemp("submission")
    rng = np.random.default_rng(6)
    files = [f"{number:040x}.jpg" for number in range(60)]
    manifest = pd.DataFrame({"file": files, "method": ["bad", *["mtcnn"] * 59]}, columns=[*TYPES])
    for file in files[1:]:
        write_crop(folder / "eval/new_images" / file, np.full((30, 24, 3), 99, np.uint8))
    manifest.fillna({"source_size": 1, "source_mtime_ns": 1}).to_csv(folder / "eval/crops.csv")
    (folder / "eval/crops.json").write_text("{}")
    answers = rng.integers(18, size=60)
    heads = {}
    for target, labels in zip(HEADS, split_classes(answers)):
        size = len(HEADS[target])
        probs = 0.8 * rng.dirichlet(np.ones(size), 60) + 0.2 * np.eye(size)[labels]
        heads[target] = probs.round(6)
    classes = merge_labels(*(probs.argmax(axis=1) for probs in heads.values()))
    columns = [f"{target}_{name}" for target, names in HEADS.items() for name in names]
    probs = pd.DataFrame(np.concatenate([*heads.values()], axis=1), columns=columns)
    probs.loc[0] = np.nan
    probs.assign(ImageID=files).to_csv(folder / "probabilities.csv", index=False)
    for name, labels in (("submission", classes), ("answers", answers)):
        table = pd.DataFrame({"ImageID": files, "ans": labels})
        table.to_csv(folder / f"{name}.csv", index=False)
    run_ok("-m", "ETC.report", *report_arguments(folder))
    return {"folder": folder, "answers": answers, "classes": classes, "heads": heads,
            "files": files}  # fmt: skip


def report_arguments(folder):
    return (folder / "submission.csv", "--answers", folder / "answers.csv", "--data-dir", folder)


def test_other_probabilities_and_arguments_are_refused(submission, tmp_path):
    folder = shutil.copytree(submission["folder"], tmp_path / "copy")
    (folder / "report.html").unlink()
    table = pd.read_csv(folder / "submission.csv")
    table.assign(ans=(table["ans"] + 1) % 18).to_csv(folder / "submission.csv", index=False)
    assert_refused(run("-m", "ETC.report", *report_arguments(folder)), "probabilities.csv")
    table.assign(ans=18).to_csv(folder / "submission.csv", index=False)
    assert_refused(run("-m", "ETC.report", *report_arguments(folder)), "submission.csv")
    assert_refused(run("-m", "ETC.report", folder / "submission.csv"), "--answers")
    done = run("-m", "ETC.report", *report_arguments(folder), "--answers", "none.csv")
    assert_refused(done, "none.csv", "no such file")
    table.to_csv(folder / "submission.csv", index=False)
    shutil.rmtree(folder / "eval")
    assert_refused(run("-m", "ETC.report", *report_arguments(folder)), "new_images", "--data-dir")
    assert not (folder / "report.html").exists()


def test_a_submission_has_four_classifications(page, submission):
    page.get((submission["folder"] / "report.html").as_uri())
    answers, classes = submission["answers"], submission["classes"]
    sections = page.find_elements(By.CSS_SELECTOR, ".classification")
    expected = [(answers, classes), *zip(split_classes(answers), split_classes(classes))]
    sizes = (18, 3, 2, 3)
    menu = Select(find(page, "#classification"))
    assert [option.text for option in menu.options] == ["18 classes", *HEADS]
    for number, (true, predicted) in enumerate(expected):
        menu.select_by_index(number)
        assert [section.is_displayed() for section in sections] == [
            other == number for other in range(4)
        ]
        matrix = confusion_matrix(true, predicted, labels=range(sizes[number]))
        assert confusion_cells(page, sections[number]) == matrix.tolist()
        choose(page, "outcome", "correct")
        correct = (true == predicted).sum()
        assert 0 < correct < 60
        assert count(page) == f"{correct} of 60 photos"
    assert "single photos" in find(page, ".classification:not([hidden]) .note").text


def test_the_loss_of_the_18_classes_is_that_of_their_heads_product(page, submission):
    page.get((submission["folder"] / "report.html").as_uri())
    labels = split_classes(submission["answers"])
    probs = [
        probs[np.arange(60), true] for probs, true in zip(submission["heads"].values(), labels)
    ]
    losses = -np.log(np.prod(probs, axis=0))
    losses[0] = np.nan  # the unreadable image
    worst = np.nanargmax(losses)
    card = find(page, ".card")
    assert find(card, ".file").text == submission["files"][worst]
    assert find(card, ".facts").text == f"loss {losses[worst]:.3f}"
    assert len(card.find_elements(By.TAG_NAME, "dd")) == 8
    last = page.find_elements(By.CSS_SELECTOR, ".card")[-1]
    assert find(last, ".missing").text == "no photo"
    assert find(last, ".facts").text.split("\n") == ["no loss", "unreadable"]
    assert last.find_elements(By.CSS_SELECTOR, "dd, img") == []


def test_two_thousand_photos_stay_small_and_quick(browser, tmp_path, monkeypatch):
    photo = np.array(Image.open(FACES[0]))[60:400, 60:330]  # of the size of a crop
    grain = np.random.default_rng(7).normal(0, 25, photo.shape)  # more than a camera has
    write_crop(tmp_path / "crop.jpg", np.clip(photo + grain, 0, 255).astype(np.uint8))
    thumbnail, table = report.thumbnail(tmp_path / "crop.jpg"), make_table(people=500)
    monkeypatch.setattr(report, "thumbnail", lambda path: thumbnail)
    run_folder = write_run(tmp_path / "run", table, tmp_path)
    report.report_run(run_folder)
    assert (run_folder / "report.html").stat().st_size < 5e6
    browser.get((run_folder / "report.html").as_uri())
    assert count(browser) == "2000 of 2000 photos"
    milliseconds = browser.execute_script(
        "const start = performance.now(); form.elements.text.value = 'mask';"
        "form.elements.text.dispatchEvent(new Event('input')); document.body.offsetHeight;"
        "return performance.now() - start"
    )
    assert count(browser) == "1500 of 2000 photos"
    assert milliseconds < 500
