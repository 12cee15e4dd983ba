"""The launch files of configs/accelerate, read by Accelerate's own parser."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

FOLDER = Path(__file__).parents[2] / "configs" / "accelerate"
FILES = {
    "cpu": (DistributedType.MULTI_GPU, 1),  # MULTI_CPU starts one process
    "single-gpu": (DistributedType.NO, 1),
    "ddp": (DistributedType.MULTI_GPU, 1),
    "fsdp2": (DistributedType.FSDP, 1),
    "deepspeed-zero3": (DistributedType.DEEPSPEED, 1),
    "two-nodes": (DistributedType.MULTI_GPU, 2),
}


def read(name: str) -> ClusterConfig:
    return load_config_from_file(str(FOLDER / f"{name}.yaml"))


def test_every_launch_file_is_known_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_launch_file_says_how_many_machines_and_by_which_engine(name: str) -> None:
    config = read(name)
    assert (config.distributed_type, config.num_machines) == FILES[name]
    assert config.num_processes == (1 if name == "single-gpu" else 2 if name == "cpu" else 8 * config.num_machines)


@pytest.mark.parametrize("name", FILES)
def test_a_launch_file_opens_with_its_command_and_leaves_precision_to_the_recipe(name: str) -> None:
    head = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"accelerate launch --config_file configs/accelerate/{name}.yaml" in head.split("compute_environment")[0]
    assert read(name).mixed_precision == "no"


def test_the_sharding_launch_file_asks_for_the_second_version() -> None:
    assert read("fsdp2").fsdp_config["fsdp_version"] == 2
