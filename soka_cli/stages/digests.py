"""What a run was made of, by digest, as its manifest has it: recipe, base, rows, factors, adapter, merged model."""

from collections.abc import Iterator
from typing import Any

from soka_cli.run.manifest import Manifest, StageRecord

OUTPUTS = {
    "decompose/factors.safetensors": "factors at the start",
    "train/adapter/adapter_model.safetensors": "trained adapter",
    "train/model/model.safetensors": "trained model",
}
"""Files of stages whose digests are shown, and as what."""
INPUTS = {
    "base": "base model",
    "data_sha256": "items asked",
    "shots_sha256": "solved items shown",
    "template_sha256": "prompt's template",
    "protocol_sha256": "protocol",
    "model_sha256": "whole model judged",
}
"""Inputs of stages that are digests themselves. An adapter that was judged stands among the outputs."""


def digests(manifest: Manifest) -> list[dict[str, Any]]:
    """Rows of what it is, its sha256 in hex, and the stages that read or wrote it; equal ones together, in the manifest's order."""
    found: dict[tuple[str, str], list[str]] = {}
    if manifest.recipe_sha256 is not None:
        found["recipe.yaml", manifest.recipe_sha256] = []
    for stage, record in manifest.stages.items():
        if stage != "report":
            for what, sha256 in of_stage(record):
                found.setdefault((what, sha256), []).append(stage)
    return [{"what": what, "sha256": sha256, "stages": stages} for (what, sha256), stages in found.items()]


def of_stage(record: StageRecord) -> Iterator[tuple[str, str]]:
    """What one stage read and wrote. Rows of the Hub have no digest; the recipe names their revision."""
    for name, what in INPUTS.items():
        if isinstance(sha256 := record.inputs.get(name), str):
            yield what, sha256
    data = record.inputs.get("data")
    if isinstance(data, dict):
        yield from of_rows(data)
    training = record.inputs.get("train")
    if isinstance(training, dict) and "init_from" in training:
        yield "earlier adapter", training["init_from"]
    yield from ((OUTPUTS[output.path], output.sha256) for output in record.outputs if output.path in OUTPUTS)


def of_rows(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The local files of a data section, as `data_inputs` records them."""
    train = data.get("train")
    sources: list[Any] = train if isinstance(train, list) else [train]
    for number, source in enumerate(sources, start=1):
        if isinstance(source, dict) and "sha256" in source:
            yield f"training rows {number}" if train is sources else "training rows", source["sha256"]
    if isinstance(held_out := data.get("validation"), dict) and "sha256" in held_out:
        yield "held-out rows", held_out["sha256"]
