# SPDX-License-Identifier: MPL-2.0
"""Golden values of the style transfer objective: narrow.safetensors and full.safetensors, written beside this file.

    python3 golden.py        (torch 2.8, numpy, safetensors; CPU; half a minute)

Computed in float64 by torch's autograd, sharing nothing with the Rust code but these formulas
(Gatys, Ecker, Bethge: Image Style Transfer Using Convolutional Neural Networks, CVPR 2016, eq. 1-7).
F, P, S: [M, N], features of the image, the content and the style; N channels, M positions; S has M_a positions.

    content_l = 1/2 sum (F - P)^2                                   eq. 1
    style_l   = 1/(4 N^2) sum (G/M - A/M_a)^2, G = F'F, A = S'S     eq. 3, 4; the paper has M = M_a
    tv        = sum of squared differences of neighbours, horizontal and vertical / (3 H W)
    total     = alpha sum v_l content_l + beta sum w_l style_l + tv_weight tv      eq. 5, 7 and tv

loss-scale `paper`: so; `mean`: content_l / (N M); `relative`: content_l / (1/2 sum P^2), style_l / (1/(4 N^2) sum (A/M_a)^2).

Network: VGG-19, a layer is the activation after its ReLU; 2x2 pooling drops an odd last row or column. conv1_1 pads the
normalised image with its border pixels, all others pad zeros. Weight number i, counted over all layers, each layer's kernel
[out, in, 3, 3] and then its bias, is made of u = (i-th output of splitmix64 seeded with SEED >> 40) / 2^24, computed in
f64 and rounded once: kernel f32((2u - 1) sqrt(6 / (9 in))), bias f32((2u - 1) 0.1).

Keys: image, content, style                f32 [H, W, 3]
      weights.last                         f32 [layers]: each layer's last bias, to check the generator by
      avg.means, max.means                 f64 [layers]: mean activation of `image`
      CASE.gradient, CASE.losses           f32 [H, W, 3]: d total / d image; f64 [4]: content, style (weighted), tv, total
CASE is POOLING.SCALE or `layers`; the metadata `golden` is JSON: seed, torch, channels, cases (with their settings).
"""
import json
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as nnf
from safetensors.numpy import save_file

SEED = 1
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CONTENT = {"conv4_2": 1.0}
STYLE = {f"conv{block}_1": 0.2 for block in range(1, 6)}
NARROW = [[4] * 2, [8] * 2, [12] * 4, [16] * 4, [16] * 4]
FULL = [[64] * 2, [128] * 2, [256] * 4, [512] * 4, [512]]

def case(pooling, scale, content=CONTENT, style=STYLE, alpha=1.0, beta=100.0, tv_weight=5.0):
    return dict(pooling=pooling, scale=scale, content=content, style=style, alpha=alpha, beta=beta, tv_weight=tv_weight)

NARROW_CASES = {f"{p}.{s}": case(p, s) for p in ("avg", "max") for s in ("relative", "mean", "paper")}
NARROW_CASES["layers"] = case("avg", "relative", {"conv2_2": 0.3, "conv4_2": 0.7, "conv5_4": 0.1},
                              {"conv1_2": 0.5, "conv3_3": 0.25, "conv5_3": 0.25}, alpha=2.0, beta=30.0, tv_weight=0.0)
FULL_CASES = {name: NARROW_CASES[name] for name in ("avg.relative", "max.relative", "avg.paper")}

def splitmix64(seed, start, count):
    z = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))

def weights(blocks):
    """{layer: (kernel, bias)} of f32 arrays."""
    layers, i, inputs = {}, 0, 3
    for b, block in enumerate(blocks, 1):
        for c, outputs in enumerate(block, 1):
            size = outputs * inputs * 9
            u = (splitmix64(SEED, i, size + outputs) >> np.uint64(40)) / 2.0**24
            kernel = ((2 * u[:size] - 1) * np.sqrt(6 / (9 * inputs))).astype(np.float32)
            layers[f"conv{b}_{c}"] = kernel.reshape(outputs, inputs, 3, 3), ((2 * u[size:] - 1) * 0.1).astype(np.float32)
            i, inputs = i + size + outputs, outputs
    return layers

def forward(layers, image, pooling):
    """{layer: activation [N, h, w]} of an image [H, W, 3], in the image's precision."""
    mean, std = (torch.tensor(a, dtype=image.dtype) for a in (MEAN, STD))
    x, features = ((image - mean) / std).permute(2, 0, 1)[None], {}
    for name, (kernel, bias) in layers.items():
        if name.endswith("_1") and name != "conv1_1":
            x = (nnf.avg_pool2d if pooling == "avg" else nnf.max_pool2d)(x, 2)
        x = nnf.pad(x, (1, 1, 1, 1), mode="replicate" if name == "conv1_1" else "constant")
        x = torch.relu(nnf.conv2d(x, *(torch.tensor(w, dtype=x.dtype) for w in (kernel, bias))))
        features[name] = x[0]
    return features

def gram(f):
    """F'F / M of an activation [N, h, w]."""
    f = f.flatten(1)
    return f @ f.T / f.shape[1]

def content_loss(f, p, scale):
    return (f - p).square().sum() / 2 / {"paper": 1, "mean": p.numel(), "relative": p.square().sum() / 2}[scale]

def style_loss(f, s, scale):
    g, a, n = gram(f), gram(s), len(s)
    return (g - a).square().sum() / (4 * n**2) / (a.square().sum() / (4 * n**2) if scale == "relative" else 1)

def variation(image):
    return sum(image.diff(dim=d).square().sum() for d in (0, 1)) / image.numel()

