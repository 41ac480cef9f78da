"""Show what is in a network: `python -m utils.view_model`

A table of its layers and a picture of its graph, by the packages in requirements-look.txt.
"""

import sys
from pathlib import Path

if __spec__ is None:  # started as a file, not by python -m
    sys.path[0] = str(Path(__file__).parents[1])
    import config  # before PyTorch

import re
import shutil
from importlib.util import find_spec

from config import config
from models.network import MODELS_HELP, build_network, network_name
from utils import cli
from utils.checkpoint import load_checkpoint
from utils.cli import InputError
from utils.files import atomic_write

CLASSES = 3  # of a network named with --model
GRAPHS = (".svg", ".png", ".pdf")


def build_skeleton(name, num_classes, resize, age_border=0):
    """A network on the device "meta", where no size of images costs time or memory. Its padding is
    no layer: torchinfo would count no multiply-adds of the convolution around it.
    """
    network = build_network(name, num_classes, resize, age_border=age_border).eval().to("meta")
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if padding is not None:
            del module.static_padding
            module.static_padding = padding.forward
    return network


def count_layers(skeleton, resize, depth):
    """torchinfo's table of a build_skeleton for one image of resize x resize pixels; its
    total_params and total_mult_adds are the totals.

    depth: 1 for the blocks, 2 for the layers in them too. A batch norm counts as its parameters:
    prediction folds it into the convolution before.
    """
    import torchinfo

    return torchinfo.summary(
        skeleton, (1, 3, resize, resize), device="meta", verbose=0, col_width=18,
        depth=depth + 1,  # the list of the blocks is a level too
        col_names=("output_size", "num_params", "mult_adds"),
        row_settings=("var_names", "ascii_only"),  # not every terminal shows its lines
    )  # fmt: skip


def draw_graph(skeleton, resize, depth, path):
    """Draw a build_skeleton's graph to path, whose suffix is one of GRAPHS; depth as above."""
    import torchview

    graph = torchview.draw_graph(
        skeleton, input_size=(1, 3, resize, resize), depth=depth, expand_nested=True, device="meta"
    ).visual_graph
    graph.graph_attr.pop("size", None)  # which would shrink it until it can't be read
    for attributes in (graph.node_attr, graph.graph_attr):
        attributes["fontname"] = "Helvetica"  # every system has it, or one as wide
    with atomic_write(path) as file:
        file.write(graph.pipe(format=path.suffix[1:].lower(), quiet=True))


def get_args_parser():
    parser = cli.ArgumentParser("python -m utils.view_model", description="Show a network.")
    add = parser.add_argument
    # fmt: off
    add("--model", type=network_name, default=config.MODEL, metavar="NAME",
        help=f"{MODELS_HELP} (default: %(default)s)")
    add("--resize", type=cli.input_size, default=config.RESIZE, metavar="PIXELS",
        help="side of the network's input (default: %(default)s)")
    add("--checkpoint", type=cli.file_name, metavar="FILE",
        help="best.pth of a run, which overrides --model and --resize (default: none)")
    add("--depth", type=int, choices=(1, 2), default=1,
        help="1 shows the blocks, 2 the layers in them too (default: %(default)s)")
    add("--graph", type=Path, metavar="FILE",
        help=f"draw the graph to this {', '.join(GRAPHS)} (default: no graph)")
    # fmt: on
    return parser


def main():
    args = get_args_parser().parse_args()
    if not all(map(find_spec, ("torchinfo", "torchview", "graphviz"))):
        raise InputError("packages are missing: python -m pip install -r requirements-look.txt")
    if args.graph and args.graph.suffix.lower() not in GRAPHS:
        raise InputError(f"--graph {args.graph}: name a file that ends in {', '.join(GRAPHS)}")
    if args.graph and not shutil.which("dot"):
        raise InputError("--graph: Graphviz's program dot is missing; apt install graphviz")
    head = {"model": args.model, "classes": range(CLASSES), "resize": args.resize, "age_border": 0}
    if args.checkpoint:
        head = load_checkpoint(args.checkpoint)
    name, classes, resize = head["model"], len(head["classes"]), head["resize"]
    skeleton = build_skeleton(name, classes, resize, head["age_border"])
    # torchinfo writes its units by their Python names, such as Units.GIGABYTES.
    table = str(count_layers(skeleton, resize, args.depth))
    print(re.sub(r"Units\.(\w)\w+", r"\1", table))
    if args.graph:
        draw_graph(skeleton, resize, args.depth, args.graph)
        print(f"graph -> {args.graph}")


if __name__ == "__main__":
    cli.run(main)
