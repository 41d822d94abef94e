"""Prints the sizes of the five images and of their distinct layers together: python deploy/image_sizes.py [TAG]"""

from __future__ import annotations

import json
import subprocess
import sys

STAGES = ("generator", "prep", "train", "inference", "api")


def layers(image: str) -> dict[tuple[str, str], int]:
    """Bytes of each layer of a local image, by what made it and when: two images share what has the same key."""
    command = ["docker", "history", "--no-trunc", "--human=false", "--format", "{{json .}}", image]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    return {(layer["CreatedAt"], layer["CreatedBy"]): int(layer["Size"]) for layer in found}


def main(tag: str) -> None:
    distinct: dict[tuple[str, str], int] = {}
    for stage in STAGES:
        own = layers(f"spearhead/{stage}:{tag}")
        distinct |= own
        print(f"{stage:<10} {sum(own.values()) / 1e6:8,.1f} MB")
    print(f"{'together':<10} {sum(distinct.values()) / 1e6:8,.1f} MB of distinct layers")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "local")
