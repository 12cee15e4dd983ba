"""What a recipe may say: one typed field and one sentence with its unit for each option.

A value that the contract names and nothing implements yet is not in these types, so it is refused with what is there.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def count_with_suffix(value: Any) -> Any:
    """`0.99M` -> 990000. Anything else is left for pydantic to judge."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([kmbg]?)\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError("is not a count; write 991353, 0.99M, 64k or 1B")
    count = float(match[1].replace("_", "")) * SUFFIXES[match[2].lower()]
    if count != round(count):
        raise ValueError(f"is {count:g}, not a whole number")
    return round(count)


Count = Annotated[int, BeforeValidator(count_with_suffix)]
PositiveCount = Annotated[Count, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the recipe: frozen, and no key that it does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSection(Section):
    """The pre-trained base."""

    name: str = Field(description="Hub id or folder of the base model; soka:demo/model is the packaged one.")
    revision: str | None = Field(None, description="Commit of the Hub repository; null takes the default branch.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="Type the frozen weights are held in.")
    quantization: Literal["none"] = Field("none", description="How the frozen weights are packed.")


class ExplicitShape(Section):
    """The left factor's size; the right one follows: p = out / m, q = in / n."""

    m: PositiveCount = Field(description="Rows of U.")
    n: PositiveCount = Field(description="Columns of U.")


class BlockShape(Section):
    """Square right factors: p = q = block, m = out / block, n = in / block."""

    block: PositiveCount = Field(description="Rows and columns of V.")


ShapeChoice = Literal["balanced"] | BlockShape | ExplicitShape


class RankSection(Section):
    """How many terms each module keeps."""

    rule: Literal["min", "energy", "elbow", "fixed"] = Field("min", description="min takes the smallest of energy, elbow and max.")
    tau: Fraction = Field(0.90, description="Share of the weight's energy that rule energy (and min) keeps.")
    elbow: Literal["gap"] = Field("gap", description="How the elbow of the spectrum is found.")
    max: PositiveCount = Field(16, description="Most terms a module may keep, in terms.")
    value: PositiveCount | None = Field(None, description="Terms a module keeps under rule fixed; the rank of lora and pissa.")
    spectrum: Literal["leading", "full"] = Field(
        "leading", description="leading reads the first max+1 singular values, full computes them all."
    )

    @model_validator(mode="after")
    def value_belongs_to_fixed(self) -> "RankSection":
        if self.rule == "fixed" and self.value is None:
            raise ValueError("rule fixed needs value, e.g. {rule: fixed, value: 2}")
        if self.rule != "fixed" and self.value is not None:
            raise ValueError(f"value belongs to rule fixed, and rule is {self.rule}; drop value or write rule: fixed")
        return self


class AdapterSection(Section):
    """What is trained."""

    method: Literal["soka", "lora", "pissa", "full"] = Field("soka", description="full trains every weight.")
    target_modules: list[str] | str = Field(
        ["q_proj", "v_proj"], description="Name endings (list), a pattern (string), or all-linear."
    )
    shape: ShapeChoice = Field("balanced", description="Factor sizes of every target.")
    shape_pattern: dict[str, ShapeChoice] = Field({}, description="Shapes for modules whose name matches the key, a pattern.")
    rank: RankSection = Field(RankSection(), description="Terms per module.")
    init: Literal["weight"] = Field("weight", description="weight starts from the leading terms of the weight itself.")
    alpha: Annotated[float, Field(gt=0)] | None = Field(None, description="Scale of lora and pissa; null takes the rank.")

    @model_validator(mode="after")
    def options_belong_to_the_method(self) -> "AdapterSection":
        named = self.model_fields_set
        ignored = {
            "soka": {"alpha"},
            "lora": {"shape", "shape_pattern", "init"},
            "pissa": {"shape", "shape_pattern", "init"},
            "full": {"shape", "shape_pattern", "rank", "init", "alpha", "target_modules"},
        }[self.method]
        if found := sorted(named & ignored):
            raise ValueError(f"method {self.method} does not read {', '.join(found)}; drop it")
        if self.method in ("lora", "pissa") and self.rank.rule != "fixed":
            raise ValueError(f"method {self.method} needs rank: {{rule: fixed, value: r}}")
        return self


class SourceSection(Section):
    """Rows to train on: a task's own rendering, or two columns."""

    path: str = Field(description="Hub id, or a .jsonl, .json, .csv or .parquet file.")
    task: Literal["gsm8k", "math", "mbpp"] | None = Field(None, description="The task that renders prompt and target.")
    revision: str | None = Field(None, description="Commit of the Hub data set.")
    config: str | None = Field(None, description="Configuration of the Hub data set, e.g. main.")
    split: str = Field("train", description="Split of the Hub data set.")
    rows: PositiveCount | None = Field(None, description="First rows that are used, in rows; null takes all.")
    prompt: str | None = Field(None, description="Column of the prompt.")
    target: str | None = Field(None, description="Column of the target.")
    filter: dict[str, str] = Field({}, description="Keeps the rows whose columns hold these values.")

    @model_validator(mode="after")
    def task_or_columns(self) -> "SourceSection":
        columns = [name for name in ("prompt", "target") if getattr(self, name) is not None]
        if self.task is not None and columns:
            raise ValueError(f"a task renders its own prompt and target; drop {' and '.join(columns)} or drop task")
        if self.task is None and len(columns) < 2:
            raise ValueError("name a task (task: gsm8k) or both columns (prompt: question, target: answer)")
        return self


class ValidationSection(Section):
    """Held-out rows that give eval_loss: a share of the training rows, or a file of the same columns."""

    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(None, description="Share of the training rows, fixed by the seed.")
    path: str | None = Field(None, description="Hub id or file, read with the training source's task or columns.")
    split: str | None = Field(None, description="Split of the Hub data set; null takes the training source's.")
    rows: PositiveCount | None = Field(None, description="First rows that are used, in rows; null takes all.")

    @model_validator(mode="after")
    def fraction_or_path(self) -> "ValidationSection":
        if (self.fraction is None) == (self.path is None):
            raise ValueError("name fraction or path, one of them")
        if self.fraction is not None and (self.split is not None or self.rows is not None):
            raise ValueError("split and rows belong to path, not to fraction")
        return self


class DataSection(Section):
    """What the model learns from."""

    train: SourceSection = Field(description="Training rows.")
    validation: ValidationSection | None = Field(None, description="Held-out rows for eval_loss.")
    template: Literal["alpaca", "plain", "chat"] = Field("plain", description="Words around prompt and target.")
    max_length: PositiveCount = Field(512, description="Longest row, in tokens; longer ones are cut on the right.")


class TrainSection(Section):
    """How it learns."""

    epochs: Annotated[float, Field(gt=0)] | None = Field(None, description="Passes over the training rows; 1 where steps is null too.")
    steps: PositiveCount | None = Field(None, description="Optimizer steps, instead of epochs.")
    batch_size: PositiveCount = Field(128, description="Rows an optimizer step, over all processes.")
    micro_batch_size: PositiveCount = Field(4, description="Rows a forward pass on one process; accumulation follows from it.")
    lr: Rate = Field(2e-5, description="Peak learning rate.")
    sigma_lr: Rate | None = Field(None, description="Peak learning rate of sigma; null takes lr.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning rate after the warm-up.")
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.03, description="Share of the steps over which the rate rises.")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(0.0, description="AdamW's weight decay.")
    max_grad_norm: Annotated[float, Field(gt=0.0)] = Field(1.0, description="Gradient norm at which gradients are clipped.")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="Type of the matrix products; adapters stay in fp32.")
    save_every: PositiveCount = Field(100, description="Steps between checkpoints.")
    keep_checkpoints: PositiveCount = Field(2, description="Newest checkpoints that stay.")
    eval_every: PositiveCount = Field(100, description="Steps between readings of eval_loss.")
    log_every: PositiveCount = Field(1, description="Steps between lines of metrics.jsonl.")
    keep: Literal["last"] = Field("last", description="Which state becomes train/adapter.")

    @model_validator(mode="after")
    def batches_fit(self) -> "TrainSection":
        if self.epochs is not None and self.steps is not None:
            raise ValueError("name epochs or steps, not both")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}")
        return self


