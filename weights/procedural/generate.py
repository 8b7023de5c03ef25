# SPDX-License-Identifier: MPL-2.0
"""Labelled pictures from seeds: what the built-in weights are trained on.

A picture is a ground (a pattern seen flat, in perspective or about a point), things lying on it,
and a medium that it is painted in, in the colours of a palette, under a light, through a lens:
`grounds.py`, `shapes.py`, `media.py`, on the tools of `fields.py`. A class fixes the kinds and
roughly the parameters; a picture draws the rest. Labels are the class, the kinds, and every
parameter that can be seen in the picture.

`pictures(seed, index, n, size, device)` makes the batch `index` of the endless sequence `seed`:
always the same on the same kind of device. All work is done on whole batches of tensors.

    python generate.py --seed 1 --out sheet.png      # look at some
"""

import argparse
import functools
import math
import time
from dataclasses import dataclass

import torch

from fields import TILE, Dice, blur, noise, oklch_to_rgb, pixels, repeat, shade, through_palette
from grounds import PATTERNS, VIEWS, look
from media import MEDIA
from shapes import FILLS, SHAPES, place

VERSION = 2  # of the recipe: counts up when the same seed gives other pictures
CLASSES = 600
CLASS_SEED = 20150826  # what the classes are is part of the recipe
SCHEMES = ("analogous", "complementary", "triad", "natural", "single", "grey")
# Hues of nature in turns of OKLab: sky, water, foliage, grass, sand, earth, skin, dusk.
NATURAL = (0.68, 0.62, 0.39, 0.33, 0.22, 0.16, 0.14, 0.93)

KINDS = {
    "ground": tuple(PATTERNS),
    "view": VIEWS,
    "shape": ("none", *SHAPES),
    "fill": FILLS,
    "medium": tuple(MEDIA),
    "scheme": SCHEMES,
}
ODDS = {
    "view": (6, 2, 1),
    "shape": (9, *([1] * len(SHAPES))),
    "medium": (5, 6, 1.5, 1.5, 3, 1.5, 1.5, 1, 1, 1.5, 0.7),
    "scheme": (3, 3, 1.5, 4, 1, 1),
}

# Name: (scale, low, high, spread of a picture about its class, in units of the whole range).
PARAMETERS = {
    "angle": ("axis", 0, math.pi, 0.04),
    "period": ("log", 5, 34, 0.08),
    "stretch": ("log", 1, 3.5, 0.05),
    "roughness": ("linear", 0.7, 2.0, 0.05),
    "warp": ("linear", 0, 1, 0.06),
    "duty": ("linear", 0.15, 0.85, 0.04),
    "hardness": ("linear", 0, 1, 0.1),
    "relief": ("linear", 0, 1, 0.1),
    "hue": ("turn", 0, 1, 0.05),
    "chroma": ("linear", 0.03, 0.2, 0.1),
    "lightness": ("linear", 0.38, 0.78, 0.12),
    "contrast": ("linear", 0.25, 0.85, 0.1),
    "light": ("turn", 0, 2 * math.pi, 1),
    "size": ("log", 4, 28, 0.08),
    "density": ("linear", 0.15, 1.0, 0.08),
    "elongation": ("log", 1, 2.6, 0.05),
    "tilt": ("axis", 0, math.pi, 0.04),
    "spread": ("linear", 0, 1, 0.05),
    "outline": ("linear", 0, 1, 0.05),
    "shading": ("linear", 0, 1, 0.06),
    "stroke_angle": ("axis", 0, math.pi, 0.05),
    "stroke_length": ("log", 1, 3.2, 0.05),
    "stroke_width": ("log", 3, 11, 0.08),
    "flow": ("linear", 0, 1, 0.06),
    "follow": ("linear", 0, 1, 0.05),
    "bend": ("linear", 0, 1, 0.05),
    "wander": ("linear", 0, 1.2, 0.06),
    "wash": ("linear", 0, 1, 0.08),
    "blur": ("linear", 0.45, 1.4, 1),
    "grain": ("linear", 0, 1, 1),
}

# Where a parameter shows: a kind and the values of it that show it (none given: all but "none").
_PERIODIC = tuple(name for name in PATTERNS if name not in ("plain", "cloud"))
_STROKES = ("oil", "knife", "streaks")
SHOWS = {
    "angle": ("view", ("flat",)),
    "period": ("ground", _PERIODIC),
    "stretch": ("view", ("flat",)),
    "roughness": ("ground", ("cloud", "marble", "ridges", "terraces", "skyline")),
    "duty": (
        "ground",
        ("marble", "stripes", "cracks", "dots", "labyrinth", "weave", "branches", "julia"),
    ),
    "warp": ("view", ("flat",)),
    "hardness": ("ground", ("stripes", "checks", "bricks", "cells", "cracks", "dots", "labyrinth")),
    "size": ("shape", ()),
    "density": ("shape", ()),
    "elongation": ("shape", ()),
    "tilt": (
        "shape",
        ("box", "rod", "leaf", "crescent", "arc", "glyph", "tree", "polygon", "pillow"),
    ),
    "spread": ("shape", ("box", "rod", "leaf", "crescent", "arc", "glyph", "tree")),
    "outline": ("shape", ()),
    "shading": ("shape", ()),
    "stroke_angle": ("medium", (*_STROKES, "hatching")),
    "stroke_length": ("medium", ("oil", "knife")),
    "stroke_width": ("medium", (*_STROKES, "points", "hatching", "mosaic", "halftone")),
    "flow": ("medium", _STROKES),
    "follow": ("medium", ("oil", "knife")),
    "bend": ("medium", ("oil", "knife")),
    "wander": ("medium", (*_STROKES, "points")),
    "wash": ("medium", ("hatching", "pen", "watercolour")),
}


