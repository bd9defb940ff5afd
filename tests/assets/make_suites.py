"""Makes the suites pruned, rounded and gemm_grid: ``python make_suites.py``."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

SUITES = Path(__file__).parents[2] / "operators" / "suites"
SEED = 2020
LAYERS = {  # in_channels, out_channels, size, kernel, stride
    "VGG": [(64, 64, 224, 3, 1), (64, 128, 112, 3, 1), (128, 128, 112, 3, 1), (128, 256, 56, 3, 1),
            (256, 256, 56, 3, 1), (256, 512, 28, 3, 1), (512, 512, 28, 3, 1), (512, 512, 14, 3, 1)],
    "RES": [(64, 64, 56, 3, 1), (64, 256, 56, 1, 1), (128, 128, 56, 3, 2), (128, 128, 28, 3, 1),
            (512, 128, 28, 1, 1), (256, 256, 14, 3, 1), (1024, 256, 14, 1, 1), (512, 512, 7, 3, 1)],
    "MOB": [(16, 96, 112, 1, 1), (24, 144, 56, 1, 1), (144, 24, 56, 1, 1), (32, 192, 28, 1, 1),
            (192, 32, 28, 1, 1), (64, 384, 14, 1, 1), (384, 96, 14, 1, 1), (160, 960, 7, 1, 1)],
}  # fmt: skip
SQUARES = (64, 100, 128, 192, 256, 384, 512, 768, 997, 1000, 1024, 1536, 2048)
OBLONGS = ((64, 1024, 1024), (1024, 64, 1024), (1024, 1024, 64), (128, 3072, 768),
           (3072, 128, 768), (4096, 32, 512), (32, 4096, 512))  # fmt: skip


def layer(name: str, fields: tuple[int, ...], channels: tuple[int, int]) -> dict[str, Any]:
    _, _, size, kernel, stride = fields
    return {
        "name": name, "in_channels": channels[0], "height": size, "width": size,
        "out_channels": channels[1], "kernel": kernel, "stride": stride, "padding": kernel // 2,
    }  # fmt: skip


def suites() -> dict[str, dict[str, Any]]:
    """The files' contents, by suite."""
    rng = random.Random(SEED)
    pruned, rounded = [], []
    for network, layers in LAYERS.items():
        for number, fields in enumerate(layers, 1):
            kept = [round(c * rng.uniform(0.4, 0.9)) | 1 for c in fields[:2]]
            whole = [-(-c // 16) * 16 for c in kept]
            pruned.append(layer(f"{network}{number}", fields, (kept[0], kept[1])))
            rounded.append(layer(f"{network}{number}", fields, (whole[0], whole[1])))
    grid = [{"name": f"S{n}", "m": n, "n": n, "k": n} for n in SQUARES]
    grid += [{"name": f"R{m}x{n}x{k}", "m": m, "n": n, "k": k} for m, n, k in OBLONGS]
    about = (
        "Layers of VGG-16, ResNet-50 and MobileNet-v2 (1x1 only) after structured pruning, "
        f"float32: 40 to 90 % of the channels kept, at random with seed {SEED}, made odd"
    )
    return {
        "pruned": {"about": f"{about}.", "cases": {"conv2d": pruned}},
        "rounded": {
            "about": "The round neighbours of the suite pruned: channels rounded up to 16.",
            "cases": {"conv2d": rounded},
        },
        "gemm_grid": {"about": "Square and oblong products, float32.", "cases": {"gemm": grid}},
    }


def text(content: dict[str, Any]) -> str:
    """A suite as a file: one case a line."""
    families = []
    for family, cases in content["cases"].items():
        rows = ",\n".join(f"   {json.dumps(case)}" for case in cases)
        families.append(f'  "{family}": [\n{rows}\n  ]')
    about = json.dumps(content["about"])
    return f'{{\n "about": {about},\n "cases": {{\n' + ",\n".join(families) + "\n }\n}\n"


if __name__ == "__main__":
    for name, content in suites().items():
        (SUITES / f"{name}.json").write_text(text(content))
