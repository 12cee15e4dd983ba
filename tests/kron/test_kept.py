"""A kept matrix is never an old one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from soka_cli.kron import Kept


class Maker:
    """Makes a sum, and counts."""

    def __init__(self, values: list[Tensor], large: Tensor | None) -> None:
        self.values, self.large, self.made = values, large, 0

    def __call__(self) -> Tensor:
        self.made += 1
        return sum(self.values) + (0 if self.large is None else self.large)


def test_what_did_not_change_is_made_once() -> None:
    kept, maker = Kept(), Maker([torch.ones(2)], torch.ones(2))
    assert kept.get(maker.values, maker.large, maker) is kept.get(maker.values, maker.large, maker)
    assert maker.made == 1


def write(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor += 1


def write_past_the_version(tensor: Tensor) -> None:
    tensor.data += 1


def write_and_put_the_version_back(tensor: Tensor) -> None:
    with torch.autograd._unsafe_preserve_version_counter(tensor):
        write(tensor)


@pytest.mark.parametrize("change", [write, write_past_the_version, write_and_put_the_version_back])
def test_a_written_value_is_seen_however_it_was_written(change: Callable[[Tensor], None]) -> None:
    kept, maker = Kept(), Maker([torch.ones(2), torch.ones(2)], None)
    kept.get(maker.values, None, maker)
    change(maker.values[1])
    assert torch.equal(kept.get(maker.values, None, maker), torch.full((2,), 3.0))


def test_a_written_or_exchanged_weight_is_seen() -> None:
    kept, maker = Kept(), Maker([torch.ones(2)], torch.ones(2))
    kept.get(maker.values, maker.large, maker)
    write(maker.large)
    assert torch.equal(kept.get(maker.values, maker.large, maker), torch.full((2,), 3.0))
    maker.large = torch.zeros(2)
    assert torch.equal(kept.get(maker.values, maker.large, maker), torch.ones(2))


def test_what_is_made_in_another_way_is_made_again() -> None:
    kept, maker = Kept(), Maker([torch.ones(2)], None)
    for how in (torch.bfloat16, torch.float32, torch.float32):
        kept.get(maker.values, None, maker, how)
    assert maker.made == 2


def test_what_is_dropped_is_made_again() -> None:
    kept, maker = Kept(), Maker([torch.ones(2)], None)
    kept.get(maker.values, None, maker)
    kept.drop()
    kept.get(maker.values, None, maker)
    assert maker.made == 2
