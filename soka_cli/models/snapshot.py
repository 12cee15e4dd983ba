"""From a model's name to a folder on this machine: a folder, the packaged model, or a repository of the Hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.checkpoint import INDEX_FILE, WEIGHTS_FILE, read_index, weight_files
from soka_cli.recipe.places import locate

SMALL_FILES = ("*.json", "*.py", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
SUBFOLDERS = "*/*"


def snapshot(name: str, *, revision: str | None = None, offline: bool = False, weights: bool = True) -> Path:
    """The folder that holds config.json, the tokenizer and, with `weights`, the safetensors files of a model.

    Args:
        name: a folder, `soka:demo/model`, or a Hub id; a folder of that name wins over the Hub.
        revision: commit, tag or branch of the Hub repository; a folder has none.
        offline: read the Hub's local cache only.
        weights: False fetches config and tokenizer alone.

    Raises:
        SokaError: exit 3, where the model is gated, missing, incomplete or cannot be reached.
    """
    place = locate(name)
    folder = _given_folder(name, place) if isinstance(place, Path) or _looks_like_path(name) else None
    if folder is None:
        folder = _from_hub(name, revision, offline, SMALL_FILES)
        if weights:
            index = folder / INDEX_FILE
            names = sorted(set(read_index(index).values())) if index.is_file() else [WEIGHTS_FILE]
            folder = _from_hub(name, revision, offline, names)
    if not (folder / "config.json").is_file():
        raise SokaError(
            f"{name} holds no model: config.json is missing",
            where=str(folder),
            hint="name a folder or Hub id with config.json, the tokenizer and *.safetensors: model.name=FOLDER",
            exit_code=ExitCode.ENVIRONMENT,
        )
    if weights:
        weight_files(folder)
    return folder


def _looks_like_path(name: str) -> bool:
    """Whether nobody could mean a Hub id, which is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or ":" in name


def _given_folder(name: str, place: str | Path) -> Path:
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    raise SokaError(
        f"the model folder {name} is a file" if folder.exists() else f"there is no model folder {name}",
        where="model.name",
        hint="name a folder that holds config.json and *.safetensors, or a Hub id: model.name=meta-llama/Llama-2-7b-hf",
        exit_code=ExitCode.ENVIRONMENT,
    )


def _from_hub(name: str, revision: str | None, offline: bool, patterns: Sequence[str]) -> Path:
    """One download, its failures in our words: the hub's own messages name requests and addresses, which no user needs."""
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), ignore_patterns=[SUBFOLDERS], local_files_only=offline
            )
        )
    except GatedRepoError:
        raise _hub_error(
            f"{name} is gated: its licence has to be accepted first",
            why="the Hub answers only accounts that accepted the licence, or no account is logged in here",
            hint=f"accept the licence at https://huggingface.co/{name}, then run `hf auth login`; or download it elsewhere and "
            "give the folder: model.name=FOLDER",
        ) from None
    except RepositoryNotFoundError:
        raise _hub_error(
            f"the Hub has no model {name}, or it is private",
            why="the name is misspelt, or the account logged in here may not see it",
            hint=f"look at https://huggingface.co/{name}; for a private model run `hf auth login`; a folder works too: model.name=FOLDER",
        ) from None
    except RevisionNotFoundError:
        raise _hub_error(
            f"{name} has no revision {revision}",
            hint=f"take a commit listed at https://huggingface.co/{name}/commits/main, or drop model.revision",
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise _unreachable(name, offline or isinstance(error.__cause__ or error, OfflineModeIsEnabled)) from None
    except HFValidationError:
        raise _hub_error(
            f"{name} is neither a folder here nor a possible Hub id",
            hint="name a folder that exists or owner/name: model.name=meta-llama/Llama-2-7b-hf",
        ) from None
    except HfHubHTTPError as error:
        raise _hub_error(
            f"the Hub refused {name} with status {error.response.status_code}",
            hint="try again later, or download it elsewhere and give the folder: model.name=FOLDER",
        ) from None
    except OSError as error:
        raise _failed_download(name, error) from None
    except HTTP_ERROR:
        raise _unreachable(name, offline) from None


# The HTTP library's own base class: httpx under hub 1, httpx2 under hub 2.
HTTP_ERROR = HfHubHTTPError.__bases__[0]


def _unreachable(name: str, offline: bool) -> SokaError:
    if offline:
        return _hub_error(
            f"{name} is not (or not whole) in the local Hub cache, and this run is offline",
            why="--offline or HF_HUB_OFFLINE=1 keeps soka from the network",
            hint=f"drop --offline, or run `hf download {name}` where there is a network, or give a folder: model.name=FOLDER",
        )
    return _hub_error(
        f"{name} cannot be downloaded: the Hub does not answer",
        why="no network, a proxy that refuses, or the Hub is down; the local cache does not hold the model",
        hint=f"check the network, or run `hf download {name}` elsewhere and give the folder: model.name=FOLDER",
    )


def _failed_download(name: str, error: OSError) -> SokaError:
    if isinstance(error, ConnectionError):
        return _unreachable(name, offline=False)
    return _hub_error(
        f"{name} could not be written to the Hub cache: {error.strerror or type(error).__name__}",
        hint="free disk space or point HF_HOME at a folder with room, then run the command again",
    )


def _hub_error(what: str, *, why: str = "", hint: str) -> SokaError:
    return SokaError(what, where="model.name", why=why, hint=hint, exit_code=ExitCode.ENVIRONMENT)
