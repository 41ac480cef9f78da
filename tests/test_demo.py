"""ETC.demo in a browser: answers, two visitors, hostile uploads, and that nothing is kept."""

import base64
import errno
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from selenium.webdriver.common.by import By

from conftest import FACES, ROOT, assert_refused, run, run_ok
from ETC import demo, predict
from ETC.predict import ANSWERS

gradio = pytest.importorskip("gradio")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def address(runs_dir, tmp_path_factory):
    """The address of a running demo, and the folder of its temporary files."""
    port, folder = free_port(), tmp_path_factory.mktemp("uploads")
    command = [sys.executable, "-m", "ETC.demo", "--runs", runs_dir, "--port", port]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": folder}
    )
    line = process.stdout.readline()
    assert line.startswith(f"http://127.0.0.1:{port} ")
    yield f"http://127.0.0.1:{port}", folder
    process.terminate()
    assert process.wait(30) == 143
    assert not [path for path in folder.rglob("*") if path.is_file()]


def visit(browser, address):
    browser.get(address)
    wait_for(browser, "input[type=file]")


def wait_for(browser, selector, seconds=60):
    end = time.monotonic() + seconds
    while not (found := browser.find_elements(By.CSS_SELECTOR, selector)):
        assert time.monotonic() < end, browser.find_element(By.TAG_NAME, "body").text
        time.sleep(0.05)
    return found


def upload(browser, *paths):
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys("\n".join(map(str, paths)))


def table_of(browser):
    """The CSV that the page offers."""
    [link] = wait_for(browser, ".mag-csv")
    content = link.get_attribute("href").partition("base64,")[2]
    return pd.read_csv(io.BytesIO(base64.b64decode(content)))


@pytest.fixture
def pair(tmp_path):
    """The paths of a photo with two faces, and of one of 12 megapixels with one."""
    picture = Image.new("RGB", (900, 600), "gray")
    for x, face in zip((20, 480), FACES):
        picture.paste(Image.open(face).resize((384, 512)), (x, 40))
    picture.save(tmp_path / "pair <b>.png")
    Image.open(FACES[0]).resize((3000, 4000)).save(tmp_path / "large.jpg")
    return [tmp_path / "pair <b>.png", tmp_path / "large.jpg"]


def test_answers_are_those_of_predict(browser, address, pair, runs_dir, tmp_path):
    url, _ = address
    run_ok("-m", "ETC.predict", *pair, "--runs", runs_dir, "--all-faces", "--num-workers", 0,
           "--output", tmp_path / "out.csv")  # fmt: skip
    expected = pd.read_csv(tmp_path / "out.csv")
    expected["file"] = [re.sub("[<>]", "", Path(file).name) for file in expected["file"]]
    visit(browser, url)
    upload(browser, *pair)
    pd.testing.assert_frame_equal(table_of(browser), expected, rtol=0, atol=2e-6)
    assert len(browser.find_elements(By.CSS_SELECTOR, ".mag article")) == 2
    faces = browser.find_elements(By.CSS_SELECTOR, ".mag .face")
    assert len(faces) == len(expected) == 3
    for face, row in zip(faces, expected.to_dict("records")):
        answers = [element.text for element in face.find_elements(By.CSS_SELECTOR, "dt.answer")]
        assert answers == [row["mask"], row["gender"], row["age"]]
        shown = [cell.text for cell in face.find_elements(By.CSS_SELECTOR, ".number")]
        assert shown == [f"{100 * row[name]:.1f} %" for name in ANSWERS]
    # All pictures are there, and came from nowhere else.
    script = "return [...document.querySelectorAll('.mag img')].map(image => image.naturalWidth)"
    assert min(browser.execute_script(script)) > 20
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert all(name.startswith((url, "data:")) for name in browser.execute_script(script))
    wait_for(browser, "input[type=file]")  # for the next photo


def test_a_photo_of_the_camera(browser, address):
    visit(browser, address[0])
    buttons = wait_for(browser, "button")
    [access] = [button for button in buttons if button.text == "Click to Access Webcam"]
    access.click()
    [capture] = wait_for(browser, "button[aria-label='capture photo']")
    time.sleep(1)  # the camera's first picture
    capture.click()
    assert table_of(browser)["method"].tolist() == ["mtcnn"]
    [face] = browser.find_elements(By.CSS_SELECTOR, ".mag .face")
    assert len(face.find_elements(By.CSS_SELECTOR, "dt.answer")) == 3


