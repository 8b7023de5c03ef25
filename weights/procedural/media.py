# SPDX-License-Identifier: MPL-2.0
"""How a scene is put on a surface: paint, ink, glass, dots.

A medium is a function (dice, p, scene, palette) -> picture of images [n, 3, size, size]. Strokes
take their colour from the scene under their middle and their direction from a field, layer over
layer from coarse to fine (Haeberli 1990; Hertzmann 1998). A medium without strokes uses their
parameters for what it has in their place: `stroke_width` is the size of its pieces or of what it
leaves out.
"""

import math

import torch

from fields import (
    TILE,
    Lattice,
    blur,
    gradient,
    luminance,
    noise,
    pixels,
    repeat,
    rotate,
    sample,
    shade,
    threshold,
    through_palette,
    triangle,
)

FINEST = 2.5  # pixels between strokes at least


def photograph(dice, p, scene, palette):
    return scene


def directions(dice, p, scene):
    """A field of directions: the class's own, turned by swirls, and following the scene's contours
    (the double angle makes averages of directions meaningful)."""
    size = scene.shape[-1]
    x, y = pixels(size, dice.device)
    swirl = repeat(
        noise(dice, torch.full_like(p["flow"], 2.4)), x * TILE / size / 1.5, y * TILE / size / 1.5
    )
    angle = p["stroke_angle"] + p["flow"] * 1.6 * swirl
    dx, dy = gradient(luminance(scene))
    contour = blur(torch.stack([dy * dy - dx * dx, -2 * dx * dy], 1), 2 + 0 * p["flow"]) * 300
    contour = contour / (1 + (contour**2).sum(1, keepdim=True)).sqrt()
    follow = 1.5 * p["follow"]
    c = torch.cos(2 * angle) + follow * contour[:, 0]
    s = torch.sin(2 * angle) + follow * contour[:, 1]
    return torch.atan2(s, c) / 2


def scatter(dice, picture, field, p, scale):
    """A table of strokes for `paint`, one a cell of `spacing` pixels: position in the cell, cosine
    and sine of direction, bend, order; and a table of their colours."""
    n, _, size, _ = picture.shape
    spacing = (p["stroke_width"] * scale).clamp(min=FINEST)
    side = int(size / FINEST) + 4
    random = dice.uniform(n, 4, side, side)
    grid = torch.arange(side, device=dice.device, dtype=torch.float32)
    x = (grid.view(1, 1, -1) + random[:, 0] - 2) * spacing - size / 2
    y = (grid.view(1, -1, 1) + random[:, 1] - 2) * spacing - size / 2
    angle = sample(field[:, None], x, y)[:, 0] + 0.25 * p["spread"] * dice.normal(n, side, side)
    bend = (random[:, 2] - 0.5) * p["bend"]
    table = torch.stack(
        [random[:, 0], random[:, 1], angle.cos(), angle.sin(), bend, random[:, 3]], -1
    )
    colour = sample(picture, x, y)
    wander = torch.cat(
        [dice.normal(n, 1, side, side).expand(-1, 3, -1, -1), dice.normal(n, 3, side, side)], 1
    )
    colour = colour + p["wander"][:, None] * (0.06 * wander[:, :3] + 0.03 * wander[:, 3:])
    return spacing, table.flatten(1, 2), colour.permute(0, 2, 3, 1).flatten(1, 2)


def paint(dice, picture, field, p, scale, square=False):
    """Lay one layer of strokes on a picture. Returns it and the height of the paint in pixels."""
    n, _, size, _ = picture.shape
    spacing, table, colours = scatter(dice, picture, field, p, scale)
    x, y = pixels(size, dice.device)
    lattice = Lattice(table, (x + size / 2) / spacing + 2, (y + size / 2) / spacing + 2)
    half_length = (0.45 * p["stroke_length"]).clamp(0.5, 1.2)
    half_width = 0.58 / p["stroke_length"] ** 0.8
    best = torch.full_like(lattice.u, -1.0)
    where, across = torch.zeros_like(best, dtype=torch.long), torch.zeros_like(best)
    edge = torch.ones_like(best)
    for index, (jx, jy, c, s, bend, order), du, dv in lattice.neighbours():
        du, dv = du - jx, dv - jy
        a = (du * c + dv * s) / half_length
        b = (dv * c - du * s) / half_width + bend * (a * a - 0.3)
        reach = torch.maximum(a.abs(), b.abs()) if square else a**4 + b * b
        seen = (reach < 1) & (order > best)
        best = torch.where(seen, order, best)
        where = torch.where(seen, index, where)
        across = torch.where(seen, b, across)
        edge = torch.where(seen, reach, edge)
    painted = torch.stack(lattice.look_up(where, colours.reshape(-1, 3)), 1)
    bristle = torch.sin(across * 7 + 40 * best) * torch.sin(across * 13 + 90 * best)
    covered = (best >= 0).float()
    painted = painted * (1 + 0.12 * p["relief"] * bristle)[:, None]
    height = covered * ((1 - edge**3) * 0.5 + 0.35 * bristle)
    return picture + covered[:, None] * (painted - picture), height


