"""What is in a network, and what does it look at? `python -m utils.view_model`

A table of its layers, a picture of its graph, and Grad-CAM heat maps of a trained head on photos.
The packages that draw them, in requirements-look.txt, are optional: nothing else here imports them.
"""

import shutil
from pathlib import Path

from config import config
from utils.cli import ArgumentParser, InputError, answer_early, number, printable, run

CLASSES = 3  # of a network that is no checkpoint's: most heads have as many
GRAPHS = (".svg", ".png", ".pdf")
OUTPUT = "gradcam.png"
MAX_PHOTOS = 50  # a picture of more rows is too long for most viewers


def get_args_parser():
    parser = ArgumentParser(
        "python -m utils.view_model",
        description="Show a network's layers, its graph, and what a trained head looks at.",
    )
    add = parser.add_argument
    # fmt: off
    add("--model", choices=config.NETWORKS, metavar="NAME",
        help=f"a network with {CLASSES} classes: {', '.join(config.NETWORKS)} "
        f"(default: {config.MODEL})")
    add("--resize", metavar="PIXELS",
        type=number(int, lambda side: 64 <= side <= 4096, "a whole number from 64 to 4096"),
        help=f"side of the network's input (default: {config.RESIZE})")
    add("--checkpoint", metavar="FILE",
        help="best.pth or last.pth of train.py, instead of --model and --resize (default: none)")
    add("--depth", type=int, choices=(1, 2), default=1,
        help="what table and graph show: 1 the blocks, 2 the layers in them, too "
        "(default: %(default)s)")
    add("--graph", type=Path, metavar="FILE",
        help=f"draw the network's graph to this {', '.join(GRAPHS)}; a .png shrinks what is very "
        "long (default: no graph)")
    add("--images", nargs="+", metavar="PATH",
        help="draw what the checkpoint's network looks at in these photos, or those in these "
        f"folders, {MAX_PHOTOS} at most (default: none)")
    add("--output", type=Path, metavar="FILE",
        help=f"the picture of --images, a .png (default: {OUTPUT})")
    # fmt: on
    return parser


if __name__ == "__main__":
    answer_early(get_args_parser())  # the imports below take seconds

import importlib.util
import re
import subprocess
import textwrap
import warnings

import cv2
import matplotlib
import torch
from matplotlib import font_manager
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from data.augment import build_transform
from data.crop import build_detector, find_faces, try_to
from data.images import load_image
from data.photos import boxes_in, list_photos, refuse_bad_photos
from models.network import build_network, load_network, normalize
from utils.checkpoint import load_checkpoint
from utils.files import atomic_write, make_folder
from utils.runs import RUN_FILES

HEAT = matplotlib.colormaps["inferno"]
# Of Windows, macOS and Linux: for file names in Hangul.
FONTS = ("Malgun Gothic", "Apple SD Gothic Neo", "Noto Sans CJK KR", "NanumGothic")
CELL = 1.9  # inches


def build_skeleton(name, num_classes, resize, age_border=0):
    """A network without numbers, on the device "meta", on which any size costs no time or memory.

    Its convolutions have no layer in them for their padding: torchinfo would take them for
    containers, and count none of their multiply-adds.
    """
    with torch.device("meta"):
        network = build_network(name, num_classes, resize, age_border=age_border).eval()
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if padding is not None:
            del module.static_padding
            module.static_padding = padding.forward  # pads as before, but is no layer
    return network


def count(skeleton, resize, depth):
    """The table of a network's layers for one image of resize x resize pixels, by torchinfo.

    skeleton: from build_skeleton; depth: 1 for the blocks, 2 for the layers in them. Its str is
    the table, total_params and total_mult_adds are the totals. A batch norm counts as its
    parameters: prediction computes it in the convolution before.
    """
    import torchinfo

    return torchinfo.summary(
        skeleton,
        (1, 3, resize, resize),
        depth=depth + 1,  # of which the list of blocks is one
        col_names=("output_size", "num_params", "mult_adds"),
        col_width=18,
        row_settings=("var_names", "ascii_only"),  # not every terminal or file takes its lines
        device="meta",
        verbose=0,
    )


def draw_graph(skeleton, resize, depth, path):
    """Draw a network's graph to path, which ends in one of GRAPHS; arguments as for count.

    Raises InputError when Graphviz fails or path can't be written.
    """
    import torchview

    graph = torchview.draw_graph(
        skeleton, input_size=(1, 3, resize, resize), depth=depth, expand_nested=True, device="meta"
    )
    graph = graph.visual_graph
    graph.graph_attr.pop("size", None)  # else it is scaled down until nobody can read it
    for attributes in (graph.node_attr, graph.graph_attr):
        attributes["fontname"] = "Helvetica"  # there, or replaced by what is as wide, everywhere
    try:
        picture = graph.pipe(format=path.suffix[1:].lower(), quiet=True)
    except (subprocess.CalledProcessError, BrokenPipeError) as error:
        # Where it ended before it had read the graph, what it said is lost.
        said = getattr(error, "stderr", None) or b""
        reason = said.decode(errors="replace").strip() or str(error)
        raise InputError(f"--graph {path}: Graphviz failed ({reason}); try .svg") from error
    with atomic_write(path) as file:
        file.write(picture)


