# SPDX-License-Identifier: MPL-2.0
"""How near a picture is to a style and to a photograph, measured without any network.

Style: statistics in the manner of Portilla and Simoncelli, "A Parametric Texture Model Based on
Joint Statistics of Complex Wavelet Coefficients" (IJCV 2000), of the lightness, and the colours'
distribution and contrasts. Content: whether edges are where the photograph has them.

Pictures are uint8 arrays [height, width, 3], sRGB. Colours are OkLab: lightness L and the
opponents a (green to red) and b (blue to yellow).
"""

from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import ndimage

SCALES = 3  # octaves, at wavelengths of 4 to 16 pixels; what is larger is composition
ORIENTATIONS = 4
REACH = 3  # auto-correlations are taken up to so many samples of a scale
PAD = 32  # pixels that a picture is mirrored by, so that the filters do not wrap around
MIN_DEVIATION = 1e-4  # contrasts below this count as this: a step of 8 bits is 40 times as large
DIRECTIONS = 64  # through the colour space
QUANTILES = 256

# What the distances of the groups of statistics are combined to.
TEXTURE = ["marginal", "energy", "spectrum", "magnitude", "cross", "phase"]
COLOUR = ["palette", "chroma"]


def oklab(picture):
    """OkLab [h, w, 3] of an sRGB picture (Ottosson 2020, "A perceptual color space for image
    processing")."""
    srgb = picture / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_cones.T) @ to_lab.T


@lru_cache
def filters(h, w):
    """The steerable pyramid's filters for an h x w picture, as gains over its frequencies: the
    high-pass [h, w], the isotropic band of each scale [SCALES, h, w], and the oriented parts,
    one-sided, so that their output is complex [SCALES, ORIENTATIONS, h, w].

    Portilla and Simoncelli 2000, section 1.2: the radial parts are raised cosines of the octave,
    the angular ones cos^(K-1) of the angle. No scale is subsampled: the pictures are small.
    """
    fy, fx = np.meshgrid(np.fft.fftfreq(h), np.fft.fftfreq(w), indexing="ij")
    octave = np.log2(np.maximum(2 * np.hypot(fx, fy), 1e-12))  # 0 is Nyquist's frequency

    def low(scale):
        return np.cos(np.pi / 2 * np.clip(octave + scale + 1, 0, 1))

    def high(scale):
        return np.sin(np.pi / 2 * np.clip(octave + scale + 1, 0, 1))

    bands = np.stack([low(scale) * high(scale + 1) for scale in range(SCALES)])
    angles = np.arctan2(fy, fx) - np.pi / ORIENTATIONS * np.arange(ORIENTATIONS)[:, None, None]
    towards = np.maximum(np.cos(angles), 0) ** (ORIENTATIONS - 1)
    return high(0), bands, bands[:, None] * towards


def filtered(plane, gains):
    """The plane [h, w] through filters of the padded size [..., h + 2 PAD, w + 2 PAD], cropped
    to [..., h, w]; complex."""
    padded = np.pad(plane - plane.mean(), PAD, mode="symmetric")
    return np.fft.ifft2(np.fft.fft2(padded) * gains)[..., PAD:-PAD, PAD:-PAD]


def log_deviation(bands):
    """The logarithm of the root mean square of bands [..., h, w]."""
    return np.log(np.sqrt(np.mean(np.abs(bands) ** 2, axis=(-2, -1))) + MIN_DEVIATION)


def standardised(plane):
    """The plane with mean 0 and variance 1."""
    return (plane - plane.mean()) / max(plane.std(), MIN_DEVIATION)


def auto_correlation(plane, step):
    """Correlations of a plane [h, w] with itself shifted by up to REACH steps each way, one of
    each pair of opposite shifts."""
    h, w = plane.shape
    z = standardised(plane)
    shifts = range(-REACH, REACH + 1)
    found = []
    for dy, dx in ((dy * step, dx * step) for dy in shifts for dx in shifts):
        if (dy, dx) > (0, 0):
            right, left = max(dx, 0), max(-dx, 0)
            here = z[dy:, right : w - left]
            there = z[: h - dy, left : w - right]
            found.append(np.mean(here * there))
    return np.array(found)


def marginals(planes):
    """Skewness and log kurtosis of each plane."""
    z = [standardised(plane) for plane in planes]
    return np.array([(np.mean(p**3), np.log(np.mean(p**4) + MIN_DEVIATION)) for p in z]).ravel()


def phase_coherence(fine, coarse):
    """How the phases of two neighbouring scales [ORIENTATIONS, h, w] agree: the coherence of each
    fine coefficient with each coarse one of doubled phase, real and imaginary parts.

    Portilla and Simoncelli 2000, section 2.3: it tells edges from lines and shows shading.
    """
    doubled = coarse**2 / (np.abs(coarse) + 1e-12)
    products = np.einsum("ihw,jhw->ij", fine, doubled.conj())
    energies = [np.sum(np.abs(c) ** 2, axis=(1, 2)) for c in (fine, doubled)]
    coherence = products / np.sqrt(np.outer(*energies) + 1e-12)
    return np.stack([coherence.real, coherence.imag]).ravel()


