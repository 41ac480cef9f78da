"""Find faces with facenet_pytorch's MTCNN, several times faster.

Networks, thresholds and resampling are the package's (Zhang et al. 2016, "Joint Face Detection and
Alignment Using Multi-task Cascaded Convolutional Networks"), and so are the faces and nearly all
boxes. But photos pass in batches; areas are averaged through a summed-area table (Crow 1984); the
last, costly network sees the best candidate of each face first; and the coarse, cheap levels of the
image pyramid are tried before the fine ones. A photo without a face may get a second look, without
and with a frame, which the package doesn't have.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F

cv2.setNumThreads(1)  # the loader's workers use the cores already

FACTOR = 0.709  # from a level of the pyramid to the next
THRESHOLDS = (0.6, 0.7, 0.7)
# Of the second look, which finds faces behind masks; and the smallest face that it accepts, as a
# share of the photo's shorter side: it takes parts of landscapes for smaller ones.
SECOND_THRESHOLDS = (0.2, 0.2, 0.2)
SECOND_FACE = 1 / 3
# MTCNN misses faces that fill their photo or leave it, but sees them in a frame: its width, as a
# share of the photo's shorter side. The second look shrinks photos to at most so many pixels there.
FRAME = 0.3
SECOND_SIDE = 384
# Faces of this share of a photo's shorter side are looked for first.
LARGE_FACE = 1 / 4
# Candidates that overlap this much (intersection over union) count as one face.
SAME_FACE = 0.6
# If no smaller faces than this are looked for, in pixels, a photo of half the size shows them all.
HALF_SIZE_FACE = 40
PACKAGE_FACE = 20  # the package's min_face_size


def build_detector(device):
    """The package's MTCNN on device; its weights come with it."""
    from facenet_pytorch import MTCNN

    return pad_channels(MTCNN(device=device))


def find_largest_faces(mtcnn, images, min_face_size, size=None):
    """The largest face of each photo, in a list that is empty without one.

    mtcnn: from build_detector; images: uint8 RGB array (N, H, W, 3); size: the photos' (width,
    height), if images are smaller copies of them; min_face_size: in pixels of the photo.
    Returns for each photo [(box, probability)], box being four floats x0, y0, x1, y1 in pixels of
    the photo.
    """
    size = size or images.shape[2:0:-1]
    scales = pyramid(size, min_face_size)
    coarse = [scale for scale in scales if 12 / scale >= LARGE_FACE * min(size)]
    found = detect(mtcnn, images, coarse, size) if coarse else [[] for _ in images]
    missed = [number for number, faces in enumerate(found) if not faces]
    if scales and missed:
        half_shows_all = min_face_size >= HALF_SIZE_FACE
        halve = half_shows_all and size == images.shape[2:0:-1]
        # Few at a time: a photo's finest level has many times the pixels of its coarse ones.
        step = 8 if half_shows_all else 2
        for chunk in (missed[start : start + step] for start in range(0, len(missed), step)):
            photos = images[chunk]
            if halve:
                half = size[0] // 2, size[1] // 2
                photos = np.stack([cv2.resize(photo, half, interpolation=cv2.INTER_AREA)
                                   for photo in photos])  # fmt: skip
            for number, faces in zip(chunk, detect(mtcnn, photos, scales, size)):
                found[number] = faces
    return [faces[:1] for faces in found]


def look_again(mtcnn, images, size=None):
    """As find_largest_faces, with lower thresholds, for photos in which that finds nothing: the
    most probable face of at least SECOND_FACE, looked for without a frame and then with one.
    """
    size = size or images.shape[2:0:-1]
    found = [[] for _ in images]
    for frame in (0, FRAME):
        missed = [number for number, faces in enumerate(found) if not faces]
        if missed:
            for number, faces in zip(missed, look_in_frame(mtcnn, images[missed], size, frame)):
                found[number] = faces
    return found


def look_in_frame(mtcnn, images, size, frame):
    """look_again with one frame around each photo, or none, in its mean colour.

    frame: its width as a share of the photo's shorter side; size: the photos' (width, height).
    """
    shrink = min(1, SECOND_SIDE / min(images.shape[1:3]))
    inner = [max(1, round(shrink * side)) for side in images.shape[2:0:-1]]
    border = round(frame * min(inner))  # in pixels of the shrunken photos, as inner
    zoom = [size[0] / inner[0], size[1] / inner[1]]
    # In the photos' pixels.
    outer = [factor * (side + 2 * border) for factor, side in zip(zoom, inner)]
    scales = [scale for scale in pyramid(outer) if 12 / scale >= LARGE_FACE * min(size)]
    if not scales:
        return [[] for _ in images]
    framed = []
    for image in images:
        image = cv2.resize(image, inner, interpolation=cv2.INTER_AREA)
        color = image.mean(axis=(0, 1)).tolist()
        framed.append(cv2.copyMakeBorder(image, *[border] * 4, cv2.BORDER_CONSTANT, value=color))
    found = detect(mtcnn, np.stack(framed), scales, outer, 1, SECOND_THRESHOLDS)
    for faces in found:
        large = [(tuple(x - factor * border for x, factor in zip(box, zoom * 2)), prob)
                 for box, prob in faces
                 if min(box[2] - box[0], box[3] - box[1]) >= SECOND_FACE * min(size)]  # fmt: skip
        faces[:] = sorted(large, key=lambda face: -face[1])[:1]
    return found


