"""What a recipe may say: one typed field and one sentence with its unit for each option.

A value that the contract names and nothing implements yet is not in these types, so it is refused with what is there.
"""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Strict, Tag, model_validator
from pydantic_core import PydanticCustomError

from soka_cli.recipe.choices import OneOf

SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


BASELINE = ("target_modules", "rank", "alpha", "match_parameters", "config")
METHOD_READS = {
    "soka": (
        "target_modules",
        "shape",
        "shape_pattern",
        "rank",
        "init",
        "init_rows",
        "init_steps",
        "init_lr",
        "sigma",
        "product",
        "fold_start",
    ),
    "lora": BASELINE,
    "pissa": BASELINE,
    "lokr": BASELINE,
    "dora": BASELINE,
    "full": (),
    "peft": ("target_modules", "match_parameters", "config"),
}
"""Which options of the adapter section a method reads, beside `method`; `adapter_reads` adds those of a method that is matched."""

RANKED = ("lora", "pissa", "lokr", "dora")
"""Methods whose size is one rank for all modules."""

COUNTED_RULES = ("fixed", "budget")
"""Rank rules whose number of parameters is known before a weight is read."""

UNPACKED_METHODS = {
    "full": "trains every weight, and a packed one cannot be trained",
    "pissa": "takes its start out of the base's weights, and a packed one would lose the difference",
}
"""The methods that need a base whose weights are not packed, and why."""

RULE_READS: dict[str, tuple[str, ...]] = {
    "min": ("tau", "elbow", "max", "spectrum"),
    "energy": ("tau", "max", "spectrum"),
    "elbow": ("elbow", "max", "spectrum"),
    "gavish-donoho": ("noise", "max", "spectrum"),
    "fixed": ("value", "spectrum"),
    "budget": ("parameters", "floor", "max", "spectrum"),
}
"""Which options of the rank section a rule reads, beside `rule`. Its keys are the rules that there are; `kron/rank.py` has what they do."""

TRAIN_METHODS = {
    "sigma_lr": ("soka",),
    "lora_b_lr": ("lora", "pissa", "dora"),
    "init_from": ("soka", "lora", "lokr", "dora", "peft"),
}
"""Options of the train section that some methods alone read. A PiSSA result is saved as LoRA of twice the rank."""

SCHEDULE_READS: dict[str, tuple[str, ...]] = {
    "cosine": ("num_cycles",),
    "linear": (),
    "constant": (),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles"),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": ("num_decay_steps", "min_lr_ratio", "num_cycles"),
}
"""Which of transformers' settings a schedule reads under `schedule_config`."""

SCHEDULE_NEEDS = {"cosine_with_min_lr": ("min_lr", "min_lr_rate"), "warmup_stable_decay": ("num_decay_steps",)}
"""Settings of which a schedule needs one."""

OFFLOADED_METHODS = ("soka", "lora", "lokr")
"""The methods whose adapters are made without the base's values, so that these may lie on the disk (`model.max_memory`)."""

READS_THE_BASE = ("modules_to_save", "trainable_token_indices", "target_parameters")
"""Fields of PEFT's configurations that train weights of the base, or copies of them."""

INIT_READS = {
    "weight": (),
    "random": (),
    "gradient": ("init_rows",),
    "early-update": ("init_rows", "init_steps", "init_lr"),
}
"""Which of the options `init_...` a start reads."""

DATA_INITS = tuple(init for init, reads in INIT_READS.items() if reads)
"""The starts that depend on the training data."""

TASK_PROTOCOLS: dict[str, tuple[str, ...]] = {
    "gsm8k": ("plain", "pissa", "metamath", "lm-eval", "lm-eval-cot"),
    "math": ("plain", "pissa", "metamath", "lm-eval", "lm-eval-minerva"),
    "mbpp": ("plain", "pissa", "lm-eval", "evalplus"),
    "humaneval": ("plain", "pissa", "lm-eval", "evalplus"),
}
"""The protocols of each task; each is a file configs/protocols/<protocol>-<task>.yaml, or comes with `tasks/added.py`."""

TRAINING_TASKS = ["gsm8k", "math", "mbpp"]
"""The tasks that render training rows."""

PROGRAM_TASKS = ["mbpp", "humaneval"]
"""The tasks whose answers are programs, which have pass@k."""

TaskName = Annotated[str, OneOf(lambda: TASK_PROTOCOLS)]
TrainingTaskName = Annotated[str, OneOf(lambda: TRAINING_TASKS)]
ProtocolName = Annotated[str, OneOf(lambda: dict.fromkeys(name for names in TASK_PROTOCOLS.values() for name in names))]
RuleName = Annotated[str, OneOf(lambda: RULE_READS)]
Batching = Literal["auto", "continuous", "padded"]

SHOWS_ROWS = (("gsm8k", "lm-eval"), ("math", "lm-eval-minerva"))
"""Task and protocol whose shots come from training rows."""


