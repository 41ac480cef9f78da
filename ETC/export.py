"""All networks in one ONNX file, to serve without this repository: `python -m ETC.export`

The file takes crops of faces to probabilities and the official class; all else that is to be known
stands in its metadata, each value as JSON:

format    number of this list's format
inputs    {name of an input: side of its images in pixels}
resize    how a crop becomes that size: the name of one of OpenCV's interpolations
crop      how photos were cropped, see CROP_SETTINGS in config
heads     {output: names of its classes, in the order of its columns}
classes   names of the official classes, in the order of their numbers
networks  {output: what it is the mean of, each with model, resize, tta, and sha256 of its best.pth}
"""

import json
import shlex
from pathlib import Path

from config import config
from utils.cli import ArgumentParser, InputError, add_runs, answer_early, run

FORMAT = 1
LIMIT = 2**31  # bytes of a file that is one message of Protocol Buffers


def get_args_parser():
    parser = ArgumentParser(
        "python -m ETC.export",
        description="Export the three heads, the mean of all runs each, to one ONNX file. Its "
        "input, images, is uint8 (N, side, side, 3), RGB; where networks were trained at several "
        "sizes, there is an input for each, images_112 and images_224 for example, for the same "
        "crops: a small image isn't to be had from a resized one. Its outputs are mask, gender and "
        "age, float32 probabilities, and class, int64. Its metadata tell the rest.",
    )
    # fmt: off
    add = parser.add_argument
    add_runs(add)
    add("--output", type=Path, default=Path("model.onnx"), metavar="FILE",
        help="the model, a .onnx (default: %(default)s)")
    add("--tta", choices=config.TTAS,
        help="views of each image: none, or flip, the mean of a face and its mirror image "
        "(default: as in each head's training)")
    # fmt: on
    return parser


if __name__ == "__main__":
    answer_early(get_args_parser())  # the imports below take seconds

import numpy as np
import torch
from torch import nn

from data.labels import class_names, merge_labels
from models.network import FromPixels, fold_batch_norm, load_network
from models.onnx_runtime import export, missing_packages
from utils.checkpoint import find_checkpoints
from utils.files import atomic_write, check_output


class Member(FromPixels):
    """A checkpoint's network: images by their side, {int: uint8 (N, side, side, 3)} ->
    probabilities, float32 (N, classes).

    tta: one of config.TTAS.
    """

    def __init__(self, checkpoint, tta):
        network = fold_batch_norm(load_network(checkpoint))
        super().__init__(network, checkpoint["mean"], checkpoint["std"])
        self.side, self.flip = checkpoint["resize"], tta == "flip"

    def forward(self, images):
        images = images[self.side]
        if not self.flip:
            return super().forward(images).softmax(dim=1)
        # As one batch: the network stands in the model once.
        probs = super().forward(torch.cat([images, images.flip(2)])).softmax(dim=1)
        return probs.unflatten(0, (2, -1)).mean(dim=0)


class Heads(nn.Module):
    """All heads: uint8 images (N, side, side, 3), one tensor for each of sides -> probabilities of
    mask, gender and age, float32 (N, 3), (N, 2) and (N, 3), and official classes, int64 (N,).

    members: {target: [Member]} in the order of config.HEADS.
    """

    def __init__(self, members, sides):
        super().__init__()
        self.members = nn.ModuleList(nn.ModuleList(folds) for folds in members.values())
        self.sides = sides
        # What merge_labels says for each mask, gender and age, the last one counting fastest.
        classes = torch.from_numpy(merge_labels(*np.ogrid[:3, :2, :3])).flatten()
        self.register_buffer("classes", classes)

    def forward(self, *images):
        images = dict(zip(self.sides, images))
        heads = [
            torch.stack([member(images) for member in folds]).mean(dim=0) for folds in self.members
        ]
        mask, gender, age = (probs.argmax(dim=1) for probs in heads)
        return *heads, self.classes[(mask * 2 + gender) * 3 + age]


def input_names(checkpoints):
    """The model's inputs, {name: side}, for checkpoints of find_checkpoints."""
    sides = sorted({one["resize"] for folds in checkpoints.values() for one in folds})
    return {"images" if len(sides) == 1 else f"images_{side}": side for side in sides}


def describe(checkpoints, tta):
    """The model's metadata, {name: plain value}, see above."""
    heads = {target: head["classes"] for target, head in config.HEADS.items()}
    networks = {
        target: [
            {
                "model": one["model"],
                "resize": one["resize"],
                "tta": tta or one["tta"],
                "sha256": one["digest"],
            }
            for one in folds
        ]
        for target, folds in checkpoints.items()
    }
    return {
        "format": FORMAT,
        "inputs": input_names(checkpoints),
        "resize": "INTER_LINEAR",
        "crop": checkpoints["mask"][0]["crop"],
        "heads": heads,
        "classes": class_names(),
        "networks": networks,
    }


def build_model(checkpoints, tta=None):
    """The ONNX model, bytes, of checkpoints, {target: [checkpoint]} of find_checkpoints.

    tta: one of config.TTAS, or None for that of each checkpoint. Raises InputError for weights that
    are another network's.
    """
    import onnx

    inputs = input_names(checkpoints)
    members = {
        target: [Member(one, tta or one["tta"]) for one in folds]
        for target, folds in checkpoints.items()
    }
    network = Heads(members, [*inputs.values()]).eval()
    model = onnx.load_from_string(export(network, inputs, [*members, "class"]))
    for output, folds in zip(model.graph.output, checkpoints.values()):
        # The exporter loses count of what an AgeHead gives.
        output.type.tensor_type.shape.dim[1].dim_value = len(folds[0]["classes"])
    metadata = {name: json.dumps(value) for name, value in describe(checkpoints, tta).items()}
    onnx.helper.set_model_props(model, metadata)
    return model.SerializeToString()


def check_packages():
    """Raise InputError where packages are missing."""
    if missing_packages():
        raise InputError(
            f"ETC.export: {' and '.join(missing_packages())} not installed; "
            "python -m pip install -r requirements-onnx.txt"
        )


def check_size(checkpoints, folders):
    """Raise InputError where checkpoints, from the runs in folders, are too much for one file."""
    folds = [one for its in checkpoints.values() for one in its]
    size = sum(weight.nbytes for one in folds for weight in one["network"].values())
    if size > LIMIT:
        raise InputError(
            f"--runs {shlex.join(folders)}: {len(folds)} networks of {size / 1e9:.1f} GB, and an "
            f"ONNX file holds {LIMIT / 1e9:.1f}; export fewer runs"
        )


def main():
    args = get_args_parser().parse_args()
    check_packages()
    checkpoints = find_checkpoints(args.runs)
    paths = [one["path"] for folds in checkpoints.values() for one in folds]
    check_output(args.output, ".onnx", [], paths)
    check_size(checkpoints, args.runs)
    model = build_model(checkpoints, args.tta)
    with atomic_write(args.output) as file:
        file.write(model)
    counts = ", ".join(f"{len(folds)} {target}" for target, folds in checkpoints.items())
    inputs = ", ".join(
        f"{name} (N, {side}, {side}, 3)" for name, side in input_names(checkpoints).items()
    )
    print(f"networks: {counts}; input: {inputs} -> {args.output} ({len(model) / 1e6:.0f} MB)")


if __name__ == "__main__":
    run(main)
