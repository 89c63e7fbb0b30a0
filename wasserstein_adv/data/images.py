"""Images as files. Pillow is imported inside the functions, as the library does not require it."""

import io

import numpy as np
from jaxtyping import UInt8

from wasserstein_adv.data.files import File, read_bytes
from wasserstein_adv.errors import InputError

# Pillow converts these to 8-bit RGB; in the others, of 16 and 32 bits, it would cut values off.
_MODES = ("L", "LA", "P", "RGB", "RGBA", "CMYK")


def read_rgb(file: File, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Read a JPEG or PNG file.

    Args:
        file: the file; a grey image becomes one with three equal channels, transparency is dropped.
        height: the image's height in pixels.
        width: its width in pixels.

    Returns:
        The image, uint8 (height, width, 3).

    Raises:
        InputError: the file cannot be read, is damaged or no such file, or has another size.
    """
    from PIL import Image

    content = read_bytes(file)
    try:
        image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
    except Exception as error:  # a web page, a cut header: Pillow has a kind of error for each
        raise InputError(f"{file}: not a JPEG or PNG image") from error
    if image.size != (width, height):
        found = "×".join(map(str, reversed(image.size)))
        raise InputError(f"{file}: the image is {found}, expected {height}×{width}")
    if image.mode not in _MODES:
        raise InputError(f"{file}: the image has mode {image.mode}, expected 8 bits a channel")
    try:
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise InputError(f"{file}: damaged image ({error})") from error


def encode_png(image: UInt8[np.ndarray, "h w c"]) -> io.BytesIO:
    """Encode an image losslessly.

    Args:
        image: of one channel or of three.

    Returns:
        The bytes of a PNG file, to be read from the start.
    """
    from PIL import Image

    buffer = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    buffer.seek(0)
    return buffer


def decode_png(content: bytes, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "h w c"]:
    """Decode what `encode_png` encoded.

    Args:
        content: the bytes of a PNG file.
        shape: the image's shape.

    Returns:
        The image.

    Raises:
        ValueError, OSError, SyntaxError: it is no PNG file, or holds another shape.
    """
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content), formats=("PNG",))).reshape(shape)
