"""What a checkpoint holds, checked before memory is taken for it: config, programs of the transforms, the float network.

Coding takes config and programs; the network is for training, export and refinement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitstream.errors import CheckpointError, UsageError
from models import program
from models.checkpoint import Checkpoint
from models.configs import RateConfig
from models.entropy_tensors import PREFIX
from models.program import Programs
from models.registry import build, configure, skeleton
from models.windows import margins

if TYPE_CHECKING:
    from models.network import Network

FLOAT_PARTS = ("g_a.", "g_s.", "h_a.")  # what runs in floating point, and lies in a checkpoint as float16
MARGIN_MAX = 256  # pixels around a part of a picture that its transforms may see
OTHERS_MAX = 2**27  # elements of a network besides its transforms: what no tensor of a checkpoint stands for yet


def config_of(checkpoint: Checkpoint) -> RateConfig:
    """Return the config of a checkpoint's model. Raises CheckpointError for one that cannot be."""
    try:
        return configure(checkpoint.model, checkpoint.config)
    except UsageError as error:
        raise CheckpointError(f"checkpoint {checkpoint.name}: {error}: export it again, or update") from error


def programs_of(checkpoint: Checkpoint, config: RateConfig) -> Programs:
    """Return the programs of a checkpoint's transforms, checked: its own, or, of an older one, those of its network.

    Only for the latter CompressAI is imported. Raises CheckpointError.
    """
    if checkpoint.transforms is not None:
        programs = program.unpack(checkpoint.transforms, hyper=bool(config.layout().hyper))
    else:
        from models.tracing import trace

        programs = trace(skeleton_of(checkpoint))
    program.check(programs, checkpoint.tensors, config.M, config.N)
    for part in ("g_a", "g_s"):
        pixels = program.SIDES[part][1]  # that an input position stands for
        if (margin := pixels * margins(programs[part])[0]) > MARGIN_MAX:
            raise CheckpointError(
                f"checkpoint {checkpoint.name}: transform {part} sees {margin} pixels around a part, expected at most "
                f"{MARGIN_MAX}: make it smaller"
            )
    return programs


def skeleton_of(checkpoint: Checkpoint) -> Network:
    """Return the network of a checkpoint without memory for its tensors; those of its transforms are in the checkpoint.

    So what is allocated afterwards is bounded by the bytes of the checkpoint. Raises CheckpointError.
    """
    network = skeleton(checkpoint.model, checkpoint.config)
    others = 0
    for name, tensor in network.state_dict().items():
        if not name.startswith(FLOAT_PARTS):
            others += tensor.numel()
        elif program.shape_of(checkpoint.tensors, name) != tuple(tensor.shape):
            found = program.shape_of(checkpoint.tensors, name)
            raise CheckpointError(
                f"checkpoint {checkpoint.name}: tensor {name} is {found}, expected {tuple(tensor.shape)}: export it again"
            )
    if others > OTHERS_MAX:
        raise CheckpointError(
            f"checkpoint {checkpoint.name}: its config asks for entropy networks of {others} elements, expected at most "
            f"{OTHERS_MAX}: damaged, export it again"
        )
    return network


def load_network(checkpoint: Checkpoint) -> Network:
    """Return the float network with the checkpoint's transforms in float32. Raises CheckpointError if one is missing."""
    config_of(checkpoint)
    skeleton_of(checkpoint)  # before anything is allocated
    network = build(checkpoint.model, checkpoint.config)
    floats = {name: t.float() for name, t in checkpoint.tensors.items() if not name.startswith(PREFIX)}
    try:
        network.load_state_dict(floats, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {checkpoint.name}: {error}: export it again") from error
    return network
