# SPDX-License-Identifier: MPL-2.0
"""What the generator is made of: random numbers, noise, lattices of cells, colours, light.

Everything works on a batch of n images at once. A field is a tensor [n, height, width]; a
parameter of an image is a tensor [n, 1, 1], so that the two combine by broadcasting; an image is
[n, 3, height, width], sRGB in 0..1. Lengths are pixels, angles radians, from x to the right
towards y downwards.
"""

import math

import torch
import torch.nn.functional as F

TILE = 64  # pixels of a noise tile's side; a tile repeats


class Dice:
    """Random tensors on one device from one seed."""

    def __init__(self, seed, device):
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def uniform(self, *shape, low=0.0, high=1.0):
        values = torch.rand(shape, generator=self.generator, device=self.device)
        return low + (high - low) * values

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator, device=self.device)

    def integers(self, high, *shape):
        return torch.randint(high, shape, generator=self.generator, device=self.device)


def pixels(size, device):
    """Coordinates x, y of the pixels of a square image, each [1, size, size], 0 in the middle."""
    line = torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2
    return line.view(1, 1, -1).expand(1, size, -1), line.view(1, -1, 1).expand(1, -1, size)


def rotate(x, y, angle):
    """The coordinates of the points (x, y) along and across a direction."""
    c, s = torch.cos(angle), torch.sin(angle)
    return x * c + y * s, y * c - x * s


def threshold(field, softness):
    """0 below zero, 1 above, with a ramp of the width `softness` between."""
    return (field / softness + 0.5).clamp(0, 1)


def triangle(u):
    """A wave of period 1 between 0 (at whole numbers) and 1."""
    return 1 - 2 * (u - u.floor() - 0.5).abs()


def spectrum(n, size, exponent, stretch, angle, device):
    """Spatial frequency in cycles a tile, as seen along and across a direction, for `noise`."""
    fy = torch.fft.fftfreq(size, 1 / size, device=device).view(1, -1, 1)
    fx = torch.fft.rfftfreq(size, 1 / size, device=device).view(1, 1, -1)
    along, across = rotate(fx, fy, angle)
    frequency = ((along * stretch) ** 2 + across**2).sqrt().expand(n, -1, -1).clone()
    frequency[:, 0, 0] = 1
    return frequency


def noise(dice, exponent, stretch=1.0, angle=None, size=TILE, band=None):
    """Periodic Gaussian noise of mean 0 and variance 1, [n, size, size].

    Its amplitude falls as frequency**-exponent (natural images: about 1). `stretch` makes it
    longer along `angle`. With `band` only frequencies around `band` cycles a tile are left, which
    is what a reaction and diffusion of two substances settles into (Turing 1952).
    """
    n = exponent.shape[0]
    angle = torch.zeros_like(exponent) if angle is None else angle
    frequency = spectrum(n, size, exponent, stretch, angle, dice.device)
    gain = frequency**-exponent
    if band is not None:
        gain = gain * torch.exp(-0.5 * ((frequency / band - 1) / 0.2) ** 2)
    gain[:, 0, 0] = 0
    field = torch.fft.irfft2(torch.fft.rfft2(dice.normal(n, size, size)) * gain, s=(size, size))
    return field / field.std((1, 2), keepdim=True).clamp(min=1e-6)


def repeat(tile, x, y):
    """A periodic tile [n, TILE, TILE] seen at the points (x, y), in pixels of the tile."""
    size = tile.shape[-1]
    tile = F.pad(tile[:, None], (0, 1, 0, 1), mode="circular")
    x, y = x - size * (x / size).floor(), y - size * (y / size).floor()
    where = torch.stack(torch.broadcast_tensors(x, y), -1).expand(len(tile), -1, -1, -1)
    return F.grid_sample(tile, where * (2 / size) - 1, align_corners=True)[:, 0]


def sample(image, x, y):
    """An image [n, c, size, size] at the points (x, y) in pixels from its middle; edges repeat."""
    where = torch.stack(torch.broadcast_tensors(x, y), -1).expand(len(image), -1, -1, -1)
    where = where * (2 / image.shape[-1])
    return F.grid_sample(image, where, padding_mode="border", align_corners=False)