def misfit(message: str, *concerns: str) -> PydanticCustomError:
    """Options that are right each for itself and do not go together.

    Args:
        concerns: their dotted paths inside the section, the one to mend first.
    """
    return PydanticCustomError("misfit", "{message}", {"message": message, "concerns": list(concerns)})


def no_boolean(value: Any) -> Any:
    """Python takes True for 1; a recipe does not."""
    if isinstance(value, bool):
        raise ValueError(f"is {str(value).lower()}, not a number")
    return value


def count_with_suffix(value: Any) -> Any:
    """`0.99M` -> 990000. Anything else is left for pydantic to judge."""
    if not isinstance(value, str):
        return no_boolean(value)
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([kmbg]?)\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError(f"is {value!r}, not a count; write 991353, 0.99M, 64k or 1B")
    count = Decimal(match[1].replace("_", "")) * SUFFIXES[match[2].lower()]
    if count != count.to_integral_value():
        raise ValueError(f"is {count:f}, not a whole number")
    return int(count)


def size_with_unit(value: Any) -> Any:
    """`24GiB` -> 25769803776, `24GB` or `24G` -> 24000000000. Anything else is left for pydantic to judge."""
    if not isinstance(value, str):
        return no_boolean(value)
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*(?:([kmgt])(i?))?b?\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError(f"is {value!r}, not a size; write 8GiB, 8GB (8G) or bytes")
    power = " kmgt".index((match[2] or " ").lower())
    return int(Decimal(match[1].replace("_", "")) * (1024 if match[3] else 1000) ** power)


Count = Annotated[int, BeforeValidator(count_with_suffix, json_schema_input_type=int | str)]
PositiveCount = Annotated[Count, Field(ge=1)]
Size = Annotated[int, BeforeValidator(size_with_unit, json_schema_input_type=int | str), Field(ge=1)]
Number = Annotated[float, BeforeValidator(no_boolean), Field(allow_inf_nan=False)]
Fraction = Annotated[Number, Field(gt=0.0, le=1.0)]
Rate = Annotated[Number, Field(gt=0.0)]
Level = Annotated[Number, Field(ge=0.0)]
Switch = Annotated[bool, Strict()]
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of the recipe: frozen, and no key that it does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def named(self) -> set[str]:
        """The options that were set, null not counting as set."""
        return {name for name in self.model_fields_set if getattr(self, name) is not None}


class MaxMemorySection(Section):
    """How much of the frozen weights lies where; what finds no room stays on the disk. The bounds of transformers' `max_memory`."""

    gpu: Size | None = Field(default=None, description="Most bytes of weights on the GPU that computes, e.g. 8GiB.")
    cpu: Size | None = Field(
        default=None, description="Most bytes of weights in main memory, e.g. 24GiB; null takes 9 tenths of what is free."
    )

    @model_validator(mode="after")
    def bounds_something(self) -> "MaxMemorySection":
        if self.gpu is None and self.cpu is None:
            raise misfit("name gpu or cpu or both, e.g. {gpu: 8GiB, cpu: 24GiB}", "gpu", "cpu")
        return self


class ModelSection(Section):
    """The pre-trained base."""

    name: Name = Field(description="Hub id or folder of the base model; soka:demo/model is the packaged one.")
    revision: Name | None = Field(default=None, description="Commit of the Hub repository; null takes the default branch.")
    trust_remote_code: Switch = Field(default=False, description="Run the Python code that comes with the model.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="bfloat16", description="Type the frozen weights are held in.")
    quantization: Literal["none", "int8", "nf4"] = Field(
        default="none", description="How the frozen linear weights are packed; int8 and nf4 need the extra `quant`."
    )
    max_memory: MaxMemorySection | None = Field(
        default=None, description="Bounds of the frozen weights, for a base that fits no GPU: the rest lies in main memory and on the disk."
    )


class ExplicitShape(Section):
    """The left factor's size; the right one follows: p = out / m, q = in / n."""

    m: PositiveCount = Field(description="Rows of U.")
    n: PositiveCount = Field(description="Columns of U.")


class BlockShape(Section):
    """Square right factors: p = q = block, m = out / block, n = in / block."""

    block: PositiveCount = Field(description="Rows and columns of V.")


def kind_of_shape(value: Any) -> str | None:
    """Which form of shape is meant, so that an error speaks of that form alone."""
    if isinstance(value, str):
        return "<name>"
    if isinstance(value, dict):
        return "<explicit>" if "block" not in value and ("m" in value or "n" in value) else "<block>"
    if isinstance(value, BlockShape):
        return "<block>"
    return "<explicit>" if isinstance(value, ExplicitShape) else None


ShapeChoice = Annotated[
    Annotated[Literal["balanced", "search"], Tag("<name>")]
    | Annotated[BlockShape, Tag("<block>")]
    | Annotated[ExplicitShape, Tag("<explicit>")],
    Discriminator(
        kind_of_shape, custom_error_type="shape", custom_error_message="is no shape; write balanced, search, {block: 64} or {m: 64, n: 64}"
    ),
]


def a_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is {value!r}, no regular expression: {error}") from None
    return value


Pattern = Annotated[str, AfterValidator(a_pattern)]


def modules_named(value: Any) -> Any:
    """Names (a list) or a pattern (a string), never nothing."""
    if isinstance(value, str) and value:
        return value if value == "all-linear" else a_pattern(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(name, str) and name for name in value):
        return list(value)
    raise ValueError(f"is {value!r}; write a list of names ([q_proj, v_proj]), a pattern, or all-linear")


TargetModules = Annotated[list[str] | str, BeforeValidator(modules_named)]


def count_or_method(value: Any) -> Any:
    """A count, or the name of a method that has one."""
    names = ("soka", *RANKED)
    if isinstance(value, str) and value in names:
        return value
    try:
        count = count_with_suffix(value)
    except ValueError:
        raise ValueError(f"is {value!r}; write a count (991353, 0.99M) or {', '.join(names)}") from None
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"is {value!r}; write a count of 1 or more, or {', '.join(names)}")
    return count


