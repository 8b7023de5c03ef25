# SPDX-License-Identifier: MPL-2.0
"""Surfaces: the patterns that fill a picture from edge to edge, and the ways of looking at one.

A pattern is a function (dice, p, u, v) -> (tone, height): u and v are fields of coordinates, in
periods of the pattern; `tone`, 0..1, goes through the picture's palette; `height`, about 0..1, is
the relief that light falls on. `p` holds the images' parameters, each [n, 1, 1].
"""

import math

import torch

from fields import TILE, Lattice, noise, pixels, repeat, rotate, threshold, triangle

SIDE = 24  # cells of a lattice before it repeats


def softness(p, per_period=1.0):
    """Width of an edge in periods: a pixel and a half where hard, most of a period where soft."""
    hard = 1.5 * per_period / p["period"]
    return hard + (1 - p["hardness"]) ** 2 * (0.8 - hard).clamp(min=0)


def plain(dice, p, u, v):
    tile = noise(dice, torch.full_like(p["period"], 2.2))
    tone = (
        0.5 + v * p["period"] / 120 + 0.05 * repeat(tile, u * p["period"] / 2, v * p["period"] / 2)
    )
    return tone, 0 * tone


def cloud(dice, p, u, v):
    tile = noise(dice, p["roughness"], p["stretch"], 0 * p["angle"])
    tone = 0.5 + 0.24 * repeat(tile, u * p["period"], v * p["period"])
    return tone, tone * 3


def marble(dice, p, u, v):
    """Waves pushed about by noise (Perlin 1985)."""
    field = repeat(noise(dice, 0.6 + p["roughness"]), u * 10, v * 10)
    tone = triangle(u + p["warp"] * 1.5 * field) ** (0.5 + 2 * p["duty"])
    return tone, tone


def stripes(dice, p, u, v):
    tone = threshold(triangle(u) - p["duty"], softness(p, 2))
    second = triangle(u * 0.5 + 0.25) > p["duty"]
    return tone * (0.6 + 0.4 * second), tone


def checks(dice, p, u, v):
    soft = softness(p, 2)
    a, b = threshold(triangle(u) - 0.5, soft), threshold(triangle(v) - 0.5, soft)
    tone = a + b - 2 * a * b
    return 0.15 + 0.7 * tone, 0.3 * tone


def bricks(dice, p, u, v):
    row = (v * 2).floor()
    u = u + row * (0.5 * (p["duty"] > 0.4)) + (p["duty"] > 0.65) * torch.sin(row * 12.9)
    table = dice.uniform(u.shape[0], SIDE * SIDE, 1)
    lattice = Lattice(table, u, v * 2)
    (shade,) = lattice.look_up(lattice.index(lattice.column, lattice.row))
    inside = torch.minimum(triangle(u) / 2, triangle(v * 2) / 4)
    brick = threshold(inside - 0.06, softness(p).clamp(max=0.15))
    return brick * (0.35 + 0.6 * shade), brick


def weave(dice, p, u, v):
    """Threads that go over and under each other."""
    over = (u.floor() + v.floor()) % 2 == 0
    a, b = triangle(u), triangle(v)
    across, along = torch.where(over, a, b), torch.where(over, b, a)
    height = (0.3 + 0.7 * along) * (across - 0.5 * p["duty"]).clamp(min=0).sqrt()
    tone = torch.where(over, 0.45 + 0.5 * height, 0.9 * height - 0.1)
    return tone, 2 * height


def nearest_points(dice, p, u, v):
    """Distances to the two nearest of scattered points, and a random number of the nearest."""
    n = u.shape[0]
    lattice = Lattice(dice.uniform(n, SIDE * SIDE, 3), u, v)
    first = torch.full_like(u, 9.0)
    second, name = first.clone(), first.clone()
    for _, (jx, jy, cell), du, dv in lattice.neighbours():
        distance = ((du - jx) ** 2 + ((dv - jy) * p["stretch"].clamp(max=1.8)) ** 2).sqrt()
        closer = distance < first
        second = torch.where(closer, first, torch.minimum(second, distance))
        name = torch.where(closer, cell, name)
        first = torch.where(closer, distance, first)
    return first, second, name


def cells(dice, p, u, v):
    first, second, name = nearest_points(dice, p, u, v)
    edge = threshold(second - first - 0.08, 0.1 + softness(p) / 2)
    return name * (0.25 + 0.75 * edge), (1 - first**2) + edge


