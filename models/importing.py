"""Turn the weights of a CompressAI model into one of ours: the same transforms, and its entropy networks ready for integers.

CompressAI's networks predict a mean and a linear scale of y itself; here the entropy networks see y divided by a constant per
channel, which is 1 here: ``models.normalise`` chooses it at the release.
"""

from __future__ import annotations

from typing import Any

from compressai.models.utils import remap_old_keys
from compressai.zoo.pretrained import load_pretrained
from torch import Tensor

from bitstream.errors import UsageError
from models.network import Network
from models.registry import build

LMBDAS = {  # of CompressAI's qualities 1 … 8, by what they are tuned for
    "psnr": (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800),
    "ms-ssim": (2.40, 4.58, 8.73, 16.64, 31.73, 60.50, 115.37, 220.00),
}
KNOWN = "bmshj2018-factorized, bmshj2018-hyperprior, mbt2018-mean, mbt2018, cheng2020-anchor and cheng2020-attn"
CODER_STATE = ("gaussian_conditional.", *(f"entropy_bottleneck.{n}" for n in ("_", "target", "likelihood_lower_bound")))


def architecture(state: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return our model and its configuration for a state dict of CompressAI. Raises UsageError if it is none of ``KNOWN``."""
    single = {"levels": 1, "lmbda_min": 0.01, "lmbda_max": 0.01}
    try:
        if "g_a.0.conv1.weight" in state:
            n = len(state["g_a.0.conv1.weight"])
            attention = any(".conv_a." in key for key in state)
            return "attention", single | {
                "N": n, "M": n, "mixtures": 1, "attention_blocks": attention, "linear_scale": True
            }  # fmt: skip
        if "g_a.1.beta" not in state:
            raise KeyError("g_a.1.beta")
        channels = {"N": len(state["g_a.0.weight"]), "M": len(state["g_a.6.weight"])}
        if "h_a.0.weight" not in state:
            return "factorized", single | channels
        if "context_prediction.weight" in state:
            return "joint", single | channels | {"linear_scale": True, "plain_rounding": True}
        means = len(state["h_s.4.weight"]) == 2 * channels["M"]
        return "hyperprior", single | channels | {"means": means, "linear_scale": True}
    except (TypeError, IndexError) as error:
        raise UsageError(f"a tensor has no channels ({error}): not a model that can be imported; known: {KNOWN}") from error
    except KeyError as error:
        raise UsageError(f"the weights have no {error}: not a model that can be imported; known: {KNOWN}") from error


def adopt(state: dict[str, Tensor], lmbda: float, tune: str = "psnr") -> tuple[str, Network]:
    """Return the name of our model and the network with these weights, of the λ and the measure that they were trained with.

    Raises UsageError if the weights are not those of a known architecture.
    """
    state = remap_old_keys("entropy_bottleneck", load_pretrained(dict(state)))
    name, config = architecture(state)
    network = build(name, config | {"lmbda_min": lmbda, "lmbda_max": lmbda, "tune": tune}).eval()
    own = network.state_dict()
    taken = {}
    for key in own:
        theirs = key.replace(".module.", ".")  # ours are wrapped into Float32
        if key.startswith(CODER_STATE):
            continue
        if theirs in state:
            taken[key] = state[theirs]
        elif not key.startswith("log2_"):
            raise UsageError(f"the weights have no tensor {theirs} for {name}: it cannot be imported; known: {KNOWN}")
    used = {key.replace(".module.", ".") for key in taken}
    strange = [key for key in state if key not in used and not key.startswith(CODER_STATE)]
    if strange:
        raise UsageError(f"the weights have a tensor {strange[0]} that {name} does not: not imported; known: {KNOWN}")
    try:
        network.load_state_dict(taken, strict=False)
    except RuntimeError as error:
        raise UsageError(
            f"the weights do not fit {name} ({str(error).splitlines()[-1].strip()}): they cannot be imported; known: {KNOWN}"
        ) from error
    return name, network