def crop_face(photo, detector, checkpoint):
    """What a checkpoint's network sees of a photo, uint8 RGB array (H, W, 3): its largest face,
    cropped as by test.py --images, and resized.

    detector: from build_detector for checkpoint["crop"].
    Returns uint8 RGB (resize, resize, 3) and whether there was a face, else the photo's centre.
    """
    settings = checkpoint["crop"]
    [faces] = find_faces(detector, photo[None], settings)
    method, (x0, y0, x1, y1), _ = boxes_in(faces, photo.shape[1::-1], settings)[0]
    face = build_transform(checkpoint["resize"])(image=photo[y0:y1, x0:x1])["image"]
    return face, method != "center"


def heat_maps(network, images):
    """Where a network sees each class: Grad-CAM of Selvaraju et al. 2017, "Grad-CAM: Visual
    Explanations from Deep Networks via Gradient-based Localization".

    network: from build_network, ready to predict; images: as it takes them, (N, 3, H, W).
    Returns its logits, float32 (N, classes), and the maps, float32 (N, classes, h, w), of at least
    0 and not scaled. As the network ends in a mean over h x w places and a linear layer, a value is
    what its place adds to the class's logit; what speaks against a class, the paper cuts off.
    """
    from torchcam.methods import GradCAM

    # The activation behind the last convolution, as in the paper: before batch norm, what zero
    # means is arbitrary. The same module also follows the first convolution; the last call counts.
    with GradCAM(network, "_swish") as grad_cam:
        logits = network(images)
        maps = [
            grad_cam(label, logits, normalized=False, retain_graph=True)[0]
            for label in range(logits.shape[1])
        ]
    return logits.detach(), torch.stack(maps, dim=1)


def overlay(face, heat):
    """Lay a heat map over a face: the hotter, the less shines through.

    face: uint8 RGB (H, W, 3); heat: float32 (h, w) in [0, 1]. Returns uint8 RGB (H, W, 3).
    """
    heat = cv2.resize(heat, face.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    opacity = 0.7 * heat[:, :, None]
    return (face * (1 - opacity) + 255 * HEAT(heat)[:, :, :3] * opacity).round().astype("uint8")


def explain(paths, checkpoint, network):
    """Print what a checkpoint's network says of photos, and draw where it sees it: a row a photo,
    with the face and an overlay for each class. Returns a matplotlib Figure.
    """
    cpu = torch.device("cpu")
    mean, std = torch.tensor(checkpoint["mean"]), torch.tensor(checkpoint["std"])
    detector = build_detector(checkpoint["crop"], cpu)
    # Gradients are needed from the logits down to the last convolution: to hold what is before
    # would take gigabytes.
    network.requires_grad_(False)._conv_head.requires_grad_(True)
    installed = {font.name for font in font_manager.fontManager.ttflist}
    family = ["DejaVu Sans", *(name for name in FONTS if name in installed)]
    with matplotlib.rc_context({"font.family": family}):
        figure, rows = build_sheet(len(paths), checkpoint)
    for path, (plain, *others) in zip(paths, rows):
        face, found = crop_face(load_image(path), detector, checkpoint)
        logits, maps = heat_maps(network, normalize(torch.from_numpy(face)[None], mean, std))
        probabilities, [maps] = logits[0].softmax(dim=0).tolist(), maps.numpy()
        predicted = logits[0].argmax().item()
        verdict = f"{checkpoint['classes'][predicted]} {probabilities[predicted]:.3f}"
        print(f"{printable(str(path))}: {verdict}{'' if found else ' (no face found)'}", flush=True)
        plain.imshow(face)
        plain.set_xlabel("face" if found else "no face: the centre")
        names = printable("\n".join(textwrap.fill(part, 22) for part in path.parts[-2:]))
        plain.set_ylabel(names, rotation=0, ha="right", va="center", parse_math=False)
        # One scale for all classes: the map of one that is out of the question stays faint.
        brightest = max(maps.max(), torch.finfo(torch.float32).tiny)
        for label, (axes, heat) in enumerate(zip(others, maps)):
            axes.imshow(overlay(face, heat / brightest))
            says = f"{checkpoint['classes'][label]} {probabilities[label]:.3f}"
            axes.set_xlabel(says, weight="bold" if label == predicted else "normal")
            axes.spines[:].set(linewidth=3 if label == predicted else 0.8)
    return figure


def build_sheet(rows, checkpoint):
    """An empty figure for explain: the Figure, and a list of axes for each row."""
    columns = 1 + len(checkpoint["classes"])
    width, height = CELL * columns + 2.2, CELL * rows + 1.4  # inches, for names and heading, too
    figure = Figure((width, height), dpi=130)
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=2 / width, right=1 - 0.1 / width, bottom=0.3 / height, top=1 - 1.1 / height,
        wspace=0.1, hspace=0.2,
    )  # fmt: skip
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    heading = (
        f"Grad-CAM: what speaks for each class; bold is what was predicted\n"
        f"{checkpoint['model']} at {checkpoint['resize']} px, {checkpoint['target']} head\n"
        f"{printable(str(Path(*Path(checkpoint['path']).parts[-2:])))}"
    )
    figure.text(0.1 / width, 1 - 0.1 / height, heading, va="top", parse_math=False)
    bar = figure.add_axes((1 - 2.2 / width, 1 - 0.3 / height, 1.9 / width, 0.15 / height))
    figure.colorbar(ScalarMappable(cmap=HEAT), bar, orientation="horizontal", ticks=(0, 0.5, 1))
    bar.set_xlabel("share of the photo's maximum")
    return figure, grid.tolist()