def cracks(dice, p, u, v):
    first, second, name = nearest_points(dice, p, u, v)
    crack = threshold(second - first - 0.12 * p["duty"], softness(p) * 0.4)
    return crack * (0.75 + 0.2 * name), crack


def bubbles(dice, p, u, v):
    first, second, name = nearest_points(dice, p, u, v)
    return 0.9 - first * (0.6 + 0.5 * name), (1 - first**2).clamp(min=0).sqrt() * 2


def scales(dice, p, u, v):
    """Rows of discs, each half hidden by the next row, as fish and roof tiles have them."""
    tone = torch.zeros_like(u)
    height = torch.zeros_like(u)
    for step in (1, 0, -1):
        row = (v * 2).floor() + step
        x = u + 0.5 * (row % 2)
        column = x.floor()
        distance = ((x - column - 0.5) ** 2 + (v - row / 2) ** 2).sqrt()
        inside = distance < 0.56
        name = torch.frac((torch.sin(column * 12.99 + row * 78.23) * 437.5).abs())
        tone = torch.where(inside, 0.25 + 0.5 * name + distance * (p["duty"] - 0.4), tone)
        height = torch.where(inside, 1 - distance, height)
    return tone, 2 * height


def dots(dice, p, u, v):
    table = dice.uniform(u.shape[0], SIDE * SIDE, 3)
    lattice = Lattice(table, u, v)
    jx, jy, name = lattice.look_up(lattice.index(lattice.column, lattice.row))
    spread = 0.5 * p["warp"]
    x = u - lattice.column - 0.5 - spread * (jx - 0.5)
    y = v - lattice.row - 0.5 - spread * (jy - 0.5)
    radius = 0.15 + 0.3 * p["duty"] * (1 - spread * name)
    distance = (x * x + y * y).sqrt()
    dot = threshold(radius - distance, softness(p).clamp(max=0.2))
    return 0.1 + dot * (0.4 + 0.5 * name), (radius**2 - distance**2).clamp(min=0).sqrt() * 3


def labyrinth(dice, p, u, v):
    """Spots and winding bands of one width."""
    tile = noise(dice, 0 * p["period"], p["stretch"].clamp(max=2), 0 * p["angle"], band=8.0)
    field = repeat(tile, u * 8, v * 8)
    tone = threshold(field - 1.6 * (p["duty"] - 0.4), softness(p) * 3)
    return tone, tone


def ridges(dice, p, u, v):
    """Ridged multifractal: sharp crests on every scale (Musgrave 1994)."""
    tile = noise(dice, torch.full_like(p["period"], 1.6))
    height, gain, total = 0, 1.0, 0
    for octave in range(4):
        scale = 8 * 2**octave
        crest = 1 - repeat(tile, u * scale + 17 * octave, v * scale + 31 * octave).abs()
        height = height + gain * crest
        total = total + gain
        gain = gain * 2 ** -(p["roughness"] * 0.7)
    height = height / total
    return 0.5 + 0.5 * height, height * 4


def terraces(dice, p, u, v):
    """Contour lines and steps of a smooth landscape."""
    tile = noise(dice, 0.8 + p["roughness"])
    level = repeat(tile, u * 8, v * 8) * 3
    line = threshold(triangle(level) - 0.5 * p["duty"], softness(p).clamp(max=0.4) * 3)
    step = torch.frac((torch.sin(level.floor() * 12.99) * 43.7).abs())
    return step * (0.3 + 0.7 * line), level / 2


def skyline(dice, p, u, v):
    """Ranges of hills behind each other, paler with distance."""
    tile = noise(dice, 0.7 + 0.7 * p["roughness"])
    tone = 0.92 - 0.1 * v
    for layer in range(4):
        profile = repeat(tile, u * (6 - layer) + 19 * layer, torch.full_like(u, 15.0 * layer))
        top = (0.35 * layer - 0.6) + profile * (0.15 + 0.2 * p["warp"])
        detail = repeat(tile, u * 24 + 7, v * 24 + 5 * layer) * 0.05
        below = threshold(v * 0.35 * p["period"].clamp(max=16) / 8 - top, 0.05)
        tone = tone + below * (0.72 - 0.2 * layer + detail - tone)
    return tone, tone * 2


def julia(dice, p, u, v):
    """How near the orbits of z*z + c come to the axes (Pickover's stalks) in a Julia set."""
    turn = p["warp"] * 2 * math.pi
    cx, cy = 0.75 * torch.cos(turn), 0.75 * torch.sin(turn)
    x, y = u * 0.45 + 0.3 * torch.cos(3 * turn), v * 0.45
    trap = torch.full_like(u, 1.0)
    for _ in range(10):
        x, y = (x * x - y * y + cx).clamp(-4, 4), (2 * x * y + cy).clamp(-4, 4)
        trap = torch.minimum(trap, torch.minimum(x.abs(), y.abs()))
    tone = trap ** (0.2 + 0.4 * p["duty"])
    return tone, tone


