"""Factor files: written once, attached without decomposing, refused with every difference."""

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from soka_cli.adapter import FactorFile, attach_factors, layer, start, weight_digest, write_factors
from soka_cli.errors import ExitCode, SokaError
from soka_cli.kron import KronFactors, KronShape
from tests.adapter import models


def decomposed(kind: str = "llama") -> tuple[dict[str, KronFactors], dict[str, str]]:
    """Terms and weight digests of every target, as the decompose stage would find them."""
    adapted = get_peft_model(models.model(kind), models.config(kind)).base_model.model
    found = {name: module for name, module in adapted.named_modules() if isinstance(module, layer.SokaLayer)}
    factors = {name: module.start_factors("default") for name, module in found.items()}
    return factors, {name: weight_digest(module.get_base_layer().weight) for name, module in found.items()}


@pytest.fixture
def factor_file(tmp_path: Path) -> Path:
    factors, digests = decomposed()
    path = tmp_path / "factors.safetensors"
    write_factors(path, factors, digests, base="tiny")
    return path


def metadata_of(path: Path) -> dict[str, str]:
    file = FactorFile.read(path)
    return {"format": "soka-factors", "version": "1", "base": file.base, "digests": json.dumps(file.digests)}


def refusal(path: Path, network: object = None, **fields: object) -> SokaError:
    with pytest.raises(SokaError) as caught:
        attach_factors(models.model() if network is None else network, models.config(**fields), path)
    assert caught.value.exit_code == ExitCode.RUN
    assert caught.value.where == str(path)
    assert caught.value.hint
    return caught.value


def test_the_file_holds_what_the_contract_names(factor_file: Path) -> None:
    tensors = load_file(factor_file)
    factors, _ = decomposed()
    assert tensors.keys() == {f"{name}.{part}" for name in factors for part in ("U", "V", "sigma")}
    name = "model.layers.0.self_attn.q_proj"
    found = [tuple(tensors[f"{name}.{part}"].shape) for part in ("U", "V", "sigma")]
    assert found == [(3, 4, 8), (3, 8, 4), (3,)]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_what_is_read_is_what_was_written(factor_file: Path) -> None:
    factors, digests = decomposed()
    file = FactorFile.read(factor_file)
    assert (file.base, file.digests) == ("tiny", digests)
    for name, expected in factors.items():
        assert torch.equal(file.modules[name].left, expected.left)
        assert torch.equal(file.modules[name].right, expected.right)
        assert torch.equal(file.modules[name].sigma, expected.sigma)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_attaching_equals_decomposing_and_decomposes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    fresh_config = models.config(kind)
    fresh = get_peft_model(models.model(kind), fresh_config)
    write_factors(tmp_path / "f.safetensors", *decomposed(kind), base="tiny")
    monkeypatch.setattr(start, "decompose_weight", models.forbidden)
    config = models.config(kind, rank={"rule": "min"})
    attached = attach_factors(models.model(kind), config, tmp_path / "f.safetensors")
    state, expected = attached.state_dict(), fresh.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert (config.rank_pattern, config.shape_pattern) == (fresh_config.rank_pattern, fresh_config.shape_pattern)
    assert [p.requires_grad for p in attached.parameters()] == [p.requires_grad for p in fresh.parameters()]
    assert torch.equal(models.output(attached), models.output(models.model(kind)))


def test_modules_to_save_are_trainable_beside_attached_factors(factor_file: Path) -> None:
    attached = attach_factors(models.model(), models.config(modules_to_save=["lm_head"]), factor_file)
    trained = {name for name, parameter in attached.named_parameters() if parameter.requires_grad}
    assert any("lm_head.modules_to_save" in name for name in trained)
    assert not any(parameter.is_meta for parameter in attached.parameters())
    assert torch.equal(models.output(attached), models.output(models.model()))


def test_a_bfloat16_base_takes_the_factors_of_its_fp32_checkpoint(factor_file: Path) -> None:
    base = models.model("llama", torch.bfloat16)
    before = models.output(base)
    assert torch.equal(models.output(attach_factors(base, models.config(), factor_file)), before)


def test_digests_agree_across_types_and_differ_for_one_changed_value() -> None:
    weight = torch.randn(6, 5)
    same = {weight_digest(held) for held in (weight, weight.bfloat16(), weight.bfloat16().float(), weight.t().contiguous().t())}
    assert len(same) == 1
    other = weight.clone()
    other[3, 2] += 1.0
    assert weight_digest(other) not in same