def check_picture(option, path, suffixes, inputs):
    """Raise InputError unless a picture can be written to path and would replace none of inputs."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{option} {path}: give it the suffix {' or '.join(suffixes)}")
    if path.is_dir():
        raise InputError(f"{option} {path}: this is a folder; name a file")
    if path.name in RUN_FILES:
        raise InputError(f"{option} {path}: a run's own file has this name; give it another")
    if path.exists() and any(path.samefile(read) for read in inputs):
        raise InputError(f"{option} {path}: would overwrite what is read here; name another file")
    make_folder(path.parent, f"give another {option}")


def check_options(args):
    """Raise InputError for options that don't go together, or whose programs aren't there."""
    if args.checkpoint is not None and (args.model or args.resize):
        raise InputError("--checkpoint: says which network; do without --model and --resize")
    if args.images and args.checkpoint is None:
        raise InputError("--images: needs a trained network; give it with --checkpoint")
    if args.output and not args.images:
        raise InputError("--output: is the picture of --images; give these, too")
    packages = ["torchinfo"]
    packages += ["torchview", "graphviz"] if args.graph else []
    packages += ["torchcam"] if args.images else []
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} not installed; python -m pip install -r requirements-look.txt"
        )
    if args.graph and not shutil.which("dot"):
        raise InputError(
            "--graph: Graphviz's program dot isn't there; apt install graphviz, or see graphviz.org"
        )


def main():
    args = get_args_parser().parse_args()
    # All that can be wrong, before any work.
    check_options(args)
    photos = list_photos(args.images) if args.images else []
    if len(photos) > MAX_PHOTOS:
        raise InputError(f"--images: {len(photos)} photos; name {MAX_PHOTOS} at most")
    bad = {}
    for photo in photos:
        try_to(load_image, photo, photo, bad)
    refuse_bad_photos(bad, "name only others")
    name, classes, resize = args.model or config.MODEL, CLASSES, args.resize or config.RESIZE
    if args.checkpoint is not None:
        checkpoint = load_checkpoint(args.checkpoint)
        network = load_network(checkpoint)
        name, classes = checkpoint["model"], len(checkpoint["classes"])
        resize = checkpoint["resize"]
    inputs = photos if args.checkpoint is None else [*photos, args.checkpoint]
    output = args.output or Path(OUTPUT)
    if args.graph:
        check_picture("--graph", args.graph, GRAPHS, inputs)
    if photos:
        check_picture("--output", output, [".png"], inputs)
        if args.graph and output.resolve() == args.graph.resolve():
            raise InputError(f"--output {output}: is --graph's file; name another")

    age_border = checkpoint["age_border"] if args.checkpoint else 0
    skeleton = build_skeleton(name, classes, resize, age_border)
    # torchinfo writes the name of its unit, such as Units.GIGABYTES, for its sign, G.
    print(re.sub(r"Units\.(\w)\w+", r"\1", str(count(skeleton, resize, args.depth))))
    if args.graph:
        draw_graph(skeleton, resize, args.depth, args.graph)
        print(f"graph -> {args.graph}")
    if photos:
        figure = explain(photos, checkpoint, network)
        with atomic_write(output) as file, warnings.catch_warnings():
            # A file name in letters that matplotlib's font lacks: boxes here, but printed above.
            warnings.filterwarnings("ignore", "Glyph")
            figure.savefig(file, format="png")
        print(f"Grad-CAM of {len(photos)} photos -> {output}")


if __name__ == "__main__":
    run(main)
