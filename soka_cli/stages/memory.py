"""What a training step holds in a device's memory: an estimate of the first order, each part with its formula.

Symbols: T tokens of a micro-batch (rows x max_length), a bytes of the compute type (2 in bf16, 4 in fp32), h the width of
the residual stream, f of the feed-forward, d of the query heads together, k of the key heads, L blocks, V tokens of the
vocabulary. The activations are within 5% of what autograd saves for a small Llama with an adapter in bf16, and within 20%
in fp32, over packed weights, or where every weight is trained. Left out: the allocator's slack, kernels' workspaces, the CUDA
context.
"""

from dataclasses import dataclass, fields

from soka_cli.kron.product import factored_is_cheaper
from soka_cli.recipe.schema import DATA_INITS, Recipe
from soka_cli.stages.dimensions import Dimensions
from soka_cli.stages.sizes import AdapterSizes, Terms

FP32 = 4
PACKED_BYTES = {"nf4": 0.5 + FP32 / 64, "fp4": 0.5 + FP32 / 64, "int8": 1.0}  # a value, with its share of the scales
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes, by what they hold."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def estimate(recipe: Recipe, base: Dimensions, sizes: AdapterSizes) -> Memory:
    """The peak of one training step on one device, for an adapter of these sizes."""
    full = recipe.adapter.method == "full"
    trained = base.parameters if full else sizes.trained
    tokens = recipe.train.micro_batch_size * recipe.data.max_length
    width = BYTES[recipe.train.precision]
    kind = recipe.model.quantization if recipe.model.quantization != "none" else base.packed
    held = weights(base, FP32 if full or width == FP32 else BYTES[recipe.model.dtype], width, trained=full)
    kept = activations(base, width) if kind is None else packed_activations(base, width, kind)
    return Memory(
        weights=held if kind is None else packed_weights(base, width, kind),
        adapter=adapter(sizes),
        gradients=gradients(trained),
        optimizer=optimizer(trained),
        activations=tokens * (kept + (inputs_kept(base, width) if full else 0)) + adapter_activations(sizes, tokens, width),
        logits=logits(base, tokens, width),
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
        weights=weights(base, width, width, trained=False),
        adapter=0,
        gradients=gradients(sum(sizes)) if early else (width + FP32) * max(sizes),
        optimizer=optimizer(sum(sizes)) if early else 0,
        activations=tokens * (activations(base, width) + width * inputs),
        logits=logits(base, tokens, width),
    )


def weights(base: Dimensions, held: int, computed: int, *, trained: bool) -> int:
    """Every parameter once, P x held bytes; where all are trained, autocast keeps a copy in the compute type as well."""
    return base.parameters * (held + (computed if trained and computed != held else 0))


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


def optimizer(trained: int) -> int:
    """AdamW's two moments in fp32: 8 P."""
    return 2 * FP32 * trained


def activations(base: Dimensions, width: int) -> int:
    """Bytes a token that a frozen Llama keeps for the backward pass: L (8 h + a (2 d + 2 k) + 3 a f).

    A block keeps the fp32 input of its two norms (8 h), queries, keys, values and the attention's result (2 d + 2 k), and
    the gate before and after its activation with the other branch (3 f). Frozen linear layers keep no input. No checkpointing.
    """
    return base.layers * (8 * base.hidden + width * (2 * base.attention + 2 * base.key_value) + 3 * width * base.intermediate)


def inputs_kept(base: Dimensions, width: int) -> int:
    """Bytes a token more where every weight is trained: L (a (2 h + d + f) + 8 h).

    Linear layers then keep their inputs, and the norms their normalised values in fp32.
    """
    return base.layers * (width * (2 * base.hidden + base.attention + base.intermediate) + 8 * base.hidden)


def adapter_activations(sizes: AdapterSizes, tokens: int, width: int) -> int:
    """Bytes that the adapted modules keep for a micro-batch: a times the values that each of them keeps."""
    return width * sum(values_kept(terms, tokens) for terms in sizes.terms)


def values_kept(terms: Terms, tokens: int) -> int:
    """Values that one adapted module keeps of T tokens.

    LoRA: its input and r values a token, T (in + r). SoKA, where theta - theta0 is two Kronecker sums (`adapter/layer.py`): factor by
    factor the input for each of them and the r n p values between the factors of the first, T (2 in + r n p); through the
    dense matrix the input and that matrix, T in + out in.
    """
    inputs, shape, rank = terms.module.in_features, terms.shape, terms.rank
    if shape is None:
        return tokens * (inputs + rank)
    if factored_is_cheaper(shape, terms=2 * rank, vectors=tokens):
        return tokens * (2 * inputs + rank * shape.n * shape.p)
    return tokens * inputs + shape.out_features * shape.in_features


def logits(base: Dimensions, tokens: int, width: int) -> int:
    """The scores of every token, T V (a + 12): as computed, their fp32 copy, its log-softmax, and the gradient."""
    return tokens * base.vocabulary * (width + 3 * FP32)
