"""All networks in one ONNX file, to serve without this repository: `python -m ETC.export`.

The model takes crops of faces to probabilities and the official class. Its metadata says the rest,
each value as JSON:

format    version of this list
inputs    {name of an input: side of its images in pixels}; uint8, RGB, not normalized
resize    how a crop becomes an image of that side, with the names of OpenCV's interpolations
crop      how the photos were cropped: config.CROP, and face_width, the width of a typical face
heads     {output: names of its classes, in the order of its columns}
classes   names of the official classes, in the order of their numbers
networks  {output: the networks it averages: model, resize, tta and the sha256 of best.pth}
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # noqa: F401 - before PyTorch

import json

import numpy as np
import torch
from torch import nn

from config.config import CLASSES
from data.labels import merge_labels
from ETC.names import class_names
from models.inference import FromPixels, export_onnx, missing_packages
from utils import cli
from utils.checkpoint import find_checkpoints
from utils.cli import InputError
from utils.files import atomic_write, check_output

FORMAT = 2
RESIZE = {  # what data.augment.resize does
    "steps": "Resize to min(width, side) x min(height, side) by the interpolation shrink, then to "
    "side x side by the interpolation enlarge; leave out a step that changes nothing.",
    "shrink": "INTER_AREA",
    "enlarge": "INTER_LINEAR",
}


class Member(nn.Module):
    """A checkpoint's network: {side: uint8 images (N, side, side, 3)} -> probabilities, float32
    (N, classes). tta: none or flip.
    """

    def __init__(self, checkpoint, tta):
        super().__init__()
        self.network = FromPixels(checkpoint)
        self.side, self.flip = checkpoint["resize"], tta == "flip"

    def forward(self, images):
        images = images[self.side]
        if not self.flip:
            return self.network(images).softmax(dim=1)
        # In one batch, so that the model holds the network once.
        probs = self.network(torch.cat([images, images.flip(2)])).softmax(dim=1)
        return probs.unflatten(0, (2, -1)).mean(dim=0)


class Heads(nn.Module):
    """All heads: uint8 images (N, side, side, 3), a tensor for each of sides -> probabilities of
    mask, gender and age, float32 (N, 3), (N, 2) and (N, 3), and official classes, int64 (N,).

    members: {target: [Member]} in the order of CLASSES.
    """

    def __init__(self, members, sides):
        super().__init__()
        self.members = nn.ModuleList(nn.ModuleList(head) for head in members.values())
        self.sides = sides
        # merge_labels of each mask, gender and age, the last counting fastest.
        classes = torch.from_numpy(merge_labels(*np.ogrid[:3, :2, :3])).flatten()
        self.register_buffer("classes", classes)

    def forward(self, *images):
        images = dict(zip(self.sides, images))
        heads = [
            torch.stack([member(images) for member in head]).mean(dim=0) for head in self.members
        ]
        mask, gender, age = (probs.argmax(dim=1) for probs in heads)
        return *heads, self.classes[(mask * 2 + gender) * 3 + age]


def input_names(checkpoints):
    """The inputs of the model, {name: side}. checkpoints: of find_checkpoints."""
    sides = sorted({checkpoint["resize"] for head in checkpoints.values() for checkpoint in head})
    return {"images" if len(sides) == 1 else f"images_{side}": side for side in sides}


def describe(checkpoints, tta):
    """The metadata of the model, {name: plain value}, see above."""
    return {
        "format": FORMAT,
        "inputs": input_names(checkpoints),
        "resize": RESIZE,
        "crop": checkpoints["mask"][0]["crop"],  # those of all heads
        "heads": CLASSES,
        "classes": class_names(),
        "networks": {
            target: [
                {name: checkpoint[name] for name in ("model", "resize")}
                | {"tta": tta or checkpoint["tta"], "sha256": checkpoint["digest"]}
                for checkpoint in head
            ]
            for target, head in checkpoints.items()
        },
    }


def build_model(checkpoints, tta=None):
    """The ONNX model, bytes. checkpoints: of find_checkpoints; tta: none, flip, or None for that of
    each checkpoint.
    """
    import onnx  # optional

    inputs = input_names(checkpoints)
    members = {
        target: [Member(checkpoint, tta or checkpoint["tta"]) for checkpoint in head]
        for target, head in checkpoints.items()
    }
    network = Heads(members, [*inputs.values()]).eval()
    model = onnx.load_from_string(export_onnx(network, inputs, [*members, "class"]))
    for output, classes in zip(model.graph.output, CLASSES.values()):
        # The exporter doesn't see how many classes an AgeHead answers with.
        output.type.tensor_type.shape.dim[1].dim_value = len(classes)
    metadata = {name: json.dumps(value) for name, value in describe(checkpoints, tta).items()}
    onnx.helper.set_model_props(model, metadata)
    return model.SerializeToString()


def get_args_parser():
    parser = cli.ArgumentParser(
        "python -m ETC.export",
        description="Export the three heads, each the mean of all its runs, to one ONNX file. "
        "Inputs: images, uint8 (N, side, side, 3), RGB; of networks trained at several sizes, one "
        "for each, such as images_112 and images_224. Outputs: mask, gender and age, float32 "
        "probabilities; class, int64. The metadata says the rest.",
    )
    # fmt: off
    add = parser.add_argument
    cli.add_runs_argument(add)
    add("--output", type=Path, default=Path("model.onnx"), metavar="FILE",
        help="the model, a .onnx (default: %(default)s)")
    add("--tta", choices=("none", "flip"),
        help="views of each image; flip averages a face and its mirror image (default: as in each "
        "head's training)")
    # fmt: on
    return parser


def main():
    args = get_args_parser().parse_args()
    if missing := missing_packages():
        raise InputError(
            f"ETC.export: {' and '.join(missing)} not installed; "
            "python -m pip install -r requirements-onnx.txt"
        )
    checkpoints = find_checkpoints(args.runs)
    check_output(args.output, [".onnx"], [])
    model = build_model(checkpoints, args.tta)
    with atomic_write(args.output) as file:
        file.write(model)
    counts = ", ".join(f"{len(head)} {target}" for target, head in checkpoints.items())
    inputs = ", ".join(input_names(checkpoints))
    print(f"networks: {counts}; input: {inputs} -> {args.output} ({len(model) / 1e6:.0f} MB)")


if __name__ == "__main__":
    cli.run(main)