class EvalSection(Section):
    """One benchmark, asked in one way."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Folder name; null takes <task>-<protocol>.")
    task: Literal["gsm8k", "math", "mbpp", "humaneval"] = Field(description="The benchmark.")
    protocol: Literal["plain", "pissa"] = Field("plain", description="The way of asking and stopping.")
    path: str = Field(description="Hub id or file of the test items.")
    revision: str | None = Field(None, description="Commit of the Hub data set.")
    config: str | None = Field(None, description="Configuration of the Hub data set, e.g. main.")
    split: str = Field("test", description="Split of the Hub data set.")
    limit: PositiveCount | None = Field(None, description="First items that are asked; null takes all.")
    max_new_tokens: PositiveCount = Field(512, description="Longest completion, in tokens.")
    batch_size: PositiveCount = Field(32, description="Prompts generated together.")

    @property
    def folder(self) -> str:
        """The name under eval/."""
        return self.name or f"{self.task}-{self.protocol}"


class Recipe(Section):
    """One run, whole."""

    model: ModelSection
    adapter: AdapterSection = AdapterSection()
    data: DataSection
    train: TrainSection = TrainSection()
    eval: list[EvalSection] = Field([], description="Benchmarks, asked in this order.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Seed of decomposition, data order and dropout.")

    @model_validator(mode="after")
    def entries_have_their_own_names(self) -> "Recipe":
        folders = [entry.folder for entry in self.eval]
        if repeated := sorted({folder for folder in folders if folders.count(folder) > 1}):
            raise ValueError(f"eval entries share the name {', '.join(repeated)}; give each its own name")
        if self.train.sigma_lr is not None and self.adapter.method != "soka":
            raise ValueError(f"train.sigma_lr belongs to method soka, and adapter.method is {self.adapter.method}")
        return self