MatchedParameters = Annotated[int | str, BeforeValidator(count_or_method)]


class RankSection(Section):
    """How many terms each module keeps."""

    rule: RuleName = Field(
        default="min", description="min takes the smallest of energy, elbow and max; budget shares one total out over all modules."
    )
    tau: Fraction = Field(default=0.90, description="Share of the weight's energy that rule energy (and min) keeps.")
    elbow: Literal["gap", "relative-gap", "chord"] = Field(
        default="gap", description="How the elbow of the spectrum is found: largest drop, largest drop by ratio, farthest from the chord."
    )
    max: PositiveCount = Field(default=16, description="Most terms a module may keep, in terms.")
    value: PositiveCount | None = Field(default=None, description="Terms a module keeps under rule fixed; the rank of the other methods.")
    noise: Rate | None = Field(
        default=None, description="Standard deviation of the noise in an entry of the weight, for rule gavish-donoho; null estimates it."
    )
    parameters: PositiveCount | None = Field(
        default=None, description="Parameters of all modules together under rule budget, e.g. 991353 or 0.99M."
    )
    floor: Annotated[Count, Field(ge=0)] = Field(default=0, description="Terms that every module keeps first under rule budget, in terms.")
    spectrum: Literal["leading", "full"] = Field(
        default="leading", description="leading computes the singular values that the rule reads, full computes them all."
    )

    @model_validator(mode="after")
    def options_belong_to_the_rule(self) -> "RankSection":
        reads = RULE_READS[self.rule]
        if found := sorted(self.named() - {"rule", *reads}):
            readers = [rule for rule, names in RULE_READS.items() if found[0] in names]
            raise misfit(
                f"rule {self.rule} does not read {', '.join(found)}; drop it, or write rule: {' or '.join(readers)}", *found, "rule"
            )
        if self.rule == "fixed" and self.value is None:
            raise misfit("rule fixed needs value, e.g. {rule: fixed, value: 2}", "rule", "value")
        if self.rule == "budget" and self.parameters is None:
            raise misfit("rule budget needs parameters, e.g. {rule: budget, parameters: 991353}", "rule", "parameters")
        if self.floor > self.max:
            raise misfit(f"floor {self.floor} is above max {self.max}", "floor", "max")
        return self


