"""Base and adapter side by side."""

from pathlib import Path

import pytest
import torch

from soka_cli.errors import ExitCode, SokaError
from soka_cli.recipe.load import load_recipe
from soka_cli.run.layout import RunLayout
from soka_cli.stages.context import StageContext
from soka_cli.stages.generate import generate
from tests.builders import recipe_mapping, tiny_model_folder, write_recipe


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    base = tiny_model_folder(tmp_path / "base")
    recipe = write_recipe(tmp_path / "recipe.yaml", recipe_mapping(base, tmp_path / "train.jsonl"))
    return StageContext(loaded=load_recipe(recipe), layout=RunLayout(tmp_path / "run"), device="cpu")


def save_adapter(context: StageContext, *, changed: bool) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(context.recipe.model.name, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=not changed, task_type="CAUSAL_LM")
    peft.get_peft_model(base, config).save_pretrained(context.layout.adapter)


def test_without_an_adapter_the_base_answers_alone(context: StageContext) -> None:
    outcome = generate(context, ["one", "a second"], 5)
    assert [set(answer) for answer in outcome.figures["answers"]] == [{"prompt", "base"}] * 2
    assert "train" in outcome.next_commands[0]
    assert not context.layout.root.exists()


def test_an_adapter_answers_beside_the_base(context: StageContext) -> None:
    alone = generate(context, ["one", "a second"], 5).figures["answers"]
    save_adapter(context, changed=True)
    both = generate(context, ["one", "a second"], 5).figures["answers"]
    assert [answer["base"] for answer in both] == [answer["base"] for answer in alone]
    assert any(answer["adapter"] != answer["base"] for answer in both)


def test_an_adapter_that_changes_nothing_answers_as_the_base(context: StageContext) -> None:
    save_adapter(context, changed=False)
    for answer in generate(context, ["one", "a second"], 5).figures["answers"]:
        assert answer["adapter"] == answer["base"]


def test_an_empty_prompt_is_refused(context: StageContext) -> None:
    for prompts in ([], ["  "]):
        with pytest.raises(SokaError) as caught:
            generate(context, prompts, 5)
        assert caught.value.exit_code == ExitCode.USAGE