def test_two_visitors_at_once(browser, address):
    url, _ = address
    tabs = [browser.current_window_handle]
    browser.switch_to.new_window("tab")
    tabs.append(browser.current_window_handle)
    for tab in tabs:
        browser.switch_to.window(tab)
        visit(browser, url)
    for files in ([FACES[0]], [FACES[1], FACES[0]]):  # one of them the same
        browser.switch_to.window(tabs[len(files) - 1])
        upload(browser, *files)
    for tab, files in zip(tabs, ([FACES[0]], [FACES[1], FACES[0]])):
        browser.switch_to.window(tab)
        assert set(table_of(browser)["file"]) == {path.name for path in files}
    browser.close()
    browser.switch_to.window(tabs[0])


def test_photos_dropped_while_others_wait_are_answered_too(browser, address, tmp_path):
    for number in range(40):
        shutil.copy(FACES[0], tmp_path / f"{number}.jpg")
    url, folder = address
    visit(browser, url)
    upload(browser, *tmp_path.iterdir())
    end = time.monotonic() + 60
    while len([*folder.glob("*/taken/*/*/*.jpg")]) < 40:
        assert time.monotonic() < end
        time.sleep(0.01)
    wait_for(browser, "input[type=file]")
    assert not browser.find_elements(By.CSS_SELECTOR, ".mag-csv")
    upload(browser, FACES[1])
    while not (browser.find_elements(By.CSS_SELECTOR, ".mag-csv")
               and table_of(browser)["file"].tolist() == [FACES[1].name]):  # fmt: skip
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_folder_that_is_not_there_gets_a_sentence(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "photo.jpg").touch()
    page = demo.build_page(lambda paths: f"{len(paths)} photos", tmp_path / "taken")
    take, respond = ({event.name: event.fn for event in page.fns.values()}[name]
                     for name in ("take", "respond"))  # fmt: skip
    for name in ("", ".", "..", "../taken", str(tmp_path), "other", None):
        assert "drop them again" in respond(name)
    name, *cleared = take([tmp_path / "photo.jpg"])
    assert cleared == [None, ""]
    assert respond(name) == "1 photos"
    assert "drop them again" in respond(name)
    assert (tmp_path / "photo.jpg").exists()
    assert not [*(tmp_path / "taken").iterdir()]


def test_a_full_disk_gets_a_sentence(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    photo, taken = tmp_path / "photo.jpg", tmp_path / "taken"
    photo.touch()
    taken.mkdir()
    events = {event.name: event.fn for event in demo.build_page(fail, taken).fns.values()}
    name, *_ = events["take"]([photo])
    with pytest.raises(gradio.Error, match="classified right now"):
        events["respond"](name)
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(gradio.Error, match="classified right now"):
        events["take"]([photo])
    assert not [*taken.iterdir()]
    assert capsys.readouterr().err.count("No space left on device") == 2


def test_photos_that_are_left_out_are_counted(tmp_path, monkeypatch):
    def classify(photos, folder):
        seen.append(photos)
        return pd.DataFrame(columns=[*predict.COLUMNS, "photo", "crop"]), []

    seen, photos = [], [tmp_path / f"{number}.png" for number in range(3)]
    for photo, side in zip(photos, (30, 10, 10)):
        Image.new("RGB", (side, side)).save(photo)
    monkeypatch.setattr(demo, "MAX_PIXELS", 500)
    for limit, expected in ((2, photos[1:]), (1, photos[1:2])):
        monkeypatch.setattr(demo, "MAX_PHOTOS", limit)
        html = demo.answer(photos, classify, 64)
        assert "0.png: more than" in html
        assert ("only the first 1 were classified" in html) == (limit == 1)
        assert seen.pop() == expected


def test_sweeping_goes_on_without_free_files(tmp_path, monkeypatch):
    old = tmp_path / "taken/old"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    rounds, glob = [], Path.glob

    def fail_once(path, pattern):
        if len(rounds) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return glob(path, pattern)

    def count(seconds):
        rounds.append(old.exists())
        if len(rounds) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "glob", fail_once)
    monkeypatch.setattr(demo.time, "sleep", count)
    with pytest.raises(KeyboardInterrupt):
        demo.sweep(tmp_path / "uploads", tmp_path / "taken")
    assert rounds == [True, True, False]


