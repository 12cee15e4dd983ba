"""Sizes of a base model without its weights: from the packaged table, from config.json, or from a skeleton.

Llamas and Mistrals are worked out from their numbers alone, without torch, so that a plan answers at once; any other model is built on
the meta device.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soka_cli.errors import ExitCode, SokaError
from soka_cli.models.packing_kind import packing_kind
from soka_cli.recipe.places import PACKAGE, locate
from soka_cli.recipe.schema import ModelSection
from soka_cli.run.write import read_json

SHAPE_TABLES = PACKAGE / "recipe" / "shapes"
WORKED_OUT = ("LlamaForCausalLM", "MistralForCausalLM")


@dataclass(frozen=True)
class LinearModule:
    """A linear layer that can be adapted: y = W x with W of out_features x in_features."""

    name: str
    out_features: int
    in_features: int

    @property
    def kind(self) -> str:
        """The last part of its name, e.g. q_proj."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Dimensions:
    """What a plan needs to know of a base model.

    Attributes:
        source: `packaged table`, or the folder that was read.
        parameters: all of them, tied ones once.
        hidden, intermediate, layers, vocabulary: widths of the residual stream and the feed-forward, blocks, tokens.
        attention: width of all query heads together; `key_value`: of all key heads.
        linear: parameters of the blocks' linear weights, those that packing a base packs.
        packed: how the files hold them: int8, nf4, fp4, or the name of another method; None where they are not packed.
        block: parameters of one block.
        targets: the modules that `target_modules` names, in the model's order.
    """

    source: str
    parameters: int
    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    attention: int
    key_value: int
    linear: int
    packed: str | None
    block: int
    targets: tuple[LinearModule, ...]

    @property
    def multiplied(self) -> int:
        """Entries of all matrices that every token is multiplied by: the blocks' and the output layer's."""
        return self.linear + self.vocabulary * self.hidden


def dimensions(model: ModelSection, target_modules: Sequence[str] | str, *, offline: bool = False) -> Dimensions:
    """The base model's sizes, without weights.

    A folder is read first, then the packaged table, then the Hub's config.json (or its local cache).

    Raises:
        SokaError: exit 2 where target_modules matches nothing, exit 3 where the model is in none of these places.
    """
    place = locate(model.name)
    tables = shape_table()
    if not isinstance(place, Path) and model.name in tables:
        return of_llama(tables[model.name], target_modules, source="packaged table")
    folder = place if isinstance(place, Path) and (place / "config.json").is_file() else fetched(model, offline)
    facts = read_facts(folder / "config.json")
    if facts is not None:
        return of_llama(facts, target_modules, source=str(folder))
    return of_skeleton(folder, target_modules, trust=model.trust_remote_code)


def shape_table() -> dict[str, dict[str, Any]]:
    """Hub id -> the numbers of its config.json, for models that may be planned without a network."""
    table: dict[str, dict[str, Any]] = {}
    for path in sorted(SHAPE_TABLES.glob("*.json")):
        table |= json.loads(path.read_text(encoding="utf8"))
    return table


def fetched(model: ModelSection, offline: bool) -> Path:
    """The folder with config.json of a model that is neither here nor in the table."""
    from soka_cli.models.snapshot import snapshot

    try:
        return snapshot(model.name, revision=model.revision, offline=offline, weights=False)
    except SokaError as error:
        known = f"sizes are packaged for {', '.join(shape_table())}"
        raise SokaError(
            error.what, where=error.where, why="; ".join(filter(None, (error.why, known))), hint=error.hint, exit_code=error.exit_code
        ) from None


def read_facts(path: Path) -> dict[str, Any] | None:
    """The numbers of a plain Llama's config.json; None for any other model, or a file that transformers should judge."""
    try:
        facts = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict) or facts.get("architectures") not in [[name] for name in WORKED_OUT]:
        return None
    wanted = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    return facts if all(isinstance(facts.get(name), int) and facts[name] > 0 for name in wanted) else None


