# SPDX-License-Identifier: MPL-2.0
"""Things that lie on a ground: many copies of a shape in layers, that hide each other, cast
shadows, have outlines, fillings and a bulge that light falls on.

A shape is a function (p, a, b) -> distance: a and b are coordinates in radii of the thing, turned
with it; the distance, in radii, is negative inside. Distances need not be exact, only smooth.
"""

import math

import torch

from fields import Lattice, blur, pixels, rotate, sample, threshold, through_palette, triangle

SIDE = 16  # cells of a layer before it repeats


def disc(p, a, b):
    return (a * a + b * b).sqrt() - 1


def box(p, a, b):
    return torch.maximum(a.abs(), b.abs() * 1.3) - 0.8


def pillow(p, a, b):
    """A square with round corners."""
    return (a**4 + b**4 + 1e-6) ** 0.25 - 0.85


def polygon(p, a, b):
    sides = (3 + 3.99 * p["duty"]).floor()
    sector = 2 * math.pi / sides
    angle = torch.atan2(b, a)
    angle = angle - sector * (angle / sector).round()
    return (a * a + b * b).sqrt() * torch.cos(angle) - torch.cos(sector / 2)


def star(p, a, b):
    points = (4 + 5 * p["duty"]).floor()
    angle = torch.atan2(b, a) * points / (2 * math.pi)
    return (a * a + b * b).sqrt() - 1 + 0.65 * triangle(angle)


def flower(p, a, b):
    petals = (3 + 6 * p["duty"]).floor()
    return (a * a + b * b).sqrt() - 0.68 - 0.3 * torch.cos(torch.atan2(b, a) * petals)


def ring(p, a, b):
    return ((a * a + b * b).sqrt() - 0.75).abs() - 0.08 - 0.2 * p["duty"]


def rod(p, a, b):
    return ((a - a.clamp(-0.85, 0.85)) ** 2 + b * b).sqrt() - 0.08 - 0.12 * p["duty"]


def leaf(p, a, b):
    """What two discs have in common."""
    shift = 0.4 + 0.5 * p["duty"]
    return (a * a + (b.abs() + shift) ** 2).sqrt() - (1 + shift**2).sqrt()


def crescent(p, a, b):
    bite = 0.85 - ((a - 0.35 - 0.3 * p["duty"]) ** 2 + b * b).sqrt()
    return torch.maximum((a * a + b * b).sqrt() - 1, bite)


def cross(p, a, b):
    width = 0.12 + 0.25 * p["duty"]
    small, large = torch.minimum(a.abs(), b.abs()), torch.maximum(a.abs(), b.abs())
    return torch.maximum(large - 0.95, small - width)


def arc(p, a, b):
    """A bent line."""
    bent = b - (0.3 + 0.6 * p["duty"]) * (a * a - 0.4)
    return ((a - a.clamp(-0.85, 0.85)) ** 2 + bent * bent).sqrt() - 0.09


def glyph(p, a, b):
    """A sign of three strokes, other ones for every class."""
    distance = torch.full_like(a, 9.0)
    for k in range(3):
        turn = (k + 1) * 37.0 * p["duty"] + k
        x, y = rotate(a - 0.35 * torch.cos(turn * 1.7), b - 0.35 * torch.sin(turn * 2.3), turn)
        stroke = ((x - x.clamp(-0.55, 0.55)) ** 2 + y * y).sqrt() - 0.13
        distance = torch.minimum(distance, stroke)
    return distance


def tree(p, a, b):
    """A trunk and a crown of lobes."""
    trunk = torch.maximum(a.abs() - 0.12, (b - 0.5).abs() - 0.5)
    angle = torch.atan2(b + 0.3, a)
    crown = (
        (a * a + (b + 0.3) ** 2).sqrt()
        - 0.58
        - 0.07 * torch.cos(angle * (5 + (4 * p["duty"]).floor()))
    )
    return torch.minimum(trunk, crown)


