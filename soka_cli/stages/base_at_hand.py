"""The base model's files where they are on this machine; nothing is fetched for a report."""

from typing import TYPE_CHECKING

from soka_cli.errors import SokaError
from soka_cli.recipe.schema import ModelSection

if TYPE_CHECKING:
    from soka_cli.models.checkpoint import Checkpoint


def base_at_hand(section: ModelSection) -> "Checkpoint | None":
    """The checkpoint, None where its folder or cache is not here or holds no weights that can be read."""
    from soka_cli.models.checkpoint import Checkpoint
    from soka_cli.models.snapshot import snapshot

    try:
        return Checkpoint(snapshot(section.name, revision=section.revision, offline=True))
    except SokaError:
        return None
