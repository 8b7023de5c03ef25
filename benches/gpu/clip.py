# SPDX-License-Identifier: MPL-2.0
"""Writes raw RGB frames of a camera that pans over a picture made of waves to the standard output.

    clip.py WIDTH HEIGHT FRAMES SEED
"""

import math
import random
import sys

OCTAVES = range(2, 7)
# Pixels per frame.
SPEED = 2


def picture(width, height, scale, seed):
    """Rows of RGB bytes: in each channel a sum of waves, each octave with a lower amplitude than the one before."""
    rng = random.Random(seed)
    channels = []
    for _ in range(3):
        waves = []
        for octave in OCTAVES:
            angle, phase = rng.uniform(0, math.tau), rng.uniform(0, math.tau)
            frequency = math.tau * 2**octave / scale
            waves.append((frequency * math.cos(angle), frequency * math.sin(angle), phase))
        # sin(a + b) from tables for the columns and the rows.
        columns = [
            [(math.sin(fx * x + phase), math.cos(fx * x + phase)) for x in range(width)]
            for fx, _, phase in waves
        ]
        channels.append((waves, list(zip(*columns))))
    for y in range(height):
        row = bytearray(3 * width)
        for channel, (waves, columns) in enumerate(channels):
            factors = [
                (60 * 0.7**index * math.cos(fy * y), 60 * 0.7**index * math.sin(fy * y))
                for index, (_, fy, _) in enumerate(waves)
            ]
            row[channel::3] = bytes(
                min(255, max(0, int(128 + sum(s * c + k * d for (s, k), (c, d) in zip(column, factors)))))
                for column in columns
            )
        yield bytes(row)


def main():
    width, height, frames, seed = map(int, sys.argv[1:])
    rows = list(picture(width + SPEED * (frames - 1), height, width, seed))
    for frame in range(frames):
        start = 3 * SPEED * frame
        sys.stdout.buffer.write(b"".join(row[start : start + 3 * width] for row in rows))


if __name__ == "__main__":
    main()