SHAPES = {
    shape.__name__: shape
    for shape in (
        disc,
        box,
        pillow,
        polygon,
        star,
        flower,
        ring,
        rod,
        leaf,
        crescent,
        cross,
        arc,
        glyph,
        tree,
    )
}
FILLS = ("flat", "rings", "bands", "ramp")


def layer(dice, p, shape, size, scale):
    """One layer of things of one shape: distance to the edge of the topmost (pixels, negative
    inside), its random number, and the position in it (radii)."""
    n = p["size"].shape[0]
    x, y = pixels(size, dice.device)
    radius = p["size"] * scale
    cell = radius * 1.9
    shift = dice.uniform(2, n, 1, 1) * 8
    u, v = x / cell + shift[0], y / cell + shift[1]
    lattice = Lattice(dice.uniform(n, SIDE * SIDE, 6), u, v)
    best = torch.full_like(u, -1.0)
    result = [
        torch.full_like(u, 1e3),
        torch.zeros_like(u),
        torch.zeros_like(u),
        torch.zeros_like(u),
    ]
    for _, (jx, jy, order, turn, grow, name), du, dv in lattice.neighbours():
        one = radius * (0.55 + 0.45 * grow)
        a, b = (du - 0.15 - 0.7 * jx) * cell / one, (dv - 0.15 - 0.7 * jy) * cell / one
        angle = p["tilt"] + (turn - 0.5) * p["spread"] * math.pi
        a, b = rotate(a, b, angle)
        a, b = a / p["elongation"].sqrt().clamp(max=1.25), b * p["elongation"].sqrt()
        distance = shape(p, a, b) * one
        seen = (distance < 0.8) & (order > best) & (torch.frac(order * 7.31) < p["density"])
        best = torch.where(seen, order, best)
        found = (distance, name, a, b)
        result = [torch.where(seen, new, old) for new, old in zip(found, result)]
    return result


def fill(p, tone, a, b):
    """The tone within a thing, by its class's kind of filling."""
    rings = tone + 0.35 * threshold(torch.sin(9 * (a * a + b * b).sqrt()), 0.6)
    bands = tone + 0.35 * threshold(torch.sin(9 * b), 0.6)
    ramp = tone + 0.3 * (a * torch.cos(p["light"]) + b * torch.sin(p["light"]))
    kind = p["fill"]
    tone = torch.where(
        kind == 1, rings, torch.where(kind == 2, bands, torch.where(kind == 3, ramp, tone))
    )
    return 1 - (1 - tone.abs()).abs()  # folded back into 0..1


def shadow(picture, p, cover):
    """Darken what lies on the far side of things, as seen from the light."""
    x, y = pixels(picture.shape[-1], picture.device)
    reach = 0.35 * p["size"] * p["shading"]
    dark = sample(
        cover[:, None], x + reach * torch.cos(p["light"]), y + reach * torch.sin(p["light"])
    )
    dark = blur(dark, 0.5 + 0.08 * p["size"])
    return picture * (1 - 0.55 * p["shading"][:, None] * dark)


def place(dice, p, shape, picture, palette):
    """Lay two layers of a shape over a picture, the farther one smaller. Returns the picture and
    the relief of the things in pixels."""
    height = torch.zeros_like(picture[:, 0])
    for scale in (0.7, 1.2):
        distance, name, a, b = layer(dice, p, shape, picture.shape[-1], scale)
        cover = threshold(-distance, 1.2)
        tone = fill(p, name, a, b)
        rim = threshold(distance + 0.9 + 1.6 * p["outline"], 1.0) * (p["outline"] > 0.35)
        colour = through_palette(palette, tone) * (1 - 0.85 * rim[:, None])
        depth = (-distance / (p["size"] * scale)).clamp(0, 1)
        bulge = (1 - (1 - depth) ** 2).clamp(min=0).sqrt() * p["size"] * scale * p["shading"]
        picture = shadow(picture, p, cover)
        picture = picture + cover[:, None] * (colour - picture)
        height = height + (cover > 0.5) * (bulge - height)
    return picture, height