def palette(lab):
    """Quantiles of the colours along fixed directions through OkLab [DIRECTIONS, QUANTILES]."""
    directions = np.random.default_rng(0).normal(size=(DIRECTIONS, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return np.quantile(lab.reshape(-1, 3) @ directions.T, at, axis=0).T


def statistics(picture):
    """The statistics of a picture, an array for each group.

    marginal   skewness and kurtosis of the lightness and of its isotropic bands
    energy     log contrast of each scale and orientation, and of the high-pass
    spectrum   auto-correlations of the isotropic bands: how regular they are
    magnitude  auto-correlations of the oriented bands' magnitudes: how strokes lie
    cross      correlations between the magnitudes of all scales and orientations
    phase      coherence of phases between neighbouring scales
    palette    quantiles of the colours
    chroma     log contrast of a and b at each scale
    """
    lab = oklab(picture)
    high, bands, oriented = filters(lab.shape[0] + 2 * PAD, lab.shape[1] + 2 * PAD)
    lightness = lab[..., 0]
    rough = filtered(lightness, high)
    isotropic = filtered(lightness, bands).real
    complex_bands = filtered(lightness, oriented)
    magnitudes = np.abs(complex_bands)
    scales = range(SCALES)
    z = np.stack([standardised(m).ravel() for m in magnitudes.reshape(-1, *lightness.shape)])
    correlations = z @ z.T / lightness.size
    chroma = [(log_deviation(filtered(lab[..., c], g))) for c in (1, 2) for g in (high, bands)]
    return {
        "marginal": marginals([lightness, *isotropic]),
        "energy": np.append(log_deviation(complex_bands).ravel(), log_deviation(rough)),
        "spectrum": np.concatenate([auto_correlation(isotropic[s], 2**s) for s in scales]),
        "magnitude": np.concatenate(
            [auto_correlation(m, 2**s) for s in scales for m in magnitudes[s]]
        ),
        "cross": correlations[np.triu_indices(SCALES * ORIENTATIONS, 1)],
        "phase": np.concatenate(
            [phase_coherence(complex_bands[s], complex_bands[s + 1]) for s in scales[:-1]]
        ),
        "palette": palette(lab),
        "chroma": np.concatenate([c.ravel() for c in chroma]),
    }


def distances(a, b):
    """The root mean square difference of each group of two pictures' statistics. For the palette
    it is the sliced Wasserstein distance of order 2 (Rabin et al. 2011)."""
    return {group: float(np.sqrt(np.mean((a[group] - b[group]) ** 2))) for group in a}


class StyleMeasure:
    """Distances to a style, on a scale on which 0 is the style picture and 1 the photograph. The
    left and the right half of a style picture come to about 0.33 in texture and 0.16 in colour:
    another picture in its style cannot be expected to come nearer.

    A group's distances are counted in units of its mean distance between two of the `references`
    (all contents and styles: pictures that differ), so that no group outweighs the others. The
    distance in texture, and that in colour, is the root mean square over their groups, divided
    by the photograph's.
    """

    def __init__(self, references):
        """`references`: statistics of pictures."""
        between = [distances(a, b) for a, b in combinations(references, 2)]
        self.units = {group: np.mean([d[group] for d in between]) for group in between[0]}

    def combined(self, a, b):
        """The distances in texture and in colour between two pictures' statistics."""
        d = distances(a, b)
        return {
            kind: float(np.sqrt(np.mean([(d[group] / self.units[group]) ** 2 for group in groups])))
            for kind, groups in (("texture", TEXTURE), ("colour", COLOUR))
        }

    def __call__(self, result, style, photograph):
        """{"texture": ..., "colour": ...} of a result; all three are statistics."""
        reached, unpainted = self.combined(result, style), self.combined(photograph, style)
        return {kind: reached[kind] / unpainted[kind] for kind in reached}


def gradient_magnitude(picture, sigma):
    """[h, w] of the lightness, after a Gaussian blur of `sigma` pixels."""
    lightness = oklab(picture)[..., 0]
    return ndimage.gaussian_gradient_magnitude(lightness, sigma, mode="nearest")


def edge_agreement(a, b):
    """Pearson's correlation of the gradient magnitudes of two pictures of one size, the mean over
    two blurs: of 1/128 and 1/64 of the longest side. 1: every edge in its place, 0: none."""
    longest = max(a.shape[:2])
    found = []
    for sigma in (longest / 128, longest / 64):
        edges = [standardised(gradient_magnitude(picture, sigma)) for picture in (a, b)]
        found.append(np.mean(edges[0] * edges[1]))
    return float(np.mean(found))


def content_agreement(result, photograph, style):
    """How far the result's edges are the photograph's (1: all), less how far they are those of the
    style picture laid over it (of the photograph's size): that would be pasted, not painted."""
    pasted = edge_agreement(result, style) - edge_agreement(photograph, style)
    return edge_agreement(result, photograph) - max(0.0, pasted)