def branches(dice, p, u, v):
    """A segment folded onto itself again and again: twigs, ferns, frost."""
    x, y = u * 0.5, v * 0.5
    x = x - 2 * (x / 2 + 0.5).floor()
    y = y - 2 * (y / 2 + 0.5).floor()
    turn = 0.35 + 0.9 * p["duty"]
    nearest, scale = torch.full_like(u, 9.0), 1.0
    for _ in range(7):
        x, y = x.abs(), y
        distance = (x**2 + (y - y.clamp(-0.7, 0.1)) ** 2).sqrt() / scale
        nearest = torch.minimum(nearest, distance)
        x, y = rotate(x, y + 0.35 + 0.4 * p["warp"], turn)
        x, y, scale = x * 1.45, y * 1.45, scale * 1.45
    line = threshold(0.06 - nearest, 1.5 / p["period"])
    return 0.15 + 0.75 * line + 0.2 * nearest, line


def fur(dice, p, u, v):
    """Short hairs, combed: noise, long one way, over noise that is less so."""
    long = noise(dice, 0.2 + 0 * p["period"], 5.0, 0 * p["angle"])
    broad = noise(dice, 1.6 + 0 * p["period"])
    hair = repeat(long, u * 12, v * 12)
    tone = 0.5 + 0.16 * hair + 0.2 * repeat(broad, u * 4, v * 4)
    return tone, tone * 3


PATTERNS = {
    pattern.__name__: pattern
    for pattern in (
        plain,
        cloud,
        marble,
        stripes,
        checks,
        bricks,
        weave,
        cells,
        cracks,
        bubbles,
        scales,
        dots,
        labyrinth,
        ridges,
        terraces,
        skyline,
        julia,
        branches,
        fur,
    )
}

VIEWS = ("flat", "plane", "polar")


def look(dice, p, size):
    """Coordinates (u, v) in periods of the surface that every pixel shows, and how far away it is
    (0 near, 1 at the horizon and in the sky), for images of all the VIEWS."""
    x, y = pixels(size, dice.device)
    n = p["view"].shape[0]
    x, y = x.expand(n, -1, -1), y.expand(n, -1, -1)
    plane, polar = p["view"] == 1, p["view"] == 2
    # The plane: seen under a horizon that is in the upper half.
    horizon = (dice.uniform(n, 1, 1) * 0.5 - 0.45) * size
    below = (y - horizon).clamp(min=1) / size
    depth = 0.35 / below
    far = torch.where(plane, ((depth - 0.6) / 5).clamp(0, 1) ** 0.7, 0 * x)
    far = torch.where(plane & (y < horizon), torch.ones_like(x), far)
    a, b = rotate(x * depth, size * depth, p["angle"])
    # Polar: spirals and rays about a point; the number of periods around is whole.
    cx, cy = dice.uniform(n, 1, 1) - 0.5, dice.uniform(n, 1, 1) - 0.5
    dx, dy = x - 0.7 * cx * size, y - 0.7 * cy * size
    radius = (0.5 * (dx * dx + dy * dy + 4).log() - 2.5) * size / 3
    around = 2 * (size / 2 / p["period"] + 0.5).floor().clamp(min=1) * p["period"]
    turn = torch.atan2(dy, dx) * around / (2 * math.pi)
    spiral = (p["angle"] * 2 / math.pi).round() * 0.5
    # Flat: rotated, and pushed about by smooth noise.
    push = (
        noise(dice, torch.full_like(p["warp"], 2.0)),
        noise(dice, torch.full_like(p["warp"], 2.0)),
    )
    wide = TILE / size
    amount = (p["warp"] - 0.3).clamp(min=0) * 0.5 * p["period"]
    sx = x + amount * repeat(push[0], x * wide, y * wide)
    sy = y + amount * repeat(push[1], x * wide, y * wide)
    c, d = rotate(sx, sy, p["angle"])
    c, d = c / p["stretch"].sqrt(), d
    u = torch.where(plane, a, torch.where(polar, turn + spiral * radius, c)) / p["period"]
    v = torch.where(plane, b, torch.where(polar, radius, d)) / p["period"]
    return u + 8 * dice.uniform(n, 1, 1).round(), v, far
