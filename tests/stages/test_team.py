"""What the processes of a training tell one another."""

from collections import Counter

import pytest
import torch

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.schema import TrainSection
from soka_cli.stages.launch import Worker
from soka_cli.stages.team import Team
from soka_cli.stages.train import _require_whole_batches


def test_a_process_alone_is_told_what_it_says() -> None:
    team = Team.assembled(Worker(), torch.device("cpu"))
    assert team.leads and team.told("word") == "word" and team.gathered(3) == [3]
    assert team.total(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("pieces", [1, 4, 5, 12])
def test_every_piece_counts_once_and_all_have_equally_many(count: int, pieces: int) -> None:
    shares = [Team(rank, count).share(range(pieces)) for rank in range(count)]
    assert len({len(share) for share in shares}) == 1
    assert Counter(piece for share in shares for piece, counts in share if counts) == Counter(range(pieces))


def test_a_batch_that_processes_cannot_share_is_refused_with_those_that_they_can() -> None:
    with pytest.raises(SokaError, match="can't share 8 rows") as caught:
        _require_whole_batches(TrainSection(batch_size=8, micro_batch_size=2), 3)
    assert caught.value.exit_code is ExitCode.USAGE
    assert "train.batch_size=6 or 12" in str(caught.value.hint)
    _require_whole_batches(TrainSection(batch_size=12, micro_batch_size=2), 3)
