"""Show what a head looks at: `python -m ETC.gradcam holiday/ --checkpoint runs/age_fold0/best.pth`

A row for the largest face of each photo: the face as the network sees it, and for each class a heat
map of what speaks for it.
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # noqa: F401 - before PyTorch

import tempfile

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw

from data.augment import resize
from data.images import load_image, print_left_out
from data.labels import raise_problems
from ETC.names import printable
from ETC.predict import add_photo_arguments, crop_faces, end_with_bad, find_photos
from ETC.sheet import GAP, arrange, with_lines
from models.network import load_network, normalize
from utils import cli
from utils.checkpoint import load_checkpoint
from utils.cli import InputError
from utils.device import pick_device
from utils.files import atomic_write, check_output
from utils.plots import BLUE

MAX_PHOTOS = 50  # most viewers can't show a longer picture
SIDE = 224  # of a face in the picture, in pixels
OPACITY = 0.7  # of the hottest places


def heat_maps(network, images):
    """Where a network sees each class: Grad-CAM of Selvaraju et al. 2017, "Grad-CAM: Visual
    Explanations from Deep Networks via Gradient-based Localization".

    network: from load_network; images: float32 (N, 3, H, W), normalised.
    Returns its logits, float32 (N, classes), and the maps, float32 (N, classes, h, w), at least 0
    and not scaled. Where the classifier is linear, a value is what its place adds to the logit; as
    in the paper, what speaks against a class is cut off.
    """
    features = None

    def keep(module, inputs, output):
        nonlocal features
        if torch.is_tensor(output) and output.ndim == 4 and output[0, 0].numel() > 1:
            features = output

    # What stays is the last map before it is pooled, behind its activation as in the paper.
    with torch.nn.modules.module.register_module_forward_hook(keep):
        logits = network(images)
    maps = []
    for label in range(logits.shape[1]):
        [slopes] = torch.autograd.grad(logits[:, label].sum(), features, retain_graph=True)
        weights = slopes.mean(dim=(2, 3), keepdim=True)
        maps.append((weights * features).sum(dim=1).relu().detach())
    return logits.detach(), torch.stack(maps, dim=1)


def overlay(face, heat):
    """Lay a heat map over a face: the hotter a place, the less of the face shows.

    face: uint8 RGB (H, W, 3); heat: float32 (h, w) in [0, 1]. Returns uint8 RGB (H, W, 3).
    """
    heat = cv2.resize(heat, face.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    opacity = OPACITY * heat[:, :, None]
    colors = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    return (face * (1 - opacity) + colors * opacity).round().astype(np.uint8)


def explain(face, checkpoint, network):
    """What a network says of a face, and where it sees it.

    face: uint8 RGB (H, W, 3), a crop; network: of checkpoint.
    Returns the probabilities, a list of floats, of this face alone, not averaged with its mirror
    image; the face as it sees it, uint8 RGB (resize, resize, 3); and its maps, float32 (classes, h,
    w), of which the highest value is 1.
    """
    device = next(network.parameters()).device
    face = resize(face, checkpoint["resize"])
    mean, std = (torch.tensor(checkpoint[name], device=device) for name in ("mean", "std"))
    logits, maps = heat_maps(network, normalize(torch.from_numpy(face)[None].to(device), mean, std))
    # One scale for all classes: that of an unlikely class stays faint.
    maps = maps / maps.max().clamp(min=torch.finfo(maps.dtype).tiny)
    return logits[0].softmax(dim=0).tolist(), face, maps[0].cpu().numpy()


def draw_row(row, classes, probs, face, maps):
    """A row of the picture, a list of PIL images: the face, then an overlay for each class.

    row: of crop_faces; classes: their names; the others: from explain.
    """
    where = "no face: the centre" if row["method"] == "center" else "largest face"
    cells = [with_lines(enlarge(face), [(row["file"], "black"), (where, "black")])]
    for label, (name, prob, heat) in enumerate(zip(classes, probs, maps)):
        cell, color = enlarge(overlay(face, heat)), "black"
        if label == np.argmax(probs):
            color = BLUE
            ImageDraw.Draw(cell).rectangle((0, 0, SIDE - 1, SIDE - 1), outline=color, width=4)
        cells.append(with_lines(cell, [(f"{name} {prob:.3f}", color)]))
    return cells


def enlarge(image):
    """A uint8 RGB array as a PIL image of SIDE x SIDE pixels."""
    return Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def draw_heading(checkpoint):
    """The row above all others: what the picture shows, and of which network."""
    lines = [
        f"Grad-CAM: what speaks for each class of the {checkpoint['target']} head",
        f"{checkpoint['model']}, {checkpoint['resize']} px, {printable(checkpoint['path'])}",
        "clear: nothing; yellow: the most in its row; framed: the network's answer",
    ]
    width = (SIDE + GAP) * (1 + len(checkpoint["classes"])) - GAP
    text = Image.new("RGB", (width, 1), "white")
    return [with_lines(text, [(line, "black") for line in lines])]


def main():
    args = get_args_parser().parse_args()
    device = pick_device(args.device)
    checkpoint = load_checkpoint(args.checkpoint)
    if checkpoint["model"].startswith("vit_"):
        why = f"{checkpoint['model']} makes no map of features, which Grad-CAM needs"
        raise InputError(f"{args.checkpoint}: {why}")
    left_out = []
    photos = list(find_photos(args.photos, left_out))
    if len(photos) > MAX_PHOTOS:
        raise InputError(f"{len(photos)} photos; name {MAX_PHOTOS} at most")
    check_output(args.output, [".png"], [*photos, args.checkpoint])
    network = load_network(checkpoint).to(device)
    rows = [draw_heading(checkpoint)]
    with tempfile.TemporaryDirectory() as folder:
        faces, damaged = crop_faces(args, photos, Path(folder), checkpoint["crop"], device)
        if faces.empty:
            raise_problems("no readable photos", damaged)
        for line in damaged:
            print(line, file=sys.stderr)
        for row in faces.to_dict("records"):
            probs, face, maps = explain(load_image(row["crop"]), checkpoint, network)
            rows.append(draw_row(row, checkpoint["classes"], probs, face, maps))
            name = checkpoint["classes"][np.argmax(probs)]
            missed = " (no face found)" if row["method"] == "center" else ""
            print(f"{row['file']}: {name} {max(probs):.3f}{missed}")
    with atomic_write(args.output) as file:
        arrange(rows).save(file, "PNG")
    print(f"Grad-CAM of {len(faces)} photos -> {args.output}")
    print_left_out(left_out)
    end_with_bad(args, len(photos), len(faces))


def get_args_parser():
    description = f"Show what a head looks at, in {MAX_PHOTOS} photos at most."
    parser = cli.ArgumentParser("python -m ETC.gradcam", description=description)
    # fmt: off
    add = parser.add_argument
    add_photo_arguments(add)
    add("--checkpoint", type=cli.file_name, required=True, metavar="FILE", help="best.pth of a run")
    add("--output", type=cli.file_name, default="gradcam.png", metavar="FILE",
        help="a .png (default: %(default)s)")
    # fmt: on
    return parser


if __name__ == "__main__":
    cli.run(main)
