"""Whether the Hub can be asked from here, and whether an account is logged in."""

import os

from soka_cli.stages.check import Check

PATIENCE = 5.0  # seconds
LOGIN = "hf auth login, for gated and private models"


def hub_check(offline: bool) -> Check:
    """Asks the Hub's front page once; never where the run is offline. Of an account only that there is one is said."""
    import huggingface_hub
    from huggingface_hub import constants

    account = "an account is logged in" if huggingface_hub.get_token() else "no account is logged in"
    if offline or constants.HF_HUB_OFFLINE:
        return Check("hub", "warn", f"not asked: offline; {account}", "models and data have to be in the caches, or folders and files")
    why = unreachable(constants.ENDPOINT)
    if why:
        proxy = "a proxy is set" if any(name in os.environ for name in ("HTTPS_PROXY", "https_proxy")) else "no proxy is set"
        hint = "HTTPS_PROXY names a proxy, HF_ENDPOINT a mirror; with --offline soka does not ask"
        return Check("hub", "warn", f"it does not answer ({why}; {proxy}); {account}", hint)
    return Check("hub", "ok", f"it answers; {account}", "" if "no " not in account else LOGIN)


def unreachable(address: str) -> str:
    """Why there is no answer; empty where there is one, whatever it says."""
    import requests

    try:
        requests.head(address, timeout=PATIENCE)
    except requests.RequestException as error:
        return type(error).__name__
    return ""