class AdapterSection(Section):
    """What is trained."""

    method: Literal["soka", "lora", "pissa", "lokr", "dora", "full", "peft"] = Field(
        default="soka", description="full trains every weight, peft takes the method of PEFT that config names."
    )
    target_modules: TargetModules = Field(
        default=["q_proj", "v_proj"], description="Name endings (list), a pattern (string), or all-linear."
    )
    shape: ShapeChoice = Field(default="balanced", description="Factor sizes of every target; search compares all that divide.")
    shape_pattern: dict[Pattern, ShapeChoice] = Field(default={}, description="Shapes for modules whose name matches the key, a pattern.")
    rank: RankSection = Field(default=RankSection(), description="Terms per module.")
    init: Literal["weight", "random", "gradient", "early-update"] = Field(
        default="weight", description="Whose leading terms the start is; random takes the weight's sizes and sigmas alone."
    )
    init_rows: PositiveCount = Field(default=64, description="Training rows of the gradient, or of each early step, in rows.")
    init_steps: PositiveCount = Field(default=10, description="Early steps of full training, whose update is decomposed.")
    init_lr: Rate = Field(default=1e-4, description="Learning rate of the early steps.")
    sigma: Literal["separate", "split", "rms"] = Field(
        default="separate",
        description="Factors of norm 1; split folds sqrt(sigma) into both, rms scales both to entries of rms 1. Files and count stay.",
    )
    alpha: Rate | None = Field(default=None, description="Scale of lora, pissa, lokr and dora; null takes the rank.")
    match_parameters: MatchedParameters | None = Field(
        default=None, description="Takes the rank whose parameters come nearest to this count, or to what a method would train here."
    )
    config: dict[str, Any] = Field(default={}, description="Further fields of PEFT's own configuration; for peft also peft_type.")
    product: Literal["auto", "factored", "merged", "dense"] = Field(
        default="auto", description="How the update is computed; auto takes the cheapest for each layer and batch. Changes speed alone."
    )
    fold_start: Switch = Field(
        default=False,
        description="Trains with theta0 taken out of the base weights, so that it costs no product; main memory keeps them as they were. "
        "The start is the base up to rounding alone, which shows in bf16.",
    )

    @model_validator(mode="after")
    def options_belong_to_the_method(self) -> "AdapterSection":
        if found := sorted(self.named() - {"method", *adapter_reads(self)}):
            pronoun = "it" if len(found) == 1 else "them"
            raise misfit(f"method {self.method} does not read {', '.join(found)}; drop {pronoun}", *found, "method")
        starting = {name for names in INIT_READS.values() for name in names}
        if found := sorted(self.named() & starting - set(INIT_READS[self.init])):
            readers = [init for init, names in INIT_READS.items() if found[0] in names]
            raise misfit(
                f"init {self.init} does not read {', '.join(found)}; drop it, or write init: {' or '.join(readers)}", *found, "init"
            )
        if self.method in RANKED or self.match_parameters is not None:
            self._require_rank()
        if (self.method == "peft") != ("peft_type" in self.config):
            message = (
                "method peft needs config: {peft_type: LOHA, ...}" if self.method == "peft" else "config.peft_type belongs to method: peft"
            )
            raise misfit(message, "config", "method")
        return self

    def _require_rank(self) -> None:
        """A rank that is given, or what it is to match."""
        match, rank = self.match_parameters, self.rank
        if isinstance(match, int):
            if "rank" in self.named():
                raise misfit("match_parameters chooses the rank; drop rank", "rank", "match_parameters")
        elif match == "soka":
            if rank.rule not in COUNTED_RULES:
                raise misfit(
                    f"rule {rank.rule} tells its parameters only after soka decompose, which prints them: match_parameters: COUNT",
                    "match_parameters",
                    "rank",
                )
        elif rank.rule != "fixed":
            raise misfit(f"method {match or self.method} needs rank: {{rule: fixed, value: r}}", "rank", "method")
        elif "spectrum" in rank.named():
            raise misfit(f"method {match or self.method} does not read rank.spectrum; drop it", "rank.spectrum", "method")


def adapter_reads(section: AdapterSection) -> tuple[str, ...]:
    """The options that the section's method reads, and those that say what it matches."""
    reads = METHOD_READS[section.method]
    if section.match_parameters is None:
        return reads
    if isinstance(section.match_parameters, int):
        return tuple(name for name in reads if name != "rank" or "rank" in section.named())
    return tuple(dict.fromkeys((*reads, "rank", *(METHOD_READS["soka"] if section.match_parameters == "soka" else ()))))


class SourceSection(Section):
    """Rows to train on: a task's own rendering, two columns, or a column of conversations."""

    path: Name = Field(description="Hub id, or a .jsonl, .json, .csv or .parquet file.")
    task: TrainingTaskName | None = Field(default=None, description="The task that renders prompt and target.")
    revision: Name | None = Field(default=None, description="Commit of the Hub data set.")
    config: Name | None = Field(default=None, description="Configuration of the Hub data set, e.g. main.")
    split: Name = Field(default="train", description="Split of the Hub data set.")
    rows: PositiveCount | None = Field(default=None, description="First rows that are used, in rows; null takes all.")
    prompt: Name | None = Field(default=None, description="Column of the prompt.")
    target: Name | None = Field(default=None, description="Column of the target.")
    messages: Name | None = Field(
        default=None, description="Column of a conversation, a list of {role, content}; the assistant's turns are learnt."
    )
    filter: dict[str, str] = Field(default={}, description="Keeps the rows whose columns hold these values.")
    weight: Rate | None = Field(
        default=None,
        description="This source's share of a pass, relative to the other weights; null takes 1, and every row once where none is named.",
    )

    @model_validator(mode="after")
    def task_or_columns(self) -> "SourceSection":
        columns = [name for name in ("prompt", "target") if getattr(self, name) is not None]
        if self.messages is not None and (other := [*columns, *(["task"] if self.task is not None else [])]):
            raise misfit(f"messages hold prompt and target; drop {' and '.join(other)} or drop messages", "messages", *other)
        if self.task is not None and columns:
            raise misfit(f"a task renders its own prompt and target; drop {' and '.join(columns)} or drop task", *columns, "task")
        if self.task is None and self.messages is None and len(columns) < 2:
            raise misfit(
                "name a task (task: gsm8k) or both columns (prompt: question, target: answer), or messages (messages: messages)",
                "prompt",
                "target",
                "task",
                "messages",
            )
        return self