def oil(dice, p, scene, palette):
    """Two layers of brush strokes, with the relief of thick paint."""
    field = directions(dice, p, scene)
    coarse, below = paint(dice, blur(scene, 1.5 + 0 * p["size"]), field, p, 1.8)
    fine, height = paint(dice, coarse + 0.35 * (scene - coarse), field, p, 1.0)
    return shade(fine, height + 0.3 * below, p["light"], 1.2 * p["relief"])


def knife(dice, p, scene, palette):
    """Square dabs of thick paint."""
    field = directions(dice, p, scene)
    picture, height = paint(dice, scene, field, p, 2.0, square=True)
    return shade(picture, height, p["light"], 1.5 * p["relief"])


def points(dice, p, scene, palette):
    """Small round dabs of pure colours that mix in the eye (Seurat)."""
    p = dict(p, stroke_length=torch.ones_like(p["size"]), wander=0.5 + 3 * p["wander"])
    paper = through_palette(palette, torch.full_like(scene[:, 0], 0.85))
    picture, _ = paint(dice, 0.6 * scene + 0.4 * paper, directions(dice, p, scene), p, 0.9)
    return picture


def streaks(dice, p, scene, palette):
    """Long strokes along the field: colours and noise averaged along its streamlines
    (line integral convolution, Cabral and Leedom 1993)."""
    n, _, size, _ = scene.shape
    x, y = pixels(size, dice.device)
    field = directions(dice, p, scene)
    course = torch.stack([field.cos(), field.sin()], 1)
    grain = repeat(
        noise(dice, 0.1 + 0 * p["size"], size=size),
        x * 8 / p["stroke_width"],
        y * 8 / p["stroke_width"],
    )
    ink = torch.cat([scene, grain[:, None]], 1)
    total, steps = ink.clone(), 5
    for way in (-1.0, 1.0):
        px, py = x.expand(n, -1, -1), y.expand(n, -1, -1)
        last = course * way
        for _ in range(steps):
            px, py = px + 1.3 * last[:, 0], py + 1.3 * last[:, 1]
            total = total + sample(ink, px, py)
            here = sample(course, px, py)
            # A direction has no sign: keep going the way that it came.
            last = here * torch.sign((here * last).sum(1, keepdim=True) + 1e-6)
    total = total / (2 * steps + 1)
    streak = total[:, 3]
    picture = total[:, :3] * (1 + 0.5 * (0.3 + p["wander"]) * streak)[:, None]
    return shade(picture, streak, p["light"], 1.5 * p["relief"])


def hatching(dice, p, scene, palette):
    """Lines, denser and crossed where the scene is dark."""
    size = scene.shape[-1]
    x, y = pixels(size, dice.device)
    dark = 1 - luminance(scene)
    dark = (dark - dark.mean((1, 2), keepdim=True)) * 1.5 + 0.5
    tremble = repeat(noise(dice, 1.6 + 0 * p["size"]), x * 0.7, y * 0.7)
    ink = torch.zeros_like(dark)
    for k, begin in enumerate((0.05, 0.45, 0.75)):
        _, across = rotate(x, y, p["stroke_angle"] + k * (0.6 + p["bend"]))
        wave = triangle(
            across / p["stroke_width"].clamp(2.5, 7) + 0.25 * tremble + 0.3 * p["flow"] * tremble
        )
        line = threshold((dark - begin).clamp(0, 0.5) * 1.4 - 1 + wave, 0.35)
        ink = torch.maximum(ink, line)
    wash = p["wash"][:, None]
    paper = scene * wash + (1 - wash) * palette[:, -1, :, None, None]
    return paper + ink[:, None] * (0.8 * palette[:, 0, :, None, None] - paper)


def pen(dice, p, scene, palette):
    """Contours in ink over a wash."""
    soft = blur(scene, 0.6 + 0.25 * p["stroke_width"].clamp(max=5))
    dx, dy = gradient(luminance(soft))
    slope = (dx * dx + dy * dy).sqrt()
    strong = slope.flatten(1).quantile(0.88, 1).view(-1, 1, 1).clamp(min=0.01)
    ink = threshold(slope / strong - 0.9, 0.5)
    wash = p["wash"][:, None]
    paper = soft * wash + (1 - wash) * palette[:, -1, :, None, None]
    return paper + ink[:, None] * (0.7 * palette[:, 0, :, None, None] - paper)


