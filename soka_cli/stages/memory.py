"""What a training step holds in a device's memory: an estimate of the first order, each part with its formula (docs/plan.md).

Symbols: T tokens of a micro-batch (rows x max_length), a bytes of the compute type (2 in bf16, 4 in fp32), h the width of
the residual stream, f of the feed-forward, d of the query heads together, k of the key heads, L blocks, V tokens of the
vocabulary. The total is within 2% of the peak that torch counts during `soka train` on small Llamas (SoKA, LoRA, PiSSA, full; bf16
and fp32); over packed weights the activations are within 20%. Left out: the allocator's slack, kernels' workspaces, the CUDA
context, and the merged matrices that a CPU keeps between passes where a quarter of its free memory holds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from soka_cli.recipe.schema import DATA_INITS, Recipe
from soka_cli.stages.dimensions import Dimensions
from soka_cli.stages.sizes import AdapterSizes, Terms

FP32 = 4
PACKED_BYTES = {"nf4": 0.5 + FP32 / 64, "fp4": 0.5 + FP32 / 64, "int8": 1.0}  # a value, with its share of the scales
PACKED_FROM, SHARE_A_SCALE = 4096, 256  # values of a tensor, by which adamw-8bit packs its moments
SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}  # modules of one parent that read one tensor
AFTER_ATTENTION = "o_proj"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes, by what they hold; `workspace` is what several processes need beside (`per_device`)."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def estimate(recipe: Recipe, base: Dimensions, sizes: AdapterSizes, *, world: int = 1) -> Memory:
    """The peak of one training step on one device, for an adapter of these sizes; `world` processes share a batch."""
    full = recipe.adapter.method == "full"
    trained = base.parameters if full else sizes.trained
    tokens = recipe.train.micro_batch_size * recipe.data.max_length
    width = BYTES[recipe.train.precision]
    kind = recipe.model.quantization if recipe.model.quantization != "none" else base.packed
    own = FP32 if full or width == FP32 else BYTES[recipe.model.dtype]
    held = weights(base, own, own if recipe.train.activation_checkpointing else width)  # checkpointed, one block's copies at a time
    of_base = activations(base, width) if kind is None else packed_activations(base, width, kind)
    kept = tokens * (of_base + (inputs_kept(base, width) if full else 0)) + adapter_activations(sizes, tokens, width)
    scores = logits(base, tokens)
    if recipe.train.activation_checkpointing:
        kept = checkpointed(base, recipe, tokens, kept, scores)
    return Memory(
        weights=bounded(recipe, held) if kind is None else packed_weights(base, width, kind),
        adapter=adapter(sizes),
        gradients=gradients_beside(trained, kept + scores, accumulated=recipe.train.batch_size > world * recipe.train.micro_batch_size),
        optimizer=optimizer(recipe, base, sizes),
        activations=kept,
        logits=scores,
    )


def start_memory(recipe: Recipe, base: Dimensions) -> Memory | None:
    """The peak of what decompose holds for a start from data, on the device that computes it; None for any other start.

    gradient: the model once in its own type (fp32 for float16), the largest target's gradient in that type and in fp32, the
    activations and inputs that its backward pass needs. early-update: the model in fp32, and of every target a gradient and
    AdamW's two moments.
    """
    if recipe.adapter.init not in DATA_INITS:
        return None
    early = recipe.adapter.init == "early-update"
    width = FP32 if early or recipe.model.dtype == "float16" else BYTES[recipe.model.dtype]
    tokens = recipe.train.micro_batch_size * recipe.data.max_length
    sizes = [module.out_features * module.in_features for module in base.targets]
    inputs = sum(module.in_features for module in base.targets)
    return Memory(
        weights=weights(base, width, width),
        adapter=0,
        gradients=gradients(sum(sizes)) if early else (width + FP32) * max(sizes),
        optimizer=moments(sum(sizes)) if early else 0,
        activations=tokens * (activations(base, width) + width * inputs),
        logits=logits(base, tokens),
    )


def weights(base: Dimensions, held: int, computed: int) -> int:
    """Every parameter once, P x held bytes; where autocast computes in a narrower type, the graph keeps each weight in that as well."""
    return base.parameters * (held + (computed if computed < held else 0))


def bounded(recipe: Recipe, held: int) -> int:
    """Of the weights what the computing device holds under `model.max_memory`: its bound, in which Accelerate keeps room for the
    largest block that is fetched. `held` where that is less, or nothing is bounded."""
    bounds = recipe.model.max_memory
    return held if bounds is None else min(held, bounds.gpu or bounds.cpu or held)


def pristine_weights(recipe: Recipe, base: Dimensions) -> int:
    """Main memory beside the device's: with `adapter.fold_start` the targets' weights as they were, out x in values each."""
    if recipe.adapter.method != "soka" or not recipe.adapter.fold_start:
        return 0
    width = FP32 if recipe.train.precision == "fp32" else BYTES[recipe.model.dtype]
    return width * sum(module.out_features * module.in_features for module in base.targets)


def packed_weights(base: Dimensions, width: int, kind: str) -> int:
    """Linear weights at their packed size, the rest in fp32, and what is unpacked at one time.

    nf4 takes 4 bits a value and an fp32 scale for each 64; int8 a byte (its scale a row is left out). The largest weight of a block is
    unpacked in the compute type to be multiplied; under bf16 the output layer has a copy in it as well.
    """
    unpacked = width * base.hidden * base.intermediate + (width * base.vocabulary * base.hidden if width != FP32 else 0)
    return int(base.linear * PACKED_BYTES.get(kind, 1.0)) + FP32 * (base.parameters - base.linear) + unpacked


def packed_activations(base: Dimensions, width: int, kind: str) -> int:
    """Bytes a token that a packed Llama keeps: L (8 h + a (2 d + 2 k) + 12 f), and for int8 L (8 h + a d + 4 f) more.

    The residual stream and what packed layers hand on are fp32, whatever the compute type; attention runs in that. int8 layers keep
    their inputs: the two norms' outputs (8 h), the attention's result and the feed-forward's product. On a CPU under bf16 int8 keeps a
    third less: bitsandbytes multiplies there in the compute type and hands that on.
    """
    kept = 8 * base.hidden + width * (2 * base.attention + 2 * base.key_value) + 3 * FP32 * base.intermediate
    inputs = 2 * FP32 * base.hidden + width * base.attention + FP32 * base.intermediate if kind == "int8" else 0
    return base.layers * (kept + inputs)


def adapter(sizes: AdapterSizes) -> int:
    """What is trained and what stays beside it (theta0 of SoKA, the start of PiSSA), in fp32: 4 (trained + kept)."""
    return FP32 * (sizes.trained + sizes.kept)


def gradients(trained: int) -> int:
    """One fp32 value for each trained parameter: 4 P."""
    return FP32 * trained


def gradients_beside(trained: int, passing: int, *, accumulated: bool) -> int:
    """What the gradients add to the peak, beside `passing` bytes of activations and logits.

    Over several micro-batches they are there while the next one's activations are: 4 P. Of one micro-batch a gradient comes when
    the activations go, so the peak has the larger of the two.
    """
    return gradients(trained) if accumulated else max(gradients(trained) - passing, 0)


def optimizer(recipe: Recipe, base: Dimensions, sizes: AdapterSizes) -> int:
    """AdamW's two moments of all that is trained, as the recipe's optimizer holds them."""
    norms = (2 * base.layers + 1) * [base.hidden]
    if recipe.adapter.method == "full":
        return moments_of(recipe.train.optimizer, [base.parameters - sum(norms), *norms])
    return moments_of(recipe.train.optimizer, [values for terms in sizes.terms for values in terms.tensors])


def moments_of(kind: str, tensors: Sequence[int]) -> int:
    """The two moments of trained tensors of so many values, as the optimizer of this name holds them."""
    return sum(map(small_moments if kind == "adamw-8bit" else moments, tensors))


def moments(trained: int) -> int:
    """AdamW's two moments in fp32: 8 P."""
    return 2 * FP32 * trained


