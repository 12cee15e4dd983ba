"""What each verb will do here, as it follows from the checks."""

from collections.abc import Mapping, Sequence

from soka_cli.sandbox.isolation import find_isolation
from soka_cli.stages.check import Check
from soka_cli.stages.context import StageContext


def verb_rows(checks: Sequence[Check], context: StageContext | None) -> tuple[tuple[str, str], ...]:
    """(verb, what it does here), in the order of a run."""
    found = {check.name: check for check in checks}
    base = base_text(found, context)
    device = device_text(found)
    return (
        ("recipes", "lists, shows and copies what the package brings"),
        ("plan", "works without network and weights"),
        ("decompose", decompose_text(found, base, device)),
        ("train", train_text(found, base, device)),
        ("eval", f"asks on {device}; {judging_text()}"),
        ("score", judging_text()),
        ("generate", f"answers with {base} and the adapter on {device}, or asks a server"),
        ("merge", f"reads {base}, writes an ordinary model folder"),
        ("export", "writes the run's adapter for stock PEFT; --push needs the Hub"),
        ("report, compare", "draw what runs left, on the CPU"),
        ("run, sweep", f"do on {device} what decompose, train, eval, merge and report do here"),
        ("demo", f"the same on {device} with the packaged model, without network"),
        ("clean", "removes set-aside stages, after asking"),
        ("several processes", found["processes"].detail),
    )


def base_text(found: Mapping[str, Check], context: StageContext | None) -> str:
    """Where the base comes from."""
    if context is None:
        reach = "from the Hub" if found["hub"].status == "ok" else "from the caches or folders alone"
        return f"the base ({reach})"
    status = found["model"].status
    name = context.recipe.model.name
    return name if status == "ok" else f"{name} (downloaded first)" if status == "warn" else f"{name} (which cannot be had)"


def device_text(found: Mapping[str, Check]) -> str:
    device = found["device"]
    return "no device (refuses, exit 3)" if device.status == "fail" else device.detail.split(",")[0]


def decompose_text(found: Mapping[str, Check], base: str, device: str) -> str:
    room = found.get("start's memory")
    if room is None:
        return f"reads {base} a weight at a time, computes on {device}"
    refusal = "" if room.status == "ok" else "; memory is short (it refuses, exit 6)"
    return f"loads {base} whole for its start, computes on {device}{refusal}"


def train_text(found: Mapping[str, Check], base: str, device: str) -> str:
    room = found.get("training memory")
    tight = "" if room is None or room.status == "ok" else "; memory is short (exit 6 is to be expected)"
    return f"trains over {base} on {device}{tight}"


def judging_text() -> str:
    layer = find_isolation().layer
    return "judges programs in the sandbox" if layer is not None else "refuses mbpp and humaneval, for which nothing isolates programs"