def of_llama(facts: Mapping[str, Any], target_modules: Sequence[str] | str, *, source: str) -> Dimensions:
    """A Llama's sizes from the numbers of its config.json."""
    hidden, intermediate, layers = facts["hidden_size"], facts["intermediate_size"], facts["num_hidden_layers"]
    heads = facts["num_attention_heads"]
    head = facts.get("head_dim") or hidden // heads
    attention, key_value = heads * head, (facts.get("num_key_value_heads") or heads) * head
    block = {
        "self_attn.q_proj": (attention, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, attention),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    biased = {"self_attn": bool(facts.get("attention_bias")), "mlp": bool(facts.get("mlp_bias"))}
    of_block = sum(out * inner + out * biased[name.partition(".")[0]] for name, (out, inner) in block.items()) + 2 * hidden
    tables = facts["vocab_size"] * hidden * (1 if facts.get("tie_word_embeddings") else 2)
    linear = [LinearModule(f"model.layers.{layer}.{name}", *size) for layer in range(layers) for name, size in block.items()]
    head_module = LinearModule("lm_head", facts["vocab_size"], hidden)
    return Dimensions(
        source=source,
        parameters=tables + layers * of_block + hidden,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        vocabulary=facts["vocab_size"],
        attention=attention,
        key_value=key_value,
        linear=layers * sum(out * inner for out, inner in block.values()),
        packed=packing_kind(facts.get("quantization_config")),
        block=of_block,
        targets=tuple(chosen([*linear, head_module], target_modules)),
    )


def chosen(linear: Sequence[LinearModule], target_modules: Sequence[str] | str) -> list[LinearModule]:
    """The modules that PEFT would adapt: whole names or endings (a list), a pattern for the whole name, or all but the output layer.

    Raises:
        SokaError: exit 2 where nothing matches, listing the kinds there are.
    """
    if target_modules == "all-linear":
        return [module for module in linear if module.name != "lm_head"]
    if isinstance(target_modules, str):
        found = [module for module in linear if re.fullmatch(target_modules, module.name)]
    else:
        found = [module for module in linear if any(module.name == name or module.name.endswith(f".{name}") for name in target_modules)]
    if found:
        return found
    kinds = list(dict.fromkeys(module.kind for module in linear))
    asked = target_modules if isinstance(target_modules, str) else ", ".join(target_modules)
    raise SokaError(
        f"target_modules ({asked}) matches no linear module",
        where="adapter.target_modules",
        why=f"the linear modules are called {', '.join(kinds)}",
        hint=f"adapter.target_modules='[{', '.join(kinds[:2])}]', or adapter.target_modules=all-linear",
        exit_code=ExitCode.USAGE,
    )


def unmatched(target_modules: Sequence[str] | str, names: Sequence[str]) -> list[str]:
    """Those of the names asked for that none of the modules found answers to; a pattern is one name and has matched."""
    if isinstance(target_modules, str):
        return []
    return [wanted for wanted in target_modules if not any(f".{name}".endswith(f".{wanted}") for name in names)]


def is_in_block(name: str) -> bool:
    """Whether a parameter is one of a numbered block's, e.g. model.layers.3.mlp.up_proj.weight."""
    return any(part.isdecimal() for part in name.split("."))


def of_skeleton(folder: Path, target_modules: Sequence[str] | str, *, trust: bool = False) -> Dimensions:
    """Any model's sizes, from its modules on the meta device."""
    from soka_cli.models.skeleton import skeleton, targets, ties

    model = skeleton(folder, trust=trust)
    config = model.config.get_text_config()
    tied = ties(model)
    own = {name: parameter for name, parameter in model.named_parameters(remove_duplicate=False) if name not in tied}
    hidden = config.hidden_size
    heads = getattr(config, "num_attention_heads", None) or 1
    head = getattr(config, "head_dim", None) or hidden // heads
    return Dimensions(
        source=str(folder),
        parameters=sum(parameter.numel() for parameter in own.values()),
        hidden=hidden,
        intermediate=getattr(config, "intermediate_size", None) or 4 * hidden,
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        attention=heads * head,
        key_value=(getattr(config, "num_key_value_heads", None) or heads) * head,
        linear=sum(one.out_features * one.in_features for one in targets(model, "all-linear").values()),
        packed=packing_kind(read_json(folder / "config.json").get("quantization_config")),
        block=sum(own[name].numel() for name in own if is_in_block(name)) // config.num_hidden_layers,
        targets=tuple(LinearModule(one.name, one.out_features, one.in_features) for one in targets(model, target_modules).values()),
    )
