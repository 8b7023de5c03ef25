#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Writes VGG-19 weights of two formats that the element does not read itself as a safetensors file that it does.

    weights/convert.py FILE OUT.safetensors        (pip install -r weights/requirements.txt)

FILE is a MATLAB file as MatConvNet has them (imagenet-vgg-verydeep-19.mat), or a dictionary that was saved with numpy.save
({"conv1_1": [kernel, bias], ...}, kernels [3, 3, in, out], for BGR 0..255 less ImageNet's mean). Nothing in FILE is run.
"""
import argparse
import io
import pickle
import sys
from pathlib import Path

try:
    import numpy as np
    import scipy.io
    from safetensors.numpy import save_file
except ImportError as error:
    sys.exit(f"{error}: pip install -r {Path(__file__).with_name('requirements.txt')} installs what is missing")

CAFFE_MEAN = (103.939, 116.779, 123.68)


class Refused(Exception):
    """What is wrong with a file, for a person."""


class ArrayUnpickler(pickle.Unpickler):
    """Makes arrays and what they are made of, and nothing else."""

    def find_class(self, module, name):
        module = module.replace("numpy.core", "numpy._core")
        if (module, name) == ("numpy._core.multiarray", "_reconstruct"):
            return lambda _class, _shape, _type: np.ndarray(0)
        if (module, name) == ("numpy", "ndarray"):
            return None
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode("latin1")
        raise Refused(f"it is made of {module}.{name}, which arrays are not")


def from_numpy(file):
    """Kernels, biases and metadata of a dictionary that numpy.save wrote."""
    version = np.lib.format.read_magic(file)
    read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if version[0] not in read_header:
        raise Refused(f"it is of NumPy's version {version}, which is not known")
    _, _, dtype = read_header[version[0]](file)
    if not dtype.hasobject:
        raise Refused("it is one array, where a dictionary of arrays is needed")
    layers = ArrayUnpickler(file, encoding="latin1").load()
    layers = layers.item() if isinstance(layers, np.ndarray) and layers.shape == () else layers
    if not isinstance(layers, dict):
        raise Refused("it is no dictionary of arrays")
    names = {name.decode() if isinstance(name, bytes) else str(name): value for name, value in layers.items()}
    convolutions = {name: value for name, value in names.items() if name.startswith("conv")}
    return convolutions, {"channels": "BGR", "range": "0..255", "mean": CAFFE_MEAN, "std": (1, 1, 1)}


def from_matconvnet(file):
    """Kernels, biases and metadata of a network of MatConvNet's."""
    network = scipy.io.loadmat(file, struct_as_record=False, squeeze_me=True)
    layers, meta = network.get("layers"), network.get("meta")
    if layers is None:
        raise Refused("it has no ‘layers’, so that it is none of MatConvNet's networks")
    # Before its version 1.0-beta17, `normalization` stood beside the layers.
    normalization = getattr(meta, "normalization", None) or network.get("normalization")
    mean = getattr(normalization, "averageImage", None)
    if mean is None:
        raise Refused("it does not say which mean its images are without (normalization.averageImage)")
    mean = np.asarray(mean, dtype=np.float64)
    mean = mean.reshape(-1, mean.shape[-1]).mean(axis=0)
    if mean.shape != (3,):
        raise Refused("its normalization.averageImage is not of three channels")
    convolutions = {}
    for layer in np.atleast_1d(layers):
        if str(getattr(layer, "name", "")).startswith("conv"):
            weights = layer.weights if hasattr(layer, "weights") else (layer.filters, layer.biases)
            convolutions[layer.name] = weights
    return convolutions, {"channels": "RGB", "range": "0..255", "mean": mean, "std": (1, 1, 1)}


def tensors(convolutions):
    """A safetensors file's tensors: kernels [out, in, 3, 3] and biases [out]."""
    result = {}
    for name, weights in convolutions.items():
        try:
            parts = (weights["weights"], weights["biases"]) if isinstance(weights, dict) else weights
            kernel, bias = (np.asarray(array, dtype=np.float32) for array in parts)
            result[f"{name}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(f"{name} is not a kernel [3, 3, in, out] and a bias: {error}") from error
        result[f"{name}.bias"] = bias.reshape(-1)
    if not result:
        raise Refused("it has no convolutions called conv1_1, conv1_2 and so on")
    return result


def convert(path, out):
    data = path.read_bytes()
    if data.startswith(b"\x93NUMPY"):
        convolutions, metadata = from_numpy(io.BytesIO(data))
    elif data.startswith(b"MATLAB 7.3"):
        raise Refused("it is of MATLAB's version 7.3: save it with -v7")
    elif data.startswith(b"MATLAB "):
        convolutions, metadata = from_matconvnet(io.BytesIO(data))
    else:
        raise Refused("it is neither a MATLAB file nor one of numpy.save; other formats the element reads itself")
    texts = {key: value if isinstance(value, str) else ",".join(f"{number:g}" for number in value) for key, value in metadata.items()}
    save_file(tensors(convolutions), out, metadata=texts | {"family": "caffe"})


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], epilog="See this file's head for the formats.")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    arguments = parser.parse_args()
    if arguments.out.exists() and arguments.out.samefile(arguments.file):
        parser.error("OUT is FILE itself")
    try:
        convert(arguments.file, arguments.out)
    except Exception as error:  # a damaged file can fail in any way in a reader
        sys.exit(f"{arguments.file}: {error or type(error).__name__}")


if __name__ == "__main__":
    main()
