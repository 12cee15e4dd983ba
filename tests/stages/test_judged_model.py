"""How a model that is to be judged is laid out in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from soka_cli.adapter import SokaConfig
from soka_cli.stages.judged_model import JudgedModel, ModelShelf
from tests import builders
from tests.adapter.models import train_a_little

SOKA = SokaConfig(target_modules=["q_proj", "down_proj"], rank={"rule": "fixed", "value": 2}, task_type="CAUSAL_LM")
LORA = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")


def adapter(folder: Path, base: Path, config: PeftConfig) -> JudgedModel:
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    train_a_little(tuned, 1.0)
    tuned.save_pretrained(folder)
    return JudgedModel("adapter", folder, is_adapter=True)


def shelf(folder: Path, base: Path, dtype: str) -> Any:
    data = builders.gsm8k_file(folder, 2)
    return ModelShelf(builders.stage_context(folder, builders.recipe_mapping(base, data, model={"dtype": dtype})))


def adapted(model: Any) -> bool:
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


@pytest.mark.parametrize("config", [SOKA, LORA], ids=["soka", "lora"])
def test_over_an_fp32_base_the_adapter_is_merged_in_memory_and_that_is_said(config: PeftConfig, tmp_path: Path, llama_folder: Path) -> None:
    judged = adapter(tmp_path / "adapter", llama_folder, config)
    held = shelf(tmp_path, llama_folder, "float32")
    merged, _ = held.get(judged)
    assert not adapted(merged)
    assert any("merged into the fp32 base in memory" in message for message in held.context.reporter.messages)
    beside = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    base = beside(torch.arange(4, 20)[None]).logits
    beside.load_adapter(str(judged.folder))
    with torch.no_grad():
        expected, found = (model(torch.arange(4, 20)[None]).logits for model in (beside, merged))
    assert (expected - base).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_over_a_bfloat16_base_the_adapter_stays_beside_it(tmp_path: Path, llama_folder: Path) -> None:
    judged = adapter(tmp_path / "adapter", llama_folder, SOKA)
    held = shelf(tmp_path, llama_folder, "bfloat16")
    assert adapted(held.get(judged)[0])
    assert not any("merged" in message for message in held.context.reporter.messages)