def test_another_base_is_refused_with_the_modules_whose_weights_differ(factor_file: Path) -> None:
    network = models.model()
    network.model.layers[1].self_attn.v_proj.weight.data[0, 0] += 1.0
    error = refusal(factor_file, network)
    assert [line.split(":")[0] for line in error.why.splitlines()] == ["model.layers.1.self_attn.v_proj"]
    assert not models.layers(network)


def test_all_differences_are_named_at_once(factor_file: Path) -> None:
    """Names on both sides, sizes, and digests, in one error."""
    gone, misshapen, changed = (f"model.layers.{place}" for place in ("0.self_attn.q_proj", "0.self_attn.v_proj", "1.self_attn.q_proj"))
    file = FactorFile.read(factor_file)
    modules = {name: factors for name, factors in file.modules.items() if name != gone} | {"model.layers.9.q_proj": file.modules[gone]}
    modules[misshapen] = KronFactors(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.zeros(1))
    digests = {name: file.digests.get(name, "0" * 64) for name in modules} | {changed: "f" * 64}
    write_factors(factor_file, modules, digests, base="tiny")
    why = refusal(factor_file).why
    assert "model.layers.9.q_proj: in the file, not a target in the model" in why
    assert f"{gone}: a target in the model, not in the file" in why
    assert f"{misshapen}: factors of {KronShape(2, 2, 2, 2)} for 4 x 4, weight of 16 x 32" in why
    assert f"{changed}: sha256 of the weight is" in why
    assert len(why.splitlines()) == 4


def test_a_target_that_is_not_linear_is_one_of_the_differences(factor_file: Path) -> None:
    why = refusal(factor_file, target_modules=r".*(q_proj|v_proj|down_proj|input_layernorm)").why
    assert "model.layers.0.input_layernorm: a target in the model, not in the file" in why


def test_a_refused_config_keeps_its_patterns(factor_file: Path) -> None:
    config = models.config(target_modules=["q_proj"])
    with pytest.raises(SokaError):
        attach_factors(models.model(), config, factor_file)
    assert config.rank_pattern == config.shape_pattern == {}


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    assert refusal(tmp_path / "factors.safetensors").what == "The factor file factors.safetensors cannot be read."


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_file_is_refused_without_a_traceback(factor_file: Path, damage: str) -> None:
    whole = factor_file.read_bytes()
    factor_file.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"not a tensor file"}[damage])
    assert "cannot be read" in refusal(factor_file).what


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "lora"}, "its format is lora 1, expected soka-factors 1"),
        ({"version": "2"}, "its format is soka-factors 2"),
        ({"digests": "not json"}, "Expecting value"),
        ({"digests": "[1]"}, "cannot convert"),
        ({"digests": "{}"}, "digests and its tensors name different modules"),
    ],
)
def test_foreign_metadata_is_refused(factor_file: Path, metadata: dict[str, str], message: str) -> None:
    save_file(load_file(factor_file), factor_file, metadata=metadata_of(factor_file) | metadata)
    assert message in refusal(factor_file).why


def test_tensors_that_do_not_fit_together_are_refused(factor_file: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    whole, metadata = load_file(factor_file), metadata_of(factor_file)
    cases = {
        f"{name} lacks sigma": {key: value for key, value in whole.items() if key != f"{name}.sigma"},
        "of type torch.bfloat16": whole | {f"{name}.U": whole[f"{name}.U"].bfloat16()},
        f"{name}.V holds a value that is not finite": whole | {f"{name}.V": whole[f"{name}.V"] * torch.nan},
        "do not fit": whole | {f"{name}.sigma": torch.ones(2)},
        "it holds other": whole | {"other": torch.ones(2)},
    }
    for message, tensors in cases.items():
        save_file(tensors, factor_file, metadata=metadata)
        assert message in refusal(factor_file).why


def test_an_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from soka_cli.adapter import factors as module

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(SokaError) as caught:
        write_factors(tmp_path / "factors.safetensors", *decomposed(), base="tiny")
    assert caught.value.exit_code == ExitCode.RESOURCES
    assert list(tmp_path.iterdir()) == []


def test_the_same_terms_give_the_same_bytes(factor_file: Path) -> None:
    """safetensors orders a header's metadata by a hash that changes from file to file."""
    file, written = FactorFile.read(factor_file), set()
    for _ in range(10):
        write_factors(factor_file, file.modules, file.digests, base=file.base)
        written.add(factor_file.read_bytes())
    assert len(written) == 1
