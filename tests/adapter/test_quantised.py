"""SoKA over bitsandbytes bases, on the CPU."""

import warnings
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.utils.quantization_utils import Bnb4bitBackend, Bnb8bitBackend

from soka_cli.adapter import attach_factors, layer, weight_digest, write_factors
from soka_cli.adapter.fold import fold_start
from soka_cli.errors import SokaError
from tests.adapter import models

pytest.importorskip("bitsandbytes", reason="the quant extra is not installed")
KINDS = {"int8": Bnb8bitBackend, "nf4": Bnb4bitBackend}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Llama of width 64: bitsandbytes packs nf4 for the CPU in blocks of 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, **heads, tie_word_embeddings=False)
    path = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(sizes).save_pretrained(path)
    return path


@pytest.fixture
def load(folder: Any, kind: str) -> Any:
    """Loads the tiny Llama with its linear weights packed."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

    def loaded() -> Any:
        packing = BitsAndBytesConfig(**how)
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=packing, device_map={"": "cpu"}, dtype=torch.float32).eval()

    return loaded


def test_the_start_is_the_quantised_base_bit_for_bit(load: Any, kind: str) -> None:
    before = models.output(load())
    adapted = get_peft_model(load(), models.config())
    assert torch.equal(models.output(adapted), before)
    assert all(isinstance(found.quantization_backend, KINDS[kind]) for found in models.layers(adapted))


def test_a_packed_weight_takes_no_start_in(load: Any) -> None:
    with pytest.raises(SokaError, match="cannot be folded") as caught:
        fold_start(get_peft_model(load(), models.config()))
    assert "its weight is packed" in caught.value.why


def test_a_trained_adapter_is_saved_and_loaded_over_the_quantised_base(load: Any, tmp_path: Any) -> None:
    adapted = get_peft_model(prepare_model_for_kbit_training(load()), models.config())
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.arange(4, 20)[None]
    losses = []
    for _ in range(4):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(prepare_model_for_kbit_training(load()), tmp_path)
    assert torch.equal(models.output(loaded), models.output(adapted.eval()))


def test_the_weight_can_be_read_after_inference(load: Any, folder: Any) -> None:
    """bitsandbytes rearranges 4-bit weights on the CPU when they are first used."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(folder).model.layers[0].self_attn.q_proj.weight
    adapted = get_peft_model(load(), models.config())
    models.output(adapted)
    read = models.layers(adapted)[0].get_base_weight()
    assert (read.float() - whole).norm() / whole.norm() < 0.15


def test_merging_stays_near_the_adapter_and_unmerging_near_the_base(load: Any, folder: Any) -> None:
    """Within the error that packing the weights makes anyway."""
    from transformers import AutoModelForCausalLM

    base = models.output(load())
    whole = models.output(AutoModelForCausalLM.from_pretrained(folder))
    adapted = get_peft_model(load(), models.config())
    untrained = models.layers(adapted)[0].get_base_weight()
    adapted.merge_adapter()
    assert torch.equal(models.layers(adapted)[0].get_base_weight(), untrained)
    adapted.unmerge_adapter()
    models.train_a_little(adapted, 0.5)
    trained = models.output(adapted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.merge_adapter()
    packing_error = (base - whole).abs().max()
    assert (models.output(adapted) - trained).abs().max() < 5 * packing_error
    adapted.unmerge_adapter()
    torch.testing.assert_close(models.output(adapted), trained, rtol=0.0, atol=float(packing_error))


def test_factors_of_the_float_checkpoint_attach_to_the_quantised_base(load: Any, folder: Any, tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    float_base = AutoModelForCausalLM.from_pretrained(folder)
    network = get_peft_model(float_base, models.config()).base_model.model
    found = {name: module for name, module in network.named_modules() if isinstance(module, layer.SokaLayer)}
    digests = {name: weight_digest(module.get_base_layer().weight) for name, module in found.items()}
    write_factors(tmp_path / "f.safetensors", {name: module.factors("default") for name, module in found.items()}, digests, base="tiny")
    before = models.output(load())
    attached = attach_factors(load(), models.config(), tmp_path / "f.safetensors")
    assert torch.equal(models.output(attached), before)
    assert not any(parameter.is_meta for parameter in attached.parameters())