class ValidationSection(Section):
    """Held-out rows that give eval_loss: a share of the training rows, or a file of the same columns."""

    fraction: Annotated[Number, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None, description="Share of the training rows, fixed by the seed."
    )
    path: Name | None = Field(default=None, description="Hub id or file, read with the (first) training source's task or columns.")
    split: Name | None = Field(default=None, description="Split of the Hub data set; null takes the training source's.")
    rows: PositiveCount | None = Field(default=None, description="First rows that are used, in rows; null takes all.")

    @model_validator(mode="after")
    def fraction_or_path(self) -> "ValidationSection":
        if (self.fraction is None) == (self.path is None):
            raise misfit("name fraction or path, one of them", "fraction", "path")
        if self.fraction is not None and (self.split is not None or self.rows is not None):
            raise misfit("split and rows belong to path, not to fraction", "split", "rows", "fraction")
        return self


def kind_of_sources(value: Any) -> str:
    """One source or a list of them, so that an error speaks of that form alone."""
    return "<several>" if isinstance(value, (list, tuple)) else "<one>"


def some(value: list[SourceSection]) -> list[SourceSection]:
    if not value:
        raise ValueError("names no source; write a mapping, or a list of mappings")
    return value


Sources = Annotated[
    Annotated[SourceSection, Tag("<one>")] | Annotated[list[SourceSection], AfterValidator(some), Tag("<several>")],
    Discriminator(kind_of_sources),
]


class DataSection(Section):
    """What the model learns from."""

    train: Sources = Field(description="Training rows: one source, or a list of sources that are mixed by weight.")
    validation: ValidationSection | None = Field(default=None, description="Held-out rows for eval_loss.")
    decontaminate: Literal["none", "drop"] = Field(
        default="none",
        description="drop leaves out training and validation rows that share 13 words in a row, or a whole problem, with an eval entry.",
    )
    template: Literal["alpaca", "plain", "chat"] = Field(default="plain", description="Words around prompt and target.")
    max_length: PositiveCount = Field(default=512, description="Longest row, in tokens; longer ones are cut on the right.")
    packing: bool = Field(
        default=False,
        description="Puts rows that do not see one another into sequences of at most max_length tokens; batches then count sequences.",
    )

    @property
    def sources(self) -> tuple[SourceSection, ...]:
        """The training sources, however many."""
        return (self.train,) if isinstance(self.train, SourceSection) else tuple(self.train)

    @model_validator(mode="after")
    def a_source_alone_has_no_weight(self) -> "DataSection":
        if len(self.sources) == 1 and self.sources[0].weight is not None:
            inside = "train" if isinstance(self.train, SourceSection) else "train.0"
            raise misfit("a weight compares sources, and there is one; drop weight", f"{inside}.weight")
        return self

    @model_validator(mode="after")
    def conversations_have_their_own_template(self) -> "DataSection":
        if self.template == "alpaca" and all(source.messages is not None for source in self.sources):
            raise misfit("messages are written by the tokenizer's chat template; write template: chat, or drop it", "template")
        return self


class EarlyStoppingSection(Section):
    """When a run ends before its last step."""

    patience: PositiveCount = Field(description="Readings of eval_loss in a row without a new lowest one, after which training stops.")
    min_improvement: Level = Field(default=0.0, description="By how much a reading has to be lower to count, in nats a token.")