@dataclass
class Labels:
    """`kinds` [n, 1 + len(KINDS)]: the class and the kinds, as numbers. `values` [n, v]: the
    parameters in -1..1, and angles as cosine and sine, the columns being VALUES; `shown` [n, v]:
    whether the picture shows them."""

    kinds: torch.Tensor
    values: torch.Tensor
    shown: torch.Tensor

    @staticmethod
    def cat(parts):
        columns = zip(*((part.kinds, part.values, part.shown) for part in parts))
        return Labels(*(torch.cat(column) for column in columns))

    def __getitem__(self, rows):
        return Labels(self.kinds[rows], self.values[rows], self.shown[rows])


VALUES = tuple(
    column
    for name, (scale, *_) in PARAMETERS.items()
    for column in ((f"{name}.cos", f"{name}.sin") if scale in ("axis", "turn") else (name,))
)


@functools.cache
def class_table():
    """All classes: kinds [CLASSES, len(KINDS)], parameters [CLASSES, len(PARAMETERS)] in 0..1."""
    dice = Dice(CLASS_SEED, "cpu")
    columns = []
    for name, values in KINDS.items():
        odds = torch.tensor(ODDS.get(name, [1.0] * len(values)), dtype=torch.float32)
        columns.append(torch.multinomial(odds, CLASSES, True, generator=dice.generator))
    return torch.stack(columns, 1), dice.uniform(CLASSES, len(PARAMETERS))


def draw(dice, n):
    """Parameters of n pictures, each [n, 1, 1], kinds among them, and their labels."""
    kinds, table = (t.to(dice.device) for t in class_table())
    which = dice.integers(CLASSES, n)
    kinds, position = kinds[which], table[which]
    spread = torch.tensor([row[3] for row in PARAMETERS.values()], device=dice.device)
    moved = position + spread * dice.normal(n, len(PARAMETERS))
    moved = torch.where(spread == 1, dice.uniform(n, len(PARAMETERS)), moved)
    p, values, shown = {}, [], []
    for k, name in enumerate(KINDS):
        p[name] = kinds[:, k].view(n, 1, 1)
    for k, (name, (scale, low, high, _)) in enumerate(PARAMETERS.items()):
        t = moved[:, k]
        t = t - t.floor() if scale in ("axis", "turn") else 1 - ((t % 2) - 1).abs()
        p[name] = (low * (high / low) ** t if scale == "log" else low + (high - low) * t).view(
            n, 1, 1
        )
        turn = 2 * math.pi * t
        columns = [turn.cos(), turn.sin()] if scale in ("axis", "turn") else [2 * t - 1]
        values += columns
        shown += [visible(name, kinds)] * len(columns)
    labels = Labels(
        torch.cat([which[:, None], kinds], 1), torch.stack(values, 1), torch.stack(shown, 1)
    )
    return p, labels


def visible(name, kinds):
    if name not in SHOWS:
        return torch.ones(len(kinds), device=kinds.device)
    kind, values = SHOWS[name]
    column = kinds[:, tuple(KINDS).index(kind)]
    if not values:
        return (column > 0).float()
    wanted = torch.tensor([KINDS[kind].index(v) for v in values], device=kinds.device)
    return torch.isin(column, wanted).float()


def palettes(dice, p, colours=6):
    """Palettes [n, colours, 3], from dark to light; in the third of the classes with the strongest
    outlines, as in prints and cartoons, in any order."""
    n = p["hue"].shape[0]
    scheme, hue = p["scheme"].view(n, 1), p["hue"].view(n, 1)
    step = dice.integers(3, n, colours)
    near = hue + 0.06 * dice.normal(n, colours)
    nature = torch.tensor(NATURAL, device=dice.device)
    pair = nature[torch.stack([(hue[:, 0] * 7.99).long(), (hue[:, 0] * 61).long() % 8], 1)]
    natural = pair.gather(1, (step > 1).long()) + 0.02 * dice.normal(n, colours)
    hues = torch.where(scheme == 1, near + 0.5 * (step > 1), near)
    hues = torch.where(scheme == 2, near + step / 3, hues)
    hues = torch.where(scheme == 3, natural, hues)
    hues = torch.where(scheme == 4, hue + 0 * near, hues)
    strength = torch.where(scheme == 5, 0.05, torch.where(scheme == 3, 0.65, 1.0))
    chroma = p["chroma"].view(n, 1) * strength * (0.4 + dice.uniform(n, colours))
    ramp = torch.linspace(-0.5, 0.5, colours, device=dice.device)
    light = p["lightness"].view(n, 1) + p["contrast"].view(n, 1) * (
        ramp + 0.08 * dice.normal(n, colours)
    )
    mixed = light.gather(1, dice.uniform(n, colours).argsort(1))
    light = torch.where(p["outline"].view(n, 1) > 0.67, mixed, light)
    return oklch_to_rgb(light.clamp(0.06, 0.97), chroma, hues)


