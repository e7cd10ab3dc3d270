"""`jmceln train` with FSDP on processors, where accelerate offers it on accelerators only.

Told that its processes are sharded, accelerate does all the rest as it does on accelerators. Run by `torchrun`.
"""

import sys
from pathlib import Path

import torch
from accelerate import state
from accelerate.utils import DistributedType
from torch.distributed.checkpoint import state_dict as checkpoints
from torch.utils._pytree import tree_map


sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from processing.training import run as train


initialize = state.AcceleratorState.__init__


def initialize_sharded(self, *args, fsdp_plugin=None, **kwargs):
    initialize(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type = state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


def wait_for(gather):
    # On accelerators the copy to the processor's memory waits for what was gathered.
    def gathered(*args, **kwargs):
        return tree_map(lambda value: value.clone() if torch.is_tensor(value) else value, gather(*args, **kwargs))

    return gathered


state.AcceleratorState.__init__ = initialize_sharded
for name in ("get_model_state_dict", "get_optimizer_state_dict"):
    setattr(checkpoints, name, wait_for(getattr(checkpoints, name)))

train.main(sys.argv[1:])