class TrainSection(Section):
    """How it learns."""

    epochs: Rate | None = Field(default=None, description="Passes over the training rows; 1 where neither epochs nor steps is named.")
    steps: PositiveCount | None = Field(default=None, description="Optimizer steps, instead of epochs.")
    batch_size: PositiveCount = Field(default=128, description="Rows an optimizer step, over all processes.")
    micro_batch_size: PositiveCount = Field(default=4, description="Rows a forward pass on one process; accumulation follows from it.")
    lr: Rate = Field(default=2e-5, description="Peak learning rate.")
    sigma_lr: Rate | None = Field(default=None, description="Peak learning rate of sigma; null takes lr.")
    lora_b_lr: Rate | None = Field(default=None, description="Peak learning rate of B in lora, pissa and dora (LoRA+); null takes lr.")
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        default="adamw", description="adamw-8bit holds the two moments of large tensors in 8 bits (extra quant)."
    )
    schedule: Literal[
        "cosine",
        "linear",
        "constant",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = Field(default="cosine", description="Learning rate after the warm-up, by transformers' names.")
    schedule_config: dict[str, Number] = Field(default={}, description="The schedule's own settings, e.g. {min_lr_rate: 0.1}.")
    warmup: Annotated[Number, Field(ge=0.0, lt=1.0)] = Field(default=0.03, description="Share of the steps over which the rate rises.")
    weight_decay: Annotated[Number, Field(ge=0.0)] = Field(default=0.0, description="AdamW's weight decay.")
    max_grad_norm: Level = Field(default=1.0, description="Gradient norm at which gradients are clipped; 0 clips none.")
    precision: Literal["bf16", "fp32"] = Field(default="bf16", description="Type of the matrix products; adapters stay in fp32.")
    save_every: PositiveCount = Field(default=100, description="Steps between checkpoints.")
    keep_checkpoints: PositiveCount = Field(default=2, description="Newest checkpoints that stay.")
    eval_every: PositiveCount = Field(default=100, description="Steps between readings of eval_loss.")
    log_every: PositiveCount = Field(default=1, description="Steps between lines of metrics.jsonl.")
    log_module_norms: Switch = Field(default=False, description="Also log each module's gradient norm, before clipping.")
    keep: Literal["last", "best"] = Field(default="last", description="Which state becomes train/adapter; best by eval_loss.")
    early_stopping: EarlyStoppingSection | None = Field(default=None, description="Stops when eval_loss no longer falls.")
    init_from: Name | None = Field(default=None, description="Folder of an adapter of the same form, whose values training begins with.")
    strategy: Literal["ddp", "fsdp2"] = Field(
        default="ddp", description="How several processes hold the model: each the whole of it, or shared out layer by layer."
    )
    activation_checkpointing: Switch = Field(
        default=False, description="Keep one activation a layer and compute the others again in the backward pass."
    )
    compile: Literal["none", "layers"] = Field(default="none", description="layers compiles each block of the model by itself.")
    data_workers: Annotated[Count, Field(ge=0)] = Field(
        default=0, description="Further processes of each that trains, which make batches ahead; 0 makes them as they are needed."
    )
    trackers: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] = Field(
        default=[], description="Dashboards that mirror metrics.jsonl (extra trackers)."
    )

    @model_validator(mode="before")
    @classmethod
    def one_epoch_unless_told(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("epochs") is None and value.get("steps") is None:
            return {**value, "epochs": 1.0}
        return value

    @model_validator(mode="after")
    def batches_fit(self) -> "TrainSection":
        if self.epochs is not None and self.steps is not None:
            raise misfit("name epochs or steps, not both", "steps", "epochs")
        if self.batch_size % self.micro_batch_size:
            raise misfit(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}", "micro_batch_size", "batch_size"
            )
        return self

    @model_validator(mode="after")
    def settings_belong_to_the_schedule(self) -> "TrainSection":
        reads, needs = SCHEDULE_READS[self.schedule], SCHEDULE_NEEDS.get(self.schedule, ())
        if found := sorted(self.schedule_config.keys() - set(reads)):
            there = f"it reads {', '.join(reads)}" if reads else "it reads none"
            raise misfit(f"schedule {self.schedule} has no setting {', '.join(found)}; {there}", "schedule_config", "schedule")
        if needs and not self.schedule_config.keys() & set(needs):
            raise misfit(f"schedule {self.schedule} needs schedule_config: {{{needs[-1]}: ...}}", "schedule", "schedule_config")
        return self


class ShotsSection(Section):
    """Training rows that a few-shot protocol shows solved."""

    path: Name | None = Field(default=None, description="Hub id or file of the rows; null takes the entry's own Hub data set.")
    revision: Name | None = Field(default=None, description="Commit of the Hub data set.")
    config: Name | None = Field(default=None, description="Configuration of the Hub data set, e.g. main.")
    split: Name = Field(default="train", description="Split of the Hub data set.")

    @model_validator(mode="after")
    def revision_and_config_have_a_path(self) -> "ShotsSection":
        if self.path is None and (found := sorted(self.named() & {"revision", "config"})):
            raise misfit(f"{' and '.join(found)} belong to a path; name it, or drop them", *found)
        return self


