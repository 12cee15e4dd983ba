"""The fused kernels compute what the torch path does: in Triton's interpreter on a CPU, compiled where there is a GPU."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKS = Path(__file__).with_name("kernel_checks.py")
GPU = torch.cuda.is_available()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: the extra kernels, or PyTorch for CUDA")
def test_every_check_of_the_kernels_passes() -> None:
    environment = os.environ | ({} if GPU else {"TRITON_INTERPRET": "1"})
    command = [sys.executable, "-m", "pytest", str(CHECKS), "-q", "-p", "no:xdist", "-p", "no:randomly"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 60
    assert "skipped" not in done.stdout
