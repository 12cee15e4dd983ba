"""What `make bench` measures, without measuring it."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from benchmarks import decompose, evaluate, folded_start, layer, merge, sandbox, startup, streaming, train
from tests.builders import REPOSITORY

MODULES = (startup, decompose, streaming, merge, evaluate, layer, folded_start, train, sandbox)


def test_make_bench_times_the_full_svd_and_layers_of_llama_2_7b(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, list[str]]] = []
    for module in MODULES:
        monkeypatch.setattr(module, "main", lambda arguments=(), name=module.__name__: called.append((name, list(arguments))))
    runpy.run_module("benchmarks", run_name="__main__")
    assert {name for name, _ in called} == {module.__name__ for module in MODULES}
    assert ("benchmarks.decompose", ["--full-svd"]) in called
    assert any(name == "benchmarks.streaming" and {"4096", "11008"} <= set(words) for name, words in called)


def test_streaming_is_measured_five_times_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    repeats: list[int] = []
    monkeypatch.setattr(streaming, "growth", lambda folder, options: [repeats.append(options.repeats)])
    monkeypatch.setattr(streaming, "reading_ahead", lambda folder, model, count: repeats.append(count))
    streaming.main([])
    assert len(repeats) == 2 and min(repeats) >= 5


def test_the_plot_of_growth_goes_to_the_results_from_wherever_it_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layer, "growth", lambda repeats, path: drawn.append(path))
    monkeypatch.setattr(layer.torch, "set_num_threads", lambda count: None)
    layer.main(["--parts", "growth"])
    assert drawn == [REPOSITORY / "benchmarks/results/layer-growth.svg"]
