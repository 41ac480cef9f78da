"""Find heads with torchvision's Keypoint R-CNN (He et al. 2017, "Mask R-CNN", section 5).

It finds people and 17 points of each body. Where a mask hides what a face detector looks for, the
eyes, the ears and the body below still tell where the head is. ETC/crop_test_img.ipynb compares it
with MTCNN.
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
# Of the keypoints, in COCO's order.
NOSE, EYES, EARS = 0, slice(1, 3), slice(3, 5)
# The box of a face seen from the front, in widths from ear to ear: the eyes are half a width apart,
# and the box reaches this far above and below the nose.
EYES_TO_EARS = 2.0
ABOVE_NOSE, BELOW_NOSE = 0.75, 0.6


def build_keypoint_rcnn(device):
    """The network on device with its COCO weights, which torchvision downloads (226 MB) at first
    use. Raises InputError when it can't.
    """
    try:
        weights = WEIGHTS.get_state_dict(check_hash=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"Keypoint R-CNN's weights could not be downloaded ({error}); put {WEIGHTS.url} "
            f"into {torch.hub.get_dir()}/checkpoints yourself"
        ) from error
    network = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    network.load_state_dict(weights)
    return network.eval().to(device)


def head_box(person, keypoints):
    """The box of a face, four floats x0, y0, x1, y1, from the box and the keypoints of a person.

    person: float array (4,); keypoints: float array (17, 2), x and y; all in pixels.
    """
    eyes, ears = (np.ptp(keypoints[points, 0]) for points in (EYES, EARS))
    width = max(ears, EYES_TO_EARS * eyes)  # in profile, the ear in view is next to the eye
    x = (keypoints[EARS, 0].mean() + keypoints[EYES, 0].mean()) / 2
    y = keypoints[NOSE, 1]
    box = np.array([x - width / 2, y - ABOVE_NOSE * width, x + width / 2, y + BELOW_NOSE * width])
    low, high = np.tile(person[:2], 2), np.tile(person[2:], 2)
    return tuple(box.clip(low, high).tolist())


@torch.inference_mode()
def find_heads(network, images, min_face_size):
    """The faces of at least min_face_size pixels in each photo, the largest first.

    network: from build_keypoint_rcnn; images: uint8 RGB array (N, H, W, 3).
    Returns for each photo [(box, score)], box being four floats x0, y0, x1, y1 in pixels.
    """
    device = next(network.parameters()).device
    found = []
    for image in images:  # not as a batch: it enlarges each to 800 pixels, which takes gigabytes
        [people] = network([torch.from_numpy(image).to(device).permute(2, 0, 1) / 255])
        people = [people[name].cpu().numpy() for name in ("boxes", "keypoints", "scores")]
        heads = []
        for person, keypoints, score in zip(*people):
            box = head_box(person, keypoints[:, :2])
            if score >= PERSON_SCORE and min(box[2] - box[0], box[3] - box[1]) >= min_face_size:
                heads.append((box, float(score)))
        found.append(sorted(heads, key=lambda head: -area(head[0])))
    return found