def find_all_faces(mtcnn, images, min_face_size, size=None):
    """As find_largest_faces, but all faces of each photo, after the one it finds."""
    size = size or images.shape[2:0:-1]
    largest = find_largest_faces(mtcnn, images, min_face_size, size)
    scales = pyramid(size, min_face_size)
    if not scales:
        return largest
    found = detect(mtcnn, images, scales, size, same_face=1)
    return [
        first + [face for face in faces if not first or overlap(face[0], first[0][0]) <= 0.5]
        for first, faces in zip(largest, found)
    ]


@torch.inference_mode()
def detect(mtcnn, images, scales, size, same_face=SAME_FACE, thresholds=THRESHOLDS):
    """What MTCNN(select_largest=True).detect finds, in the form that find_largest_faces returns.

    images, size: as for find_largest_faces; scales: of pyramid, at least one; thresholds: the
    probability that each of the three networks has to see; same_face: how much (intersection over
    union) candidates overlap of which the last network sees the best one first. With 1 it sees
    all, and all boxes are the package's; below 1, only the first face is sure to be the package's.
    """
    table = sum_table(images, mtcnn.device)
    faces = [[] for _ in images]
    zoom = [size[0] / images.shape[2], size[1] / images.shape[1]] * 2
    scales = [scale * zoom[0] for scale in scales]
    boxes, index = propose(mtcnn.pnet, table, scales, thresholds[0])
    if len(boxes):
        offsets, probs = refine(mtcnn.rnet, table, boxes, index, 24)
        kept = (probs > thresholds[1]).nonzero()[:, 0]
        kept = kept[suppress(boxes[kept], probs[kept], index[kept], 0.7)]
        boxes, index, probs = square(moved(boxes[kept], offsets[kept], 1)), index[kept], probs[kept]
        best = torch.zeros_like(index, dtype=torch.bool)
        best[suppress(boxes, probs, index, same_face)] = True
        add_faces(mtcnn.onet, table, boxes[best], index[best], thresholds[2], faces)
        found = torch.tensor([bool(of_photo) for of_photo in faces], device=index.device)
        rest = ~best & ~found[index]  # where no best candidate was a face
        add_faces(mtcnn.onet, table, boxes[rest], index[rest], thresholds[2], faces)
    return [
        [(tuple(x * factor for x, factor in zip(box, zoom)), prob)
         for box, prob in sorted(of_photo, key=lambda face: -area(face[0]))]
        for of_photo in faces
    ]  # fmt: skip


def pyramid(size, min_face_size=PACKAGE_FACE):
    """The package's scales for its first network, which sees faces of 12 pixels, that are not for
    faces below min_face_size.
    """
    scales, scale = [], 12 / min(min_face_size, PACKAGE_FACE)
    while min(size) * scale >= 12:
        if 12 / scale > 0.99 * min_face_size:
            scales.append(scale)
        scale *= FACTOR
    return scales


def propose(network, table, scales, threshold):
    """Where the first network sees faces: boxes (K, 4) and the index of each one's image (K,)."""
    count, height, width = table.shape[0], table.shape[1] - 1, table.shape[2] - 1
    images = torch.arange(count, device=table.device)
    whole = images.new_tensor([0, 0, width, height]).expand(count, 4)
    found = []
    for scale in scales:
        size = int(height * scale + 1), int(width * scale + 1)
        offsets, probs = network(area_resize(table, images, whole, *size))
        probs = probs[:, 1]
        index, row, column = (probs >= threshold).nonzero(as_tuple=True)
        corner = torch.stack([column, row], dim=1) * 2 + 1
        boxes = (torch.cat([corner, corner + 11], dim=1) / scale).floor()
        scores, offsets = probs[index, row, column], offsets[index, :, row, column]
        kept = suppress(boxes, scores, index, 0.5)
        found.append([x[kept] for x in (boxes, offsets, scores, index)])
    boxes, offsets, scores, index = map(torch.cat, zip(*found))
    kept = suppress(boxes, scores, index, 0.7)
    return square(moved(boxes[kept], offsets[kept])), index[kept]


def refine(network, table, boxes, index, side):
    """Run a later network on the pixels in boxes. Returns its offsets (K, 4) and probs (K,)."""
    height, width = table.shape[1] - 1, table.shape[2] - 1
    # As in the package: corners count from 1, and what leaves the photo is cut off.
    corners = boxes.trunc().long()
    limit = corners.new_tensor([width, height])
    low = (corners[:, :2].clamp(min=1) - 1).minimum(limit - 1)
    high = corners[:, 2:].minimum(limit).maximum(low + 1)
    faces = area_resize(table, index, torch.cat([low, high], dim=1), side, side)
    outputs = network(faces)  # offsets, the last network's landmarks, probabilities
    return outputs[0], outputs[-1][:, 1]


