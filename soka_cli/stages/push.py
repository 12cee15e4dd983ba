"""Upload a folder to the Hub: refused offline, after saying what goes where, with the Hub's own login alone."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.snapshot import HTTP_ERROR
from soka_cli.run.write import bytes_under

TRUE = {"1", "on", "true", "yes"}


@dataclass(frozen=True)
class Push:
    """A folder that is to go to a repository of the Hub, and as whom."""

    folder: Path
    repository: str
    private: bool
    account: str

    @property
    def files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    @property
    def question(self) -> str:
        """All that a person should know before saying yes."""
        seen = "only you and those you allow can see it" if self.private else "everybody can see it"
        return (
            f"upload {len(self.files)} files ({bytes_under(self.folder) / 1e6:.1f} MB) of {self.folder} to https://huggingface.co/"
            f"{self.repository} as {self.account}, {'private' if self.private else 'PUBLIC'} where it is new ({seen})?"
        )


def require_pushable(repository: str, *, offline: bool) -> None:
    """Before anything is exported: exit 2 for a name that the Hub does not take, exit 3 offline."""
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise SokaError(
            f"{repository} is no name of a Hub repository", where="--push", hint="--push OWNER/NAME", exit_code=ExitCode.USAGE
        ) from None
    if offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in TRUE:
        raise SokaError(
            "nothing can be uploaded: this call is offline",
            where="--push",
            why="--offline or HF_HUB_OFFLINE keeps soka from the network",
            hint="drop --offline, or export without --push",
            exit_code=ExitCode.ENVIRONMENT,
        )


def prepare(folder: Path, repository: str, *, private: bool) -> Push:
    """Ask the Hub who is logged in; nothing is written yet. Exit 3 where nobody is, or the Hub does not answer."""
    account = _asked(lambda: HfApi().whoami(), repository)
    return Push(folder, repository, private, str(account["name"]))


def upload(push: Push) -> str:
    """Make the repository where there is none, and upload the folder in one commit; returns its address. Exit 3 on a refusal."""
    api = HfApi()
    _asked(lambda: api.create_repo(push.repository, private=push.private, exist_ok=True), push.repository)
    message = "Upload an adapter exported by soka"
    _asked(lambda: api.upload_folder(repo_id=push.repository, folder_path=push.folder, commit_message=message), push.repository)
    return f"https://huggingface.co/{push.repository}"


def _asked(question: Any, repository: str) -> Any:
    """One call of the Hub, its failures in our words; the libraries' own messages name requests and may name tokens."""
    try:
        return question()
    except LocalTokenNotFoundError:
        raise _refused(repository, "nobody is logged in to the Hub here", "hf auth login, or set HF_TOKEN") from None
    except OfflineModeIsEnabled:
        raise _refused(repository, "this process is offline", "unset HF_HUB_OFFLINE") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "hf auth login with a token that may write there" if status in (401, 403) else "look at the name, and try again later"
        raise _refused(repository, f"the Hub answered with status {status}", hint) from None
    except (HTTP_ERROR, ConnectionError, TimeoutError):
        raise _refused(repository, "the Hub does not answer", "check the network, then give the same command again") from None


def _refused(repository: str, why: str, hint: str) -> SokaError:
    return SokaError(
        f"{repository} was not uploaded; the exported folder is kept",
        where="--push",
        why=why,
        hint=hint,
        exit_code=ExitCode.ENVIRONMENT,
    )
