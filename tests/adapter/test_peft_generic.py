"""PEFT's own generic tests pass with SoKA as the method (see peft_generic.py for how, and for running them by hand)."""

import os
import re

import pytest

from tests.adapter import peft_generic

# Tests of these modules that run over SoKA, at least: fewer would mean that the cases no longer reach them.
LEAST = {
    "test_config": 25,
    "test_custom_models": 350,
    "test_decoder_models": 250,
    "test_encoder_decoder_models": 60,
    "test_feature_extraction_models": 60,
    "test_quantization": 8,
}


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SOKA_PEFT_TESTS"), reason="set SOKA_PEFT_TESTS to PEFT's unpacked source distribution")
@pytest.mark.parametrize("module", peft_generic.MODULES)
def test_peft_s_own_tests_pass(module: str) -> None:
    finished = peft_generic.run(["--tb=short", "-rs"], [module])
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-2000:]
    passed = re.search(r"(\d+) passed", finished.stdout)
    assert passed is not None
    assert int(passed[1]) >= LEAST[module]