def add_faces(network, table, boxes, index, threshold, faces):
    """Add the faces that the last network sees in boxes to its image's list, (box, prob) each."""
    if not len(boxes):
        return
    offsets, probs = refine(network, table, boxes, index, 48)
    kept = (probs > threshold).nonzero()[:, 0]
    kept = kept[probs[kept].argsort(descending=True)]
    boxes = moved(boxes[kept], offsets[kept], 1)
    for box, prob, number in zip(boxes.tolist(), probs[kept].tolist(), index[kept].tolist()):
        if all(overlap(box, other) <= 0.7 for other, _ in faces[number]):
            faces[number].append((box, prob))


def sum_table(images, device):
    """uint8 array (N, H, W, 3) -> int32 tensor (N, H + 1, W + 1, 3) on device: the sum of all
    pixels above and to the left, modulo 2^32, which differences of sums undo.
    """
    if device.type == "cpu":  # OpenCV's is 30 times as fast there as PyTorch's
        count, height, width, _ = images.shape
        tables = np.empty((count, height + 1, width + 1, 3), np.int32)
        for image, table in zip(images, tables):
            cv2.integral(image, sum=table)
        return torch.from_numpy(tables)
    table = torch.from_numpy(images).to(device).cumsum(1, dtype=torch.int32)
    return F.pad(table.cumsum(2, dtype=torch.int32), (0, 0, 1, 0, 1, 0))


def area_resize(table, index, boxes, height, width):
    """Cut out boxes and resize them by averaging, as adaptive_avg_pool2d would.

    table: from sum_table; index: int64 (K,), of each box's image; boxes: int64 (K, 4), x0, y0,
    x1, y1, inside the image. Returns float32 (K, 3, height, width), as MTCNN's networks want it.
    """
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    steps = torch.arange(width, device=table.device)
    left = x0 + steps * (x1 - x0) // width
    right = x0 + -((steps + 1) * (x0 - x1) // width)
    steps = torch.arange(height, device=table.device)
    top = y0 + steps * (y1 - y0) // height
    bottom = y0 + -((steps + 1) * (y0 - y1) // height)
    flat = table.flatten(0, 2)
    row = table.shape[2]
    first = index[:, None] * (table.shape[1] * row)
    top_, bottom_ = ((first + y * row)[:, :, None] for y in (top, bottom))
    left_, right_ = left[:, None], right[:, None]

    def corner(places):
        return flat.index_select(0, places.flatten())

    sums = corner(bottom_ + right_)
    sums -= corner(bottom_ + left_)
    sums -= corner(top_ + right_)
    sums += corner(top_ + left_)
    sums = sums.view(len(boxes), height, width, 3)
    count = ((bottom - top)[:, :, None] * (right - left)[:, None])[..., None]
    return (sums / count).sub_(127.5).mul_(0.0078125).permute(0, 3, 1, 2)


def suppress(boxes, scores, index, threshold):
    """Non-maximum suppression within each image: the indices of the boxes that are kept."""
    from torchvision.ops import batched_nms  # whose import takes a second

    return batched_nms(boxes, scores, index, threshold)


def square(boxes):
    """Boxes made square around their centres, float (K, 4)."""
    side = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True)
    corner = (boxes[:, :2] + boxes[:, 2:] - side) / 2
    return torch.cat([corner, corner + side], dim=1)


def moved(boxes, offsets, extra=0):
    """Boxes moved by a network's offsets, which are in widths and heights of the box."""
    side = boxes[:, 2:] - boxes[:, :2] + extra
    return boxes + offsets * side.repeat(1, 2)


def overlap(box, other):
    """The share of the smaller box, counted in whole pixels, that both cover."""
    corners = (*map(max, box[:2], other[:2]), *map(min, box[2:], other[2:]))
    return area(corners, 1) / min(area(box, 1), area(other, 1))


def area(box, extra=0):
    """The area of a box x0, y0, x1, y1; 0 for one whose corners are swapped."""
    x0, y0, x1, y1 = box
    return max(0, x1 - x0 + extra) * max(0, y1 - y0 + extra)


def pad_channels(mtcnn, channels=16):
    """Pad the networks' first layers with zeros: PyTorch is many times faster with 16 channels."""
    for network in (mtcnn.pnet, mtcnn.rnet, mtcnn.onet):
        more = -len(network.prelu1.weight) % channels
        for layer, name, amounts in (  # as F.pad takes them
            (network.conv1, "weight", (0, 0, 0, 0, 0, 0, 0, more)),
            (network.conv1, "bias", (0, more)),
            (network.prelu1, "weight", (0, more)),
            (network.conv2, "weight", (0, 0, 0, 0, 0, more)),
        ):
            setattr(layer, name, torch.nn.Parameter(F.pad(getattr(layer, name).data, amounts)))
    return mtcnn
