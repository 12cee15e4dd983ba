"""Which server answers in place of a model of this machine, as the user asked for it."""

from dataclasses import dataclass

from soka_cli.errors import ExitCode, SokaError


@dataclass(frozen=True)
class ServerChoice:
    """An OpenAI-compatible server's address, and the model that is meant there (None: the only one)."""

    url: str
    model: str | None = None

    @classmethod
    def of(cls, backend: str, url: str | None, model: str | None) -> "ServerChoice | None":
        """From the options --backend, --url and --served-model; None where the model runs here. Exit 2 where they do not go together."""
        if backend == "vllm" and url is not None:
            return cls(url, model)
        if backend == "vllm" or url is not None or model is not None:
            lacks = backend == "vllm"
            raise SokaError(
                "--backend vllm needs the address of a server." if lacks else "--url and --served-model belong to --backend vllm.",
                where="--backend",
                hint="--backend vllm --url http://localhost:8000/v1" + ("" if lacks else ", or drop them"),
                exit_code=ExitCode.USAGE,
            )
        return None
