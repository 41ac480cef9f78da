"""Find heads with torchvision's Keypoint R-CNN (He et al. 2017, "Mask R-CNN", section 5).

It finds people and 17 points of each body. Where a mask hides what a face detector looks for, the
eyes, the ears and the body below still say where the head is.
"""

import numpy as np
import torch
from torchvision.models.detection import (
    KeypointRCNN_ResNet50_FPN_Weights,
    keypointrcnn_resnet50_fpn,
)

from data.detect import area
from utils.cli import InputError

WEIGHTS = KeypointRCNN_ResNet50_FPN_Weights.DEFAULT
PERSON_SCORE = 0.8
# Of the keypoints in COCO's order.
NOSE, EYES, EARS = 0, slice(1, 3), slice(3, 5)
# A face as a face detector boxes it, seen from the front, in widths from ear to ear: the eyes are
# half of that apart, the box reaches so far above and below the nose.
EYES_TO_EARS = 2.0
ABOVE_NOSE, BELOW_NOSE = 0.75, 0.6


def fetch_weights():
    """The COCO weights, a state dict, which torchvision downloads (226 MB) at first use.

    Raises InputError when it can't.
    """
    try:
        return WEIGHTS.get_state_dict(check_hash=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--detector keypoint_rcnn: its weights could not be downloaded ({error}); put "
            f"{WEIGHTS.url} into {torch.hub.get_dir()}/checkpoints yourself, or use "
            "--detector mtcnn"
        ) from error


def build_keypoint_rcnn(device):
    """The network with its COCO weights. Raises InputError when these can't be downloaded."""
    network = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    network.load_state_dict(fetch_weights())
    return network.eval().to(device)


def head_box(person, keypoints):
    """The box of a face, four floats x0, y0, x1, y1, by the person's box and facial keypoints.

    person: float array (4,); keypoints: float array (17, 2), x and y; all in pixels.
    """
    eyes, ears = (np.ptp(keypoints[which, 0]) for which in (EYES, EARS))
    width = max(ears, EYES_TO_EARS * eyes)  # from the side, an ear is where the eye is
    x = (keypoints[EARS, 0].mean() + keypoints[EYES, 0].mean()) / 2
    y = keypoints[NOSE, 1]
    box = np.array([x - width / 2, y - ABOVE_NOSE * width, x + width / 2, y + BELOW_NOSE * width])
    low, high = np.tile(person[:2], 2), np.tile(person[2:], 2)
    return tuple(box.clip(low, high).tolist())


@torch.inference_mode()
def find_heads(network, images, min_face_size):
    """The faces of at least min_face_size pixels in each image, the largest first.

    images: uint8 RGB array (N, H, W, 3).
    Returns for each a list of pairs of a box, four floats x0, y0, x1, y1, and the person's score.
    """
    device = next(network.parameters()).device
    found = []
    for image in images:  # one at a time: it makes 800 pixels of each, and gigabytes of eight
        photo = torch.from_numpy(image).to(device).permute(2, 0, 1) / 255
        [people] = network([photo])
        people = {name: value.cpu().numpy() for name, value in people.items()}
        heads = [
            (head_box(person, keypoints[:, :2]), float(score))
            for person, keypoints, score in zip(
                people["boxes"], people["keypoints"], people["scores"]
            )
            if score >= PERSON_SCORE
        ]
        heads = [
            (box, score)
            for box, score in heads
            if min(box[2] - box[0], box[3] - box[1]) >= min_face_size
        ]
        found.append(sorted(heads, key=lambda head: -area(head[0])))
    return found
