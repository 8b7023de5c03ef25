# SPDX-License-Identifier: MPL-2.0
"""Pictures that a good score must not be fooled by: each satisfies a part of it cheaply.

Pictures are uint8 arrays [height, width, 3].
"""

import numpy as np
from PIL import Image


def resized(picture, shape):
    """The picture stretched to the height and width of `shape`."""
    return np.asarray(Image.fromarray(picture).resize(shape[1::-1], Image.Resampling.LANCZOS))


def to_bytes(values):
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def recoloured(picture, style):
    """The picture with the histogram of each of the style's channels."""
    channels = []
    for values, wanted in zip(picture.reshape(-1, 3).T, style.reshape(-1, 3).T):
        ranks = np.argsort(np.argsort(values, kind="stable"))
        channels.append(np.quantile(wanted, (ranks + 0.5) / len(ranks)))
    return to_bytes(np.stack(channels, axis=1).reshape(picture.shape))


def random_phase(style, shape, generator):
    """Noise [h, w, 3] with the style's spectrum in each channel, and mean 0."""
    values = resized(style, shape) / 1.0
    spectrum = np.fft.fft2(values - values.mean(axis=(0, 1)), axes=(0, 1))
    phase = np.angle(np.fft.fft2(generator.normal(size=shape[:2])))
    return np.fft.ifft2(spectrum * np.exp(1j * phase)[..., None], axes=(0, 1)).real


def controls(photograph, style):
    """The controls of a pair, by name."""
    generator = np.random.default_rng(1)
    white = generator.normal(size=photograph.shape)
    in_style_colours = recoloured(photograph, style)
    overlaid = in_style_colours + random_phase(style, photograph.shape, generator)
    half = photograph / 2 + resized(style, photograph.shape) / 2
    return {
        "photograph": photograph,
        "style picture": resized(style, photograph.shape),
        "photograph + noise": to_bytes(photograph + 25 * white),
        "recoloured": in_style_colours,
        "recoloured + noise": to_bytes(in_style_colours + 25 * white),
        "recoloured + style's spectrum": recoloured(to_bytes(overlaid), style),
        "double exposure": recoloured(to_bytes(half), style),
    }