def by_kind(p, name):
    """The pictures of every kind that occurs: (the kind's number, rows, their parameters)."""
    column = p[name].view(-1)
    for kind in range(len(KINDS[name])):
        rows = (column == kind).nonzero()[:, 0]
        if len(rows):
            yield kind, rows, {key: value[rows] for key, value in p.items()}


def paint_grounds(dice, p, palette, size):
    """The grounds with their relief lit, under haze and sky where there is a horizon."""
    u, v, far = look(dice, p, size)
    tone, height = torch.zeros_like(u), torch.zeros_like(u)
    for kind, rows, some in by_kind(p, "ground"):
        pattern = tuple(PATTERNS.values())[kind]
        tone[rows], height[rows] = pattern(dice, some, u[rows], v[rows])
    picture = through_palette(palette, tone)
    depth = (p["relief"] * 0.5 * p["period"].clamp(max=12)) * (1 - far)
    picture = shade(picture, height * depth, p["light"], 0.5)
    x, y = pixels(size, dice.device)
    clouds = repeat(noise(dice, 1.3 + 0 * p["angle"], 2.0), x * TILE / size, y * 2 * TILE / size)
    sky = through_palette(palette, 0.75 + 0.35 * y / size + 0.08 * clouds)
    return picture + far[:, None] * (sky - picture)


def photograph(dice, p, picture):
    """What light and lens do: uneven light, tints, blur, noise."""
    n, _, size, _ = picture.shape
    x, y = pixels(size, dice.device)
    fall = (x * p["light"].cos() + y * p["light"].sin()) / size
    glow = repeat(noise(dice, 2.2 + 0 * p["angle"]), x * TILE / size / 1.4, y * TILE / size / 1.4)
    uneven = dice.uniform(2, n, 1, 1) ** 2
    gain = (1 - 0.6 * uneven[0] * fall + 0.12 * uneven[1] * glow)[:, None] * (
        0.85 + 0.3 * dice.uniform(n, 1, 1, 1)
    )
    picture = picture * gain * (1 + 0.05 * dice.normal(n, 3, 1, 1)) + 0.03 * dice.normal(n, 1, 1, 1)
    picture = blur(picture, p["blur"])
    grain = 0.04 * (p["grain"] - 0.4).clamp(min=0)[:, None] * dice.normal(n, 3, size, size)
    return (picture + grain).clamp(0, 1)


@torch.no_grad()
def pictures(seed, index, n, size, device):
    """Batch `index` of the sequence `seed`: pictures [n, 3, size, size], 0..1, and their Labels."""
    dice = Dice(seed * 1_000_003 + index, device)
    p, labels = draw(dice, n)
    palette = palettes(dice, p)
    picture = paint_grounds(dice, p, palette, size)
    for kind, rows, some in by_kind(p, "shape"):
        if kind > 0:
            shape = tuple(SHAPES.values())[kind - 1]
            placed, height = place(dice, some, shape, picture[rows], palette[rows])
            picture[rows] = shade(placed, height, some["light"], 0.8)
    for kind, rows, some in by_kind(p, "medium"):
        medium = tuple(MEDIA.values())[kind]
        picture[rows] = medium(dice, some, picture[rows].clamp(0, 1), palette[rows])
    return photograph(dice, p, picture), labels


def main():
    parser = argparse.ArgumentParser(description="Write a sheet of generated pictures, to look at.")
    parser.add_argument("--seed", type=int, default=1, help="sequence of pictures (default 1)")
    parser.add_argument("--index", type=int, default=0, help="batch of the sequence (default 0)")
    parser.add_argument(
        "--size", type=int, default=96, help="side of a picture in pixels (default 96)"
    )
    parser.add_argument("--rows", type=int, default=10, help="rows of the sheet (default 10)")
    parser.add_argument("--columns", type=int, default=16, help="columns of the sheet (default 16)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--out", default="sheet.png", help="file to write (default sheet.png)")
    options = parser.parse_args()
    if min(options.size, options.rows, options.columns) < 1 or options.size < 32:
        parser.error("a sheet has at least one row and column, and pictures of at least 32 pixels")
    from PIL import Image

    n = options.rows * options.columns
    start = time.time()
    images, _ = pictures(options.seed, options.index, n, options.size, options.device)
    images = (
        (images * 255 + 0.5)
        .byte()
        .cpu()
        .view(options.rows, options.columns, 3, options.size, options.size)
    )
    sheet = images.permute(0, 3, 1, 4, 2).reshape(options.rows * options.size, -1, 3)
    Image.fromarray(sheet.contiguous().numpy()).save(options.out)
    print(f"{options.out}: {n} pictures, {n / (time.time() - start):.0f} a second")


if __name__ == "__main__":
    main()