def small_moments(values: int) -> int:
    """bitsandbytes' two moments of one tensor: 2 bytes a value and two fp32 scales for each 256; of fewer than 4,096 values, in fp32."""
    return moments(values) if values < PACKED_FROM else 2 * (values + FP32 * -(-values // SHARE_A_SCALE))


def activations(base: Dimensions, width: int) -> int:
    """Bytes a token that a frozen Llama keeps for the backward pass: L (8 h + a (2 d + 2 k) + 3 a f).

    A block keeps the fp32 input of its two norms (8 h), queries, keys, values and the attention's result (2 d + 2 k), and
    the gate before and after its activation with the other branch (3 f). Frozen linear layers keep no input. No checkpointing.
    """
    return base.layers * (8 * base.hidden + width * (2 * base.attention + 2 * base.key_value) + 3 * width * base.intermediate)


def checkpointed(base: Dimensions, recipe: Recipe, tokens: int, kept: int, scores: int) -> int:
    """With activation checkpointing: each block's input, T L h values; and what one block keeps with the gradients of its feed-forward's
    three tensors, 3 a f T, where that is more than the scores, which are gone when the first block is computed again. The residual
    stream is in the type of the weights, fp32 where all learn."""
    full = recipe.adapter.method == "full" or recipe.train.precision == "fp32"
    width = FP32 if full or recipe.model.quantization != "none" or base.packed else BYTES[recipe.model.dtype]
    block = kept // base.layers + 3 * BYTES[recipe.train.precision] * base.intermediate * tokens
    return tokens * base.layers * width * base.hidden + max(block - scores, 0)


def inputs_kept(base: Dimensions, width: int) -> int:
    """Bytes a token more where every weight is trained: L (a (2 h + d + f) + 8 h).

    Linear layers then keep their inputs, and the norms their normalised values in fp32.
    """
    return base.layers * (width * (2 * base.hidden + base.attention + base.intermediate) + 8 * base.hidden)


def adapter_activations(sizes: AdapterSizes, tokens: int, width: int) -> int:
    """Bytes that the adapted modules keep for a micro-batch: a times the values of their own, and their inputs.

    In bf16 each product casts its input anew; in fp32 modules that read one tensor keep it once.
    """
    inputs = shared_inputs(sizes.terms) if width == FP32 else sum(terms.module.in_features for terms in sizes.terms)
    return width * (tokens * inputs + sum(values_kept(terms, tokens) for terms in sizes.terms))


def values_kept(terms: Terms, tokens: int) -> int:
    """Values that one adapted module keeps of T tokens, beside its input.

    LoRA: T r. SoKA: none; what lies between the factors is computed again for the backward pass.
    """
    return tokens * terms.rank if terms.shape is None else 0


def shared_inputs(terms: Sequence[Terms]) -> int:
    """Width of all the tensors that the modules read, each once; the attention's result is kept by the attention as it is."""
    read: dict[tuple[str, str], int] = {}
    for one in terms:
        parent, _, kind = one.module.name.rpartition(".")
        read[parent, SAME_INPUT.get(kind, kind)] = 0 if kind == AFTER_ATTENTION else one.module.in_features
    return sum(read.values())


def logits(base: Dimensions, tokens: int) -> int:
    """The scores of every token in fp32 while the loss goes back, 12 T V: their log-softmax, its gradient, and theirs."""
    return 3 * FP32 * tokens * base.vocabulary
