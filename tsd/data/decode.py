"""Pictures as training sees them."""

import io

import numpy as np
from PIL import Image


def decode(content: bytes) -> np.ndarray:
    """A picture's pixels: BGR uint8 (H, W, 3).

    Annotations are in the stored pixel order: an EXIF rotation is not applied. More than 8 bits a channel are refused:
    what their largest value means is not in the file, and of the 12 bits that cameras and scanners put into 16 the
    usual conversion leaves a picture that is nearly black.

    Raises:
        ValueError: what the picture is: corrupt, or of more than 8 bits a channel.
    """
    import cv2

    data = np.frombuffer(content, dtype=np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        image = None  # more pixels than OpenCV takes
    if image is None or _is_truncated(content):
        raise ValueError("is corrupt: it can't be decoded")
    if image.dtype != np.uint8:
        raise ValueError(f"has {image.dtype.itemsize * 8} bits a channel; expected 8: save it anew, scaled to 0 to 255")
    return image


def _is_truncated(content: bytes) -> bool:
    """Whether a JPEG ends too early: OpenCV fills the rest with grey and says nothing.

    A JPEG ends with its end-of-image marker; where that is not in the last kilobyte, Pillow's decoder decides.
    """
    if not content.startswith(b"\xff\xd8") or b"\xff\xd9" in content[-1024:]:
        return False
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
    except (OSError, SyntaxError):
        return True
    return False
