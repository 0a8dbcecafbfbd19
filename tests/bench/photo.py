"""Makes the JPEG that the benchmarks send: `photo.py PNG JPEG`. Runs in the environment of requirements.txt."""

import sys
from pathlib import Path

from PIL import Image

SIDE = 512


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    image = Image.open(source).convert("RGB")
    side = min(image.size)
    image = image.crop((0, 0, side, side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, "JPEG", quality=90)


if __name__ == "__main__":
    main()
