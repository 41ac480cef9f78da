"""How bright and how sharp a photo is."""

import cv2


def brightness(image):
    """The mean grey of a photo, uint8 RGB array (H, W, 3), from 0 (black) to 255 (white)."""
    return float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())


def sharpness(image):
    """The variance of the Laplacian of a photo, uint8 RGB array (H, W, 3), in squared grey levels.

    0 is a plain surface, and what is out of focus or moved has less than the same photo in focus.
    Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy: a comparative study".
    It compares photos of one size only: it depends on the pixels.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())
