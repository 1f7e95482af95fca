"""Draw the pictures that show derivatives: run the examples, keep few colours. ``python docs/draw_derivatives.py``."""

import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

import influence  # noqa: E402
import kernel  # noqa: E402
import saliency  # noqa: E402


def main() -> None:
    """Draw all three."""
    for example in (influence, kernel, saliency):
        path = HERE / "images" / f"{example.__name__}.png"
        example.main(str(path))
        Image.open(path).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
