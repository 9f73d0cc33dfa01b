"""The processes of a training run and their devices, by Lightning Fabric."""

from __future__ import annotations

import os

from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException

from bitstream.errors import UsageError


def launch(device: str, devices: int) -> Fabric:
    """Return Fabric for this process; torchrun has started the others, or they are started here.

    Raises UsageError if there are not so many devices.
    """
    nodes = 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    strategy = "ddp_find_unused_parameters_true" if devices * nodes > 1 else "auto"  # each model has medians that learn nothing
    try:
        fabric = Fabric(accelerator=device, devices=devices, num_nodes=nodes, strategy=strategy, precision="32-true")
    except MisconfigurationException as error:
        raise UsageError(f"--devices is {devices}, more than there are: {error}") from error
    fabric.launch()
    return fabric