def objective(layers, images, case, dtype=torch.float64):
    """image [H, W, 3] -> tensor [content, style, tv, total]."""
    with torch.no_grad():
        p, s = (forward(layers, torch.tensor(images[k], dtype=dtype), case["pooling"]) for k in ("content", "style"))
    def losses(image):
        f = forward(layers, image, case["pooling"])
        content = sum(v * content_loss(f[l], p[l], case["scale"]) for l, v in case["content"].items())
        style = sum(w * style_loss(f[l], s[l], case["scale"]) for l, w in case["style"].items())
        tv = variation(image)
        return torch.stack([content, style, tv, case["alpha"] * content + case["beta"] * style + case["tv_weight"] * tv])
    return losses

def evaluate(losses, image, dtype=torch.float64):
    image = torch.tensor(image, dtype=dtype, requires_grad=True)
    values = losses(image)
    return values.detach(), *torch.autograd.grad(values[3], image)

def finite_difference_error(losses, image, gradient, rng, step=1e-7):
    """Largest relative error of the slope in three random directions (uphill ones, to keep digits), by central differences."""
    def error():
        d = torch.tensor(np.sign(gradient.numpy()) * rng.random(gradient.shape))
        x, d = torch.tensor(image, dtype=torch.float64), d / d.norm()
        slope = (losses(x + step * d)[3] - losses(x - step * d)[3]).item() / (2 * step)
        return abs(slope / (gradient * d).sum().item() - 1)
    with torch.no_grad():
        return max(error() for _ in range(3))

def smooth(height, width, rng, waves=6):
    """An image of a few waves of up to three periods, within 0.1..0.9."""
    y, x = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")
    image = np.zeros((height, width, 3))
    for c in range(3):
        for fy, fx, phase, size in rng.uniform([-3, 0, 0, 0.3], [3, 3, 2 * np.pi, 1], (waves, 4)):
            image[..., c] += size * np.cos(2 * np.pi * (fy * y + fx * x) + phase)
    return (0.5 + 0.4 * image / np.abs(image).max((0, 1))).astype(np.float32)

def check_by_hand():
    """The generator, normalisation, padding, tv and the style term, against published values and plain sums."""
    assert [int(z) for z in splitmix64(1234567, 0, 2)] == [6457827717110365317, 3203168211198807973]
    layers, image = weights([[4, 4]]), smooth(2, 3, np.random.default_rng(0)).astype(np.float64)
    x = ((image - MEAN) / STD).transpose(2, 0, 1)
    torch_features = forward(layers, torch.tensor(image), "avg").values()
    for (kernel, bias), mode, theirs in zip(layers.values(), ("edge", "constant"), torch_features):
        padded, x = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode), np.zeros((4, 2, 3))
        for o, h, w in np.ndindex(x.shape):
            x[o, h, w] = max(0.0, bias[o] + (kernel[o] * padded[:, h:h + 3, w:w + 3]).sum())
        assert x.any() and np.allclose(x, theirs.numpy(), rtol=1e-12, atol=1e-14)
    assert variation(torch.tensor([[[0.0], [1]], [[2], [4]]])) == (1 + 4 + 4 + 9) / 4
    f, s = torch.tensor([[[1.0, 2]], [[0, 3]]]), torch.tensor([[[1.0]], [[1]]])  # G/M = [[2.5, 3], [3, 4.5]], A/M_a = 1
    assert style_loss(f, s, "paper") == (1.5**2 + 2 * 2**2 + 3.5**2) / 16 and style_loss(f, s, "relative") == 22.5 / 4

def write(name, blocks, cases, shapes, image_seed):
    rng = np.random.default_rng(image_seed)
    images = {key: smooth(*shape, rng) for key, shape in shapes.items()}
    layers = weights(blocks)
    values = dict(images, **{"weights.last": np.array([bias[-1] for _, bias in layers.values()])})
    for pooling in ("avg", "max"):
        f = forward(layers, torch.tensor(images["image"], dtype=torch.float64), pooling)
        values[f"{pooling}.means"] = np.array([a.mean().item() for a in f.values()])
    header = ("content", "style", "tv", "total", "|gradient|", "differences", "f32 autograd")
    print(f"{name:19}" + "".join(f"{title:>13}" for title in header))
    for key, c in cases.items():
        losses = objective(layers, images, c)
        value, gradient = evaluate(losses, images["image"])
        error = finite_difference_error(losses, images["image"], gradient, rng)
        single = evaluate(objective(layers, images, c, torch.float32), images["image"], torch.float32)[1]
        distance = ((single - gradient).norm() / gradient.norm()).item()
        print(f"  {key:17}" + "".join(f"{v:13.4e}" for v in (*value, gradient.norm(), error, distance)))
        assert error < 1e-6 and distance < 1e-5
        values[f"{key}.losses"], values[f"{key}.gradient"] = value.numpy(), gradient.numpy().astype(np.float32)
    metadata = {"seed": SEED, "torch": torch.__version__, "channels": blocks, "cases": cases}
    save_file(values, Path(__file__).with_name(f"{name}.safetensors"), {"golden": json.dumps(metadata)})  # one key: no order to vary

if __name__ == "__main__":
    check_by_hand()
    # Image seeds are picked from the first 200 and 60: before a ReLU or between the two largest of a pooling window, no value of
    # `image` comes within 1e-4 and 6e-6 of its layer's root mean square to the kink, so that f32 makes every choice as f64 does.
    wide, tall = (37, 50), (45, 33)
    write("narrow", NARROW, NARROW_CASES, {"image": wide, "content": wide, "style": tall}, image_seed=46)
    wide, tall = (40, 48), (48, 36)
    write("full", FULL, FULL_CASES, {"image": wide, "content": wide, "style": tall}, image_seed=53)