def poster(dice, p, scene, palette):
    """Few flat colours with clean edges."""
    grey = luminance(blur(scene, 0.8 + 0.3 * p["stroke_width"].clamp(max=5)))
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    levels = (2 + 2.99 * p["follow"]).floor()
    tone = (grey - low) / (high - low + 1e-3) * levels
    whole = tone.floor()
    return through_palette(palette, (whole + threshold(tone - whole - 0.5, 0.12)) / levels)


def watercolour(dice, p, scene, palette):
    """Pale washes with dark rims, granulated by the paper."""
    size = scene.shape[-1]
    x, y = pixels(size, dice.device)
    wobble = [2.5 * repeat(noise(dice, 1.2 + 0 * p["size"]), x, y) for _ in range(2)]
    bled = blur(
        sample(scene, x + wobble[0], y + wobble[1]), 0.5 + 0.3 * p["stroke_width"].clamp(max=5)
    )
    steps = 4 * luminance(bled)
    wet = steps.floor() + threshold(torch.frac(steps) - 0.5, 0.3)
    rim = (wet - blur(wet[:, None], 1.5 + 0 * p["size"])[:, 0]).clamp(-1, 0)
    grain = repeat(noise(dice, 0.5 + 0 * p["size"]), x, y)
    bloom = repeat(noise(dice, 1.8 + 0 * p["size"]), x, y)
    density = 1 - 0.45 * p["wash"] + 0.12 * bloom - 0.5 * rim + 0.05 * grain
    return 1 - (1 - bled) * density.clamp(0.1, 1.4)[:, None]


def mosaic(dice, p, scene, palette):
    """Pieces of one colour between dark or pale joints."""
    n, _, size, _ = scene.shape
    x, y = pixels(size, dice.device)
    spacing = (p["stroke_width"] * 1.5).clamp(4, 14)
    side = int(size / 4) + 4
    grid = torch.arange(side, device=dice.device, dtype=torch.float32)
    jitter = 0.5 + (dice.uniform(n, 2, side, side) - 0.5) * (0.3 + 0.7 * p["spread"][:, None])
    px = (grid.view(1, 1, -1) + jitter[:, 0] - 2) * spacing - size / 2
    py = (grid.view(1, -1, 1) + jitter[:, 1] - 2) * spacing - size / 2
    colour = sample(scene, px, py) + 0.1 * p["wander"][:, None] * dice.normal(n, 1, side, side)
    table = torch.cat([jitter, colour], 1).permute(0, 2, 3, 1).flatten(1, 2)
    lattice = Lattice(table, (x + size / 2) / spacing + 2, (y + size / 2) / spacing + 2)
    first = torch.full_like(lattice.u, 9.0)
    second, where = first.clone(), torch.zeros_like(first, dtype=torch.long)
    for index, (jx, jy, *_), du, dv in lattice.neighbours():
        distance = ((du - jx) ** 2 + (dv - jy) ** 2).sqrt()
        closer = distance < first
        second = torch.where(closer, first, torch.minimum(second, distance))
        where = torch.where(closer, index, where)
        first = torch.where(closer, distance, first)
    piece = torch.stack(lattice.look_up(where)[2:], 1)
    joint = threshold(1.1 / spacing - (second - first), 1.5 / spacing)
    lead = torch.where(p["follow"] > 0.5, 0.08, 0.85)[:, None]
    return piece + joint[:, None] * (lead - piece)


def halftone(dice, p, scene, palette):
    """A print's screen of dots, larger where the scene is darker, a screen for every ink."""
    x, y = pixels(scene.shape[-1], dice.device)
    pitch = p["stroke_width"].clamp(3, 6)
    inks = []
    for channel in range(3):
        u, v = rotate(x / pitch, y / pitch, p["stroke_angle"] + 0.5 * channel)
        screen = (torch.cos(2 * math.pi * u) + torch.cos(2 * math.pi * v)) / 4 + 0.5
        inks.append(threshold(scene[:, channel] - 1 + screen, 0.3))
    return torch.stack(inks, 1) * 0.85 + 0.1


MEDIA = {
    medium.__name__: medium
    for medium in (
        photograph,
        oil,
        knife,
        points,
        streaks,
        hatching,
        pen,
        poster,
        watercolour,
        mosaic,
        halftone,
    )
}