class EvalSection(Section):
    """One benchmark, asked in one way."""

    name: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Folder name; null takes <task>-<protocol>."
    )
    task: TaskName = Field(description="The benchmark.")
    protocol: ProtocolName = Field(
        default="plain", description="The way of asking, stopping and reading; which there are depends on the task."
    )
    path: Name = Field(description="Hub id or file of the test items.")
    revision: Name | None = Field(default=None, description="Commit of the Hub data set.")
    config: Name | None = Field(default=None, description="Configuration of the Hub data set, e.g. main.")
    split: Name = Field(default="test", description="Split of the Hub data set.")
    limit: PositiveCount | None = Field(default=None, description="First items that are asked; null takes all.")
    shots: ShotsSection | None = Field(default=None, description="Where lm-eval and lm-eval-minerva take their solved items from.")
    max_new_tokens: PositiveCount | None = Field(default=None, description="Longest completion, in tokens; null takes the protocol's.")
    batch_size: PositiveCount = Field(default=32, description="Prompts generated together.")
    batching: Batching = Field(
        default="auto", description="continuous fills each place of a batch again as it falls vacant; auto does where the model can."
    )
    samples: PositiveCount = Field(default=1, description="Completions drawn for each item.")
    temperature: Annotated[Number, Field(ge=0.0)] = Field(
        default=0.0, description="Divides the logits before a token is drawn; 0 takes the likeliest token, as the protocols do."
    )
    top_p: Fraction = Field(default=1.0, description="Share of the probability, from the likeliest token on, that tokens are drawn from.")
    pass_at: list[PositiveCount] = Field(default=[], description="Further k for pass@k of mbpp and humaneval, each at most samples.")

    @model_validator(mode="after")
    def samples_are_drawn(self) -> "EvalSection":
        if self.samples > 1 and not self.temperature:
            raise misfit(f"{self.samples} samples are all the same at temperature 0; write e.g. 0.8", "temperature", "samples")
        if self.top_p < 1.0 and not self.temperature:
            raise misfit("top_p is of drawn tokens; give a temperature, or drop it", "top_p", "temperature")
        if self.pass_at and self.task not in PROGRAM_TASKS:
            raise misfit(f"task {self.task} has no pass@k; drop pass_at", "pass_at", "task")
        if beyond := [k for k in self.pass_at if k > self.samples]:
            raise misfit(f"pass@{beyond[0]} can't be told from {self.samples} samples; raise samples, or lower k", "pass_at", "samples")
        return self

    @model_validator(mode="after")
    def protocol_belongs_to_the_task(self) -> "EvalSection":
        if self.protocol not in (there := TASK_PROTOCOLS[self.task]):
            raise misfit(f"task {self.task} has no protocol {self.protocol}; write {' or '.join(there)}", "protocol", "task")
        if self.shots is not None and (self.task, self.protocol) not in SHOWS_ROWS:
            raise misfit(f"protocol {self.protocol} of task {self.task} shows no training rows; drop shots", "shots", "protocol")
        return self

    @property
    def folder(self) -> str:
        """The name under eval/."""
        return self.name or f"{self.task}-{self.protocol}"


def by_option(value: Any) -> Any:
    """Keys that are dotted paths into the recipe, the sweep's own section apart."""
    if isinstance(value, dict):
        for key in value:
            if not re.fullmatch(r"[A-Za-z_][\w]*(\.[^.\s=]+)*", str(key)) or str(key).split(".")[0] in ("sweep", "extends", "seed"):
                raise ValueError(f"has the key {key}; write an option's dotted path, such as train.lr (seeds have a list of their own)")
    return value


Settings = Annotated[dict[str, Any], BeforeValidator(by_option)]
Grid = Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], BeforeValidator(by_option)]
Seed = Annotated[int, BeforeValidator(no_boolean), Field(ge=0, lt=2**32)]
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class SweepMethodSection(Section):
    """One of the methods of a sweep: what it changes in the recipe, and what is tried of it alone."""

    set: Settings = Field(default={}, description="Options that differ from the recipe's, by dotted path: {adapter.method: lora}.")
    grid: Grid = Field(default={}, description="Values to try of this method alone; an option that sweep.grid names is tried as here.")


class HalvingSection(Section):
    """Successive halving: all runs are begun, and the better ones go on."""

    steps: Annotated[list[PositiveCount], Field(min_length=2)] = Field(
        description="Optimizer steps after which the worse runs stop, rising; the last is the full length."
    )
    keep: Annotated[Number, Field(gt=0.0, lt=1.0)] = Field(
        default=0.5, description="Share of each method's settings that goes on from one length to the next, at least one."
    )

    @model_validator(mode="after")
    def lengths_rise(self) -> "HalvingSection":
        if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
            raise misfit("steps must rise, e.g. [50, 100, 200]", "steps")
        return self


class SweepSection(Section):
    """Many runs of one recipe, for soka sweep; the other verbs leave it alone."""

    grid: Grid = Field(default={}, description="Options and the values to try of each, by dotted path: {train.lr: [1e-3, 2e-3]}.")
    methods: dict[FolderName, SweepMethodSection] = Field(
        default={}, description="Methods by the names that the runs get, each tried over the same grid; none takes the recipe's own."
    )
    seeds: list[Seed] = Field(default=[], description="Seeds of every run; empty takes the recipe's.")
    best_seeds: list[Seed] = Field(default=[], description="Further seeds of each method's best setting, run after the grid.")
    stages: Literal["train", "eval", "run"] = Field(
        default="train", description="What is done of each run: train, also eval of the adapter, or all stages."
    )
    metric: Name | None = Field(
        default=None,
        description="What runs are judged by: eval_loss, loss, or a score such as gsm8k-plain/strict; null takes eval_loss, else loss.",
    )
    halving: HalvingSection | None = Field(default=None, description="Stops the worse runs of each method early.")

    @model_validator(mode="after")
    def judged_by_what_is_there(self) -> "SweepSection":
        score = self.metric is not None and self.metric not in ("eval_loss", "loss")
        if score and "/" not in str(self.metric):
            raise misfit(f"metric {self.metric} is none; write eval_loss, loss, or ENTRY/METRIC such as gsm8k-plain/strict", "metric")
        if score and self.stages == "train":
            raise misfit(f"metric {self.metric} needs stages: eval, or run", "stages", "metric")
        if score and self.halving is not None:
            raise misfit("halving goes by eval_loss or loss, which training itself gives", "metric", "halving")
        return self


