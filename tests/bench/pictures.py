#!/usr/bin/env python3
"""From a JPEG to a model's input: our time over Pillow's, on one core, in one run.

    pictures.py [--rounds N] [--times N]

Both decode, resize the shorter side to 256, crop 224 by 224 and normalise. Pillow does it twice: with draft(), which
decodes at a smaller scale as we do, and without. Below 1.00 we are quicker.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "deploy"))

import pypi  # noqa: E402

SIZES = {"512x512": (512, 512), "1024x768": (1024, 768), "4000x3000": (4000, 3000)}
# Large pictures are decoded less often, so that each size gets about the same time.
SHARE = {"512x512": 1.0, "1024x768": 0.5, "4000x3000": 0.1}
RESIZED, CROPPED = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5, help="how often the two take turns")
    arguments.add_argument("--times", type=int, default=200, help="decodings of the smallest photo in a turn")
    arguments.add_argument("--pillow", nargs="+", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.pillow:
        for path in args.pillow:
            print(json.dumps(pillow_times(Path(path), times(path, args.times))))
        return 0
    compare(args.rounds, args.times)
    return 0


def compare(rounds: int, most: int) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    python = pypi.virtual_environment(Path(__file__).with_name("requirements-pictures.txt"))
    program, photos = our_program(), [str(path) for path in make_photos(python)]
    measured: dict[str, list[dict]] = {photo: [] for photo in photos}
    for _ in range(rounds):
        for photo in photos:
            ours = lines([program, "--json", "--times", str(times(photo, most)), photo])
            theirs = lines([str(python), __file__, "--times", str(most), "--pillow", photo])
            measured[photo].append({**next(ours), **next(theirs)})
    print("photo                 ours   draft()     whole   ours/draft()  ours/whole   base64 in JSON")
    for photo, taken in measured.items():
        ours, draft, whole, read = (
            statistics.median(each[key] for each in taken) for key in ("decode_ms", "draft_ms", "whole_ms", "json_ms")
        )
        to_draft = statistics.median(each["decode_ms"] / each["draft_ms"] for each in taken)
        to_whole = statistics.median(each["decode_ms"] / each["whole_ms"] for each in taken)
        print(
            f"{Path(photo).stem:<17} {ours:6.2f} ms {draft:6.2f} ms {whole:6.2f} ms"
            f"           {to_draft:4.2f}        {to_whole:4.2f}        {read:6.3f} ms"
        )


def times(photo: str, most: int) -> int:
    return max(3, int(most * next(share for size, share in SHARE.items() if size in photo)))


def our_program() -> str:
    command = ["cargo", "bench", "--quiet", "--package", "inference-pod", "--bench", "decode", "--no-run"]
    built = subprocess.run([*command, "--message-format=json"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    artifacts = (json.loads(line) for line in built.stdout.splitlines())
    return next(
        artifact["executable"]
        for artifact in artifacts
        if artifact.get("executable") and artifact["target"]["name"] == "decode"
    )


def lines(command: list[str]) -> Iterable[dict]:
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return (json.loads(line) for line in ran.stdout.splitlines())


def make_photos(python: Path) -> list[Path]:
    """The free photos at each size, as JPEG of quality 90 with half the colours, which is what cameras write."""
    folder = pypi.cache_folder() / "bench-pictures"
    folder.mkdir(parents=True, exist_ok=True)
    script = (
        "import sys; from PIL import Image; source, target, width, height = sys.argv[1:];"
        "picture = Image.open(source).convert('RGB').resize((int(width), int(height)), Image.LANCZOS);"
        "picture.save(target, quality=90, subsampling='4:2:0')"
    )
    made = []
    for photo in ("coffee", "cat"):
        for size, (width, height) in SIZES.items():
            target = folder / f"{photo}-{size}.jpg"
            if not target.exists():
                source = ROOT / "deploy" / "samples" / "photos" / f"{photo}.png"
                pypi.run([str(python), "-c", script, str(source), str(target), str(width), str(height)], "resizing")
            made.append(target)
    return made


def pillow_times(path: Path, count: int) -> dict[str, float]:
    """Runs in the environment that has Pillow."""
    import io

    import numpy
    from PIL import Image

    scale = (1 / (255 * numpy.array(STD))).astype(numpy.float32)[:, None, None]
    shift = (-numpy.array(MEAN) / numpy.array(STD)).astype(numpy.float32)[:, None, None]
    data = path.read_bytes()

    def decoded(draft: bool) -> numpy.ndarray:
        picture = Image.open(io.BytesIO(data))
        width, height = picture.size
        longer = RESIZED * max(width, height) // min(width, height)
        wanted = (RESIZED, longer) if width <= height else (longer, RESIZED)
        if draft:
            picture.draft("RGB", wanted)
        picture = picture.convert("RGB").resize(wanted, Image.BILINEAR, reducing_gap=2.0)
        left, top = (wanted[0] - CROPPED) // 2, (wanted[1] - CROPPED) // 2
        pixels = numpy.asarray(picture.crop((left, top, left + CROPPED, top + CROPPED)))
        sample = pixels.transpose(2, 0, 1).astype(numpy.float32, order="C")
        sample *= scale
        sample += shift
        return sample

    def median(draft: bool) -> float:
        decoded(draft)
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            decoded(draft)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken) * 1e3

    return {"draft_ms": median(True), "whole_ms": median(False)}


if __name__ == "__main__":
    sys.exit(main())
