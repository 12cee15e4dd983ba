"""The processes of one distributed training: what they tell one another beside gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from soka_cli.errors import ExitCode, SokaError
from soka_cli.stages.launch import Worker

Value = TypeVar("Value")


@dataclass(frozen=True)
class Team:
    """`count` processes that take every step together; this one is `rank`. Alone, each call returns what it was given."""

    rank: int = 0
    count: int = 1

    @classmethod
    def assembled(cls, worker: Worker, device: torch.device) -> "Team":
        """Connect the processes that a launcher started: gloo on CPUs, NCCL on GPUs.

        Raises:
            SokaError: exit 3, where Accelerate finds another number of them than were started.
        """
        if worker.count == 1:
            return cls()
        found = int(PartialState(cpu=device.type == "cpu").num_processes)
        if found != worker.count:
            raise SokaError(
                f"{worker.count} processes were started, and {found} of them train together",
                where="torch.distributed",
                why=f"there is no backend for device {device} here" if found == 1 else "",
                hint="look at soka doctor; on a machine without GPUs, --device cpu",
                exit_code=ExitCode.ENVIRONMENT,
            )
        return cls(worker.rank, worker.count)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def told(self, value: Value) -> Value:
        """The first process's value, in all."""
        return self.gathered(value)[0]

    def gathered(self, value: Value) -> list[Value]:
        """Every process's value, by rank."""
        if self.count == 1:
            return [value]
        values: list[Value | None] = [None] * self.count
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def total(self, values: Tensor) -> Tensor:
        """Sums over the processes, in fp64 on the CPU."""
        return torch.stack(self.gathered(values.double().cpu())).sum(0)

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            self.gathered(None)  # unlike dist.barrier it asks for no device

    def share(self, pieces: Sequence[Value]) -> list[tuple[Value, bool]]:
        """This process's pieces of work, each with whether it counts: all processes get equally many, those beyond the last do not."""
        rounds = -(-len(pieces) // self.count)
        places = range(self.rank, rounds * self.count, self.count)
        return [(pieces[place], True) if place < len(pieces) else (pieces[0], False) for place in places]
