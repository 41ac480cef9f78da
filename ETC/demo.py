"""A page to try trained heads in the browser: `python -m ETC.demo`, then http://127.0.0.1:7860

Drop photos or take one with the camera: the page shows the box of every face, the crop that the
networks saw, and the probability of each class of each head. Photos are deleted seconds after they
are classified, and nothing leaves the machine.
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # before PyTorch

import base64
import contextlib
import importlib.util
import os
import secrets
import shutil
import tempfile
import threading
import time
from functools import partial

import cv2
import jinja2
from PIL import Image, ImageColor

from config import config
from data.augment import resize
from data.crop import BOX, SECOND_LOOK
from data.images import DAMAGE, load_smaller
from ETC.predict import COLUMNS, load_heads
from ETC.sheet import COLORS
from utils import cli
from utils.cli import InputError

SHOWN_SIDE = 720  # px: the longer side of a photo on the page
MAX_PHOTOS = 50  # at once
MAX_FILE = "50mb"
MAX_PIXELS = 60_000_000  # what 4 GiB of memory can take
UPLOAD_SECONDS = 10  # after its arrival, when it is copied, an upload is deleted
ABANDONED_SECONDS = 600  # then so are copies and half uploads that nobody waits for any more
ABOUT = (
    "# Mask, gender and age of faces\n"
    "Gender and age are guesses from how a face looks, learned from labels that people gave to "
    "other photos; nobody's true gender or age can be seen in a photo. Photos stay on the machine "
    "that serves this page, and are deleted seconds after they are classified. New photos replace "
    "the results of earlier ones."
)


def too_large(path):
    """Whether the image at path has more than MAX_PIXELS; False if that can't be read."""
    try:
        with Image.open(path) as image:
            return image.width * image.height > MAX_PIXELS
    except DAMAGE:
        return False


def draw_boxes(path, faces):
    """The photo at path with the boxes of its rows of classify's table: a JPEG file, bytes."""
    photo, size = load_smaller(path, SHOWN_SIDE)
    zoom = SHOWN_SIDE / max(size)
    shown = [max(1, round(zoom * side)) for side in size]
    photo = cv2.resize(photo, shown, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    for face in faces:
        x0, y0, x1, y1 = (round(zoom * face[name]) for name in BOX)
        color = ImageColor.getrgb(COLORS[face["mask"]])
        cv2.rectangle(photo, (x0, y0), (x1, y1), (255, 255, 255), 4)
        cv2.rectangle(photo, (x0, y0), (x1, y1), color, 2)
        number = str(face["face"]), (x0 + 6, y0 + 24), cv2.FONT_HERSHEY_SIMPLEX, 0.8
        cv2.putText(photo, *number, (255, 255, 255), 5, cv2.LINE_AA)
        cv2.putText(photo, *number, color, 2, cv2.LINE_AA)
    return jpeg(photo)


def jpeg(photo):
    """A JPEG file, bytes, of a uint8 RGB array."""
    return cv2.imencode(".jpg", photo[..., ::-1])[1].tobytes()


def base64_text(content):
    return base64.b64encode(content).decode()


def describe(path, faces, side):
    """What demo.html shows of a photo; faces: its rows of classify's table; side: of each, px."""
    for face in faces:
        face["jpeg"] = base64_text(jpeg(resize(load_smaller(face["crop"], side)[0], side)))
        face["color"] = COLORS[face["mask"]]  # of its box
        face["heads"] = [
            [(name, face[f"{target}_{name}"], name == face[target]) for name in names]
            for target, names in config.CLASSES.items()
        ]
    return {"name": path.name, "jpeg": base64_text(draw_boxes(path, faces)), "faces": faces}


def answer(paths, classify_photos, side):
    """The answers for the photos at paths as HTML.

    classify_photos: classify of a list of photos and a folder; side: of the networks' input, in px.
    """
    large = [path for path in paths if too_large(path)]
    problems = [f"{path.name}: more than {MAX_PIXELS // 10**6} megapixels" for path in large]
    wanted = [path for path in paths if path not in large]
    if len(wanted) > MAX_PHOTOS:
        problems.append(f"{len(wanted)} photos: only the first {MAX_PHOTOS} were classified")
    wanted = wanted[:MAX_PHOTOS]
    with tempfile.TemporaryDirectory() as folder:
        table, damaged = classify_photos(wanted, Path(folder))
        groups = table.groupby("photo", sort=False)
        photos = [describe(path, rows.to_dict("records"), side) for path, rows in groups]
    for line in damaged:
        for path in wanted:  # which Pillow names as Python writes a string
            line = line.replace(repr(str(path)), path.name).replace(str(path), path.name)
        problems.append(line)
    table["file"] = [path.name for path in table["photo"]]
    csv = base64_text(table.to_csv(columns=COLUMNS, index=False, lineterminator="\n").encode())
    source = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True).from_string(source)
    return template.render(photos=photos, problems=problems, csv=csv, second_look=SECOND_LOOK)