def test_hostile_uploads_get_a_sentence(browser, address, tmp_path):
    url, folder = address
    (tmp_path / "page.jpg").write_text("<script>alert(1)</script>")
    (tmp_path / "cut.jpg").write_bytes(FACES[0].read_bytes()[:500])
    (tmp_path / "nothing.png").touch()
    Image.new("1", (9000, 8000)).save(tmp_path / "bomb.png")
    names = ["page.jpg", "cut.jpg", "nothing.png", "bomb.png"]
    visit(browser, url)
    upload(browser, *(tmp_path / name for name in names), FACES[2])
    lines = [element.text for element in wait_for(browser, ".mag-bad")]
    assert len(lines) == 4
    for name in names:
        [line] = [line for line in lines if line.startswith(f"{name}: ")]
        assert ("megapixels" if name == "bomb.png" else "not a readable image") in line
        assert "Traceback" not in line
        assert str(folder) not in line
    assert table_of(browser)["file"].tolist() == [FACES[2].name]
    visit(browser, url)
    upload(browser, tmp_path / "cut.jpg")  # nothing else
    wait_for(browser, ".mag-bad")
    assert not browser.find_elements(By.CSS_SELECTOR, ".mag-csv")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_ctrl_c_ends_in_a_line(runs_dir):
    command = [sys.executable, "-m", "ETC.demo", "--runs", runs_dir, "--port", free_port()]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().startswith(b"http://")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].endswith(b"interrupted; the page is closed\n")
    assert process.returncode == 130


def test_large_upload_is_refused(address):
    url, _ = address
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'

    def send(size):
        request = urllib.request.Request(f"{url}/gradio_api/upload")
        request.add_header("Content-Type", "multipart/form-data; boundary=x")
        request.data = head + bytes(size) + b"\r\n--x--\r\n"
        return urllib.request.urlopen(request).status

    assert send(1000) == 200
    with pytest.raises(urllib.error.URLError) as error:
        send(60_000_000)
    assert getattr(error.value, "code", 413) == 413  # or it was reset before all was sent


def test_nothing_is_kept(browser, address):
    url, folder = address
    visit(browser, url)
    upload(browser, FACES[3])
    wait = time.monotonic() + 30
    while not [*folder.rglob(FACES[3].name)]:  # it was there
        assert time.monotonic() < wait
    assert table_of(browser)["file"].tolist() == [FACES[3].name]
    end = time.monotonic() + demo.UPLOAD_SECONDS + 20
    while found := [path for path in folder.rglob("*") if path.is_file()]:  # of all tests above
        assert time.monotonic() < end, found
        time.sleep(0.2)


def test_refused(address, runs_dir, tmp_path):
    port = address[0].rpartition(":")[2]
    refused = run("-m", "ETC.demo", "--runs", runs_dir, "--port", port)
    assert_refused(refused, f"--port {port}: in use", "choose another")
    assert_refused(run("-m", "ETC.demo", "--port", 65536), "65536 is not a port")
    refused = run("-m", "ETC.demo", "--runs", runs_dir, "--host", "::1")
    assert_refused(refused, "argument --host: ::1 is not a name")
    assert_refused(run("-m", "ETC.demo", "--runs", tmp_path / "none"), "none", "best.pth")


def test_names_are_escaped_and_damaged_metadata_is_no_problem(tmp_path):
    name = "<b>&amp;.png"
    photo = io.BytesIO()
    Image.open(FACES[0]).save(photo, "PNG")
    head, chunk = photo.getvalue()[:33], b"\0\0\0\4gAMA\0\0\xb1\x8f\0\0\0\0"  # a wrong checksum
    (tmp_path / name).write_bytes(head + chunk + photo.getvalue()[33:])

    def classify_photos(paths, folder):
        row = dict.fromkeys(demo.COLUMNS, 0.5)
        row |= {"face": 1, "mask": "normal", "gender": "male", "age": "under30", "method": "mtcnn",
                "photo": paths[0], "crop": FACES[0]}  # fmt: skip
        return pd.DataFrame([row]), [f"{paths[0]}: odd"]

    page = demo.answer([tmp_path / name], classify_photos, 64)
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;amp;.png: odd" in page
    assert str(tmp_path) not in page


@pytest.mark.parametrize("enlarged", [1, 5])  # a JPEG of five times the size is decoded smaller
def test_boxes_are_drawn_where_the_table_has_them(tmp_path, enlarged):
    photo = Image.open(FACES[0])
    photo.resize([enlarged * side for side in photo.size]).save(tmp_path / "a.jpg")
    row = {"face": 1, "mask": "normal", "x0": 96, "y0": 128, "x1": 288, "y1": 384}
    row |= {side: enlarged * row[side] for side in ("x0", "y0", "x1", "y1")}
    picture = demo.draw_boxes(tmp_path / "a.jpg", [row])
    picture = np.asarray(Image.open(io.BytesIO(picture))).astype(int)
    zoom = picture.shape[0] / photo.height
    assert picture.shape[0] == demo.SHOWN_SIDE
    green = [int(demo.COLORS["normal"][start : start + 2], 16) for start in (1, 3, 5)]
    ys, xs = np.nonzero(np.abs(picture - green).sum(2) < 40)
    assert np.ptp(xs) == pytest.approx(192 * zoom, abs=4)
    assert np.ptp(ys) == pytest.approx(256 * zoom, abs=4)
