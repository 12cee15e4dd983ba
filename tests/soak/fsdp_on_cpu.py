"""python -m tests.soak.fsdp_on_cpu <soka's words>: soka with Accelerate's FSDP2 on CPUs, which it has for GPUs alone.

On a CPU Accelerate takes DDP instead and does not say so. Its private state is set here, which is right in tests and nowhere else.
"""

import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from soka_cli.cli.app import main

usual = AcceleratorState.__init__


def sharding(self: AcceleratorState, *arguments: Any, **options: Any) -> None:
    """As ever, and FSDP where a plugin for it came."""
    usual(self, *arguments, **options)
    if (plugin := options.get("fsdp_plugin")) is not None:
        AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)


if __name__ == "__main__":
    AcceleratorState.__init__ = sharding
    sys.exit(main())