def sweep(uploads, taken):
    """Delete what is old, for ever. uploads: holds a folder for each photo that has arrived, files
    that are still arriving, and an empty file left of each that has; taken: a folder per visitor.
    """
    while True:
        time.sleep(UPLOAD_SECONDS / 4)
        found = []
        with contextlib.suppress(OSError):  # too many open files: the next time
            found = [*uploads.glob("*"), *taken.glob("*")]
        for path in found:
            with contextlib.suppress(OSError):  # it is gone, or made again
                status, is_folder = path.stat(), path.is_dir()
                arrived = path.parent == uploads and (is_folder or not status.st_size)
                limit = UPLOAD_SECONDS if arrived else ABANDONED_SECONDS
                if time.time() - status.st_mtime > limit:
                    shutil.rmtree(path) if is_folder else path.unlink()


def build_page(answer_photos, taken):
    """The page, a gradio.Blocks; answer_photos: from a list of paths to HTML; taken: a folder for
    photos that wait for their answer.
    """
    import gradio

    def not_now(error):
        """What the page says when the disk is full, say; error: for whoever runs it."""
        print(f"error: {error}", file=sys.stderr)
        sentence = "These photos can't be classified right now. Please try again later."
        return gradio.Error(sentence, print_exception=False)

    def take(uploads):
        """The name of a folder in taken with copies of the uploads; None and "": the uploads and
        earlier answers vanish from the page. Copies, as the same photo of two visitors is one file,
        which sweep removes soon.
        """
        uploads = uploads if isinstance(uploads, list) else [uploads] if uploads else []
        folder = taken / secrets.token_hex(16)  # whoever knows it gets the answer
        try:
            folder.mkdir()
            for number, upload in enumerate(map(Path, uploads)):
                path = folder / f"{number:03}" / upload.name
                path.parent.mkdir()
                shutil.copyfile(upload, path)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise not_now(error) from error
        return folder.name, None, ""

    def respond(name):
        if name not in os.listdir(taken):  # sent by a browser, as any text may be
            return "These photos waited too long and have been deleted. Please drop them again."
        try:
            os.utime(taken / name)  # sweep counts from now on
            paths = sorted((taken / name).glob("*/*"))
            return answer_photos(paths) if paths else ""
        except (InputError, OSError) as error:
            raise not_now(error) from error
        finally:
            shutil.rmtree(taken / name, ignore_errors=True)

    with gradio.Blocks(analytics_enabled=False, title="Mask, gender, age") as page:
        gradio.Markdown(ABOUT)
        with gradio.Row():
            files = gradio.File(label="Photos", file_count="multiple", height=220)
            camera = gradio.Image(label="Camera", sources=["webcam"], type="filepath", height=220)
        answers, folder = gradio.HTML(), gradio.Textbox(visible=False)
        # multiple: photos that come while others wait are answered too.
        options = {"api_visibility": "private", "trigger_mode": "multiple"}
        for source, event in ((files, files.upload), (camera, camera.input)):
            # Each upload at once, but one answer at a time.
            event(take, source, [folder, source, answers], queue=False, **options).success(
                respond, folder, answers, concurrency_limit=1, concurrency_id="answer", **options
            )
    return page


def serve(page, host, port):
    """Serve the page until Ctrl-C. Raises InputError when the port is taken."""
    import gradio

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        page.launch(
            server_name=host, server_port=port, max_file_size=MAX_FILE, theme=theme,
            footer_links=[], share=False, quiet=True, prevent_thread_lock=True,
        )  # fmt: skip
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port}: in use, not allowed, or no address of this machine; "
            "choose another"
        ) from error
    print(f"http://{host}:{port} - end with Ctrl-C", flush=True)
    while True:  # unlike Gradio's block_thread, this ends as all commands do
        time.sleep(60)


def main():
    args = get_args_parser().parse_args()
    if importlib.util.find_spec("gradio") is None:
        raise InputError("gradio: not installed; python -m pip install -r requirements-look.txt")
    # For a photo at a time, worker processes would take longer to start than to work.
    args.num_workers, args.crop_batch_size, args.all_faces = 0, None, True
    classify_photos, side, _ = load_heads(args)
    answer_photos = partial(answer, classify_photos=classify_photos, side=side)
    with tempfile.TemporaryDirectory() as folder:
        uploads, taken = Path(folder, "uploads"), Path(folder, "taken")
        uploads.mkdir()
        taken.mkdir()
        first = taken / "first.png"  # everything is loaded before the first visitor comes
        Image.new("RGB", (64, 64)).save(first)
        answer_photos([first])
        first.unlink()
        os.environ |= {"GRADIO_TEMP_DIR": str(uploads), "GRADIO_ANALYTICS_ENABLED": "False",
                       "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
        threading.Thread(target=sweep, args=[uploads, taken], daemon=True).start()
        serve(build_page(answer_photos, taken), args.host, args.port)


# fmt: off
def get_args_parser():
    parser = cli.ArgumentParser("python -m ETC.demo", description="A page to try trained heads.")
    add = parser.add_argument
    host = cli.checked(str, lambda host: ":" not in host, "a name or an address such as 127.0.0.1")
    add("--host", type=host, default="127.0.0.1",
        help="address to listen on; 0.0.0.0 opens it to the whole network, unencrypted and without "
             "the camera, which browsers then don't allow (default: %(default)s)")
    add("--port", type=cli.checked(int, lambda port: 1 <= port < 2**16, "a port from 1 to 65535"),
        default=7860, help="port (default: %(default)s)")
    cli.add_prediction_arguments(add)
    cli.add_device_argument(add)
    cli.add_precision_arguments(add)
    return parser
# fmt: on


if __name__ == "__main__":
    cli.run(main, "the page is closed")