class Recipe(Section):
    """One run, whole."""

    model: ModelSection = Field(description="The base model.")
    adapter: AdapterSection = Field(default=AdapterSection(), description="The method, and what it adapts.")
    data: DataSection = Field(description="Rows to learn from, and held-out ones.")
    train: TrainSection = Field(default=TrainSection(), description="Steps, batches, rates, and what is kept.")
    eval: list[EvalSection] = Field(default=[], description="Benchmarks, asked in this order.")
    seed: Annotated[int, BeforeValidator(no_boolean), Field(ge=0, lt=2**32)] = Field(
        default=0, description="Seed of decomposition, data order and dropout."
    )
    sweep: SweepSection | None = Field(default=None, description="Many runs of this recipe, for soka sweep.")

    @model_validator(mode="after")
    def entries_have_their_own_names(self) -> "Recipe":
        folders = [entry.folder for entry in self.eval]
        if repeated := sorted({folder for folder in folders if folders.count(folder) > 1}):
            at = [f"eval.{index}" for index, folder in enumerate(folders) if folder in repeated]
            raise misfit(f"eval entries share the name {', '.join(repeated)}; give each its own name", *reversed(at))
        if self.data.decontaminate != "none" and not self.eval:
            raise misfit("there is no eval entry to compare training rows with; add one, or drop it", "data.decontaminate", "eval")
        if self.model.quantization != "none" and (why := UNPACKED_METHODS.get(self.adapter.method)):
            raise misfit(f"method {self.adapter.method} {why}; write quantization: none", "model.quantization", "adapter.method")
        return self

    @model_validator(mode="after")
    def weights_may_lie_elsewhere(self) -> "Recipe":
        if self.model.max_memory is None:
            return self
        model, adapter, train = self.model, self.adapter, self.train
        if model.quantization != "none":
            raise misfit("packed weights stay where they are used; write quantization: none, or drop max_memory", "model.quantization")
        if adapter.method not in OFFLOADED_METHODS:
            raise misfit(
                f"method {adapter.method} needs the weights at hand, and max_memory leaves some on the disk; "
                f"write method: {' or '.join(OFFLOADED_METHODS)}, or drop max_memory",
                "model.max_memory",
                "adapter.method",
            )
        if adapter.method == "soka" and adapter.init in DATA_INITS:
            raise misfit(
                f"init {adapter.init} needs the gradients of weights, and max_memory leaves some on the disk; "
                "write init: weight, or drop max_memory",
                "model.max_memory",
                "adapter.init",
            )
        if read := [name for name in READS_THE_BASE if name in adapter.config]:
            raise misfit(
                f"{read[0]} copies weights of the base, and max_memory leaves some on the disk; drop one of them",
                "adapter.config",
                "model.max_memory",
            )
        if not train.activation_checkpointing:
            raise misfit(
                "max_memory needs train.activation_checkpointing: true; the backward pass would otherwise keep every weight "
                "that was fetched, on the device",
                "model.max_memory",
                "train.activation_checkpointing",
            )
        if train.precision == "fp32" and model.dtype != "float32":
            raise misfit(
                f"precision fp32 holds the weights in fp32, and max_memory would bound them in {model.dtype}; write dtype: float32",
                "model.dtype",
                "train.precision",
            )
        for name, choice, plain in (("compile", train.compile, "none"), ("strategy", train.strategy, "ddp")):
            if choice != plain:
                raise misfit(f"{name}: {choice} does not go with model.max_memory; drop one of them", f"train.{name}", "model.max_memory")
        return self

    @model_validator(mode="after")
    def weights_may_be_changed(self) -> "Recipe":
        if not self.adapter.fold_start:
            return self
        model, train = self.model, self.train
        for name, choice, plain, why in (
            ("model.quantization", model.quantization, "none", "packed weights cannot take it in"),
            ("train.strategy", train.strategy, "ddp", "its weights are shared out among the processes"),
        ):
            if choice != plain:
                raise misfit(f"fold_start changes the base weights, and with {name}: {choice} {why}; drop one", "adapter.fold_start", name)
        if model.max_memory is not None:
            raise misfit(
                "fold_start changes the base weights, and model.max_memory fetches them anew for each pass; drop one",
                "adapter.fold_start",
                "model.max_memory",
            )
        return self

    @model_validator(mode="after")
    def training_fits_the_method(self) -> "Recipe":
        method, train = self.adapter.method, self.train
        for name, methods in TRAIN_METHODS.items():
            if getattr(train, name) is not None and method not in methods:
                raise misfit(f"method {method} does not read train.{name}; drop it", f"train.{name}", "adapter.method")
        for name, asked in (("keep", train.keep == "best"), ("early_stopping", train.early_stopping is not None)):
            if asked and self.data.validation is None:
                raise misfit(f"train.{name} goes by eval_loss, which needs data.validation", f"train.{name}", "data.validation")
        return self