def gradient(field):
    """Derivatives of a field along x and y, by central differences."""
    padded = F.pad(field[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    dx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    dy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    return dx, dy


def blur(image, sigma):
    """Gaussian blur of [n, c, size, size], each image by its own sigma [n, 1, 1] (pixels)."""
    size = image.shape[-1]
    pad = 8
    padded = F.pad(image, (pad, pad, pad, pad), mode="reflect")
    fy = torch.fft.fftfreq(size + 2 * pad, device=image.device).view(1, -1, 1)
    fx = torch.fft.rfftfreq(size + 2 * pad, device=image.device).view(1, 1, -1)
    gain = torch.exp(-2 * math.pi**2 * sigma**2 * (fx**2 + fy**2))
    result = torch.fft.irfft2(torch.fft.rfft2(padded) * gain[:, None], s=padded.shape[-2:])
    return result[:, :, pad : pad + size, pad : pad + size]


def luminance(image):
    return 0.3 * image[:, 0] + 0.59 * image[:, 1] + 0.11 * image[:, 2]


def shade(image, height, light, strength):
    """Light a relief from the direction `light`, 45 degrees above the plane (Lambert)."""
    dx, dy = gradient(height)
    facing = -(dx * torch.cos(light) + dy * torch.sin(light))
    lambert = (1 - strength * facing) / (1 + strength**2 * (dx**2 + dy**2)).sqrt()
    return image * lambert.clamp(0.25, 1.6)[:, None]


class Lattice:
    """A square lattice of cells with random properties in each; a pixel sees the 3x3 cells around
    it, which is how sparse objects are drawn without a loop over them (Worley 1996).

    `table` is [n, side * side, c]; the lattice repeats after `side` cells.
    """

    def __init__(self, table, u, v):
        n, cells, self.width = table.shape
        self.side = math.isqrt(cells)
        self.table = table.reshape(n * cells, self.width)
        self.first = torch.arange(n, device=table.device).view(n, 1, 1) * cells
        self.u, self.v = u, v
        self.column, self.row = u.floor(), v.floor()

    def neighbours(self):
        """For each of the 3x3 cells: where it is in the table, its properties (a tuple of fields),
        and the pixel's position from the cell's own corner, in cells."""
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                column, row = self.column + dx, self.row + dy
                index = self.index(column, row)
                yield index, self.look_up(index), self.u - column, self.v - row

    def index(self, column, row):
        column = (column % self.side).long()
        return self.first + (row % self.side).long() * self.side + column

    def look_up(self, index, table=None):
        table = self.table if table is None else table
        return F.embedding(index, table).unbind(-1)


def oklch_to_rgb(lightness, chroma, hue):
    """OKLab in polar form (Ottosson 2020) to sRGB, clipped; hue in turns. RGB becomes the
    last dimension."""
    a, b = chroma * torch.cos(2 * math.pi * hue), chroma * torch.sin(2 * math.pi * hue)
    l3 = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    m3 = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s3 = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * l3 - 3.3077115913 * m3 + 0.2309699292 * s3
    green = -1.2684380046 * l3 + 2.6097574011 * m3 - 0.3413193965 * s3
    blue = -0.0041960863 * l3 - 0.7034186147 * m3 + 1.7076147010 * s3
    linear = torch.stack([red, green, blue], -1).clamp(0, 1)
    return torch.where(
        linear < 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055
    )


def through_palette(palette, t):
    """The colours [n, 3, h, w] of a field in 0..1 through palettes [n, k, 3], linear between."""
    n, k, _ = palette.shape
    stops = torch.arange(k, device=t.device).view(1, k, 1)
    weights = (1 - (t.clamp(0, 1).reshape(n, 1, -1) * (k - 1) - stops).abs()).clamp(min=0)
    return torch.bmm(palette.transpose(1, 2), weights).view(n, 3, *t.shape[1:])
