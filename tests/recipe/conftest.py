"""A folder with one good recipe in it."""

from pathlib import Path

import pytest

GOOD = """\
model:
  name: acme/small
adapter:
  method: soka
  target_modules: [q_proj, v_proj]
  rank: {rule: fixed, value: 2}
data:
  train:
    path: acme/rows
    prompt: question
    target: answer
  template: plain
train:
  lr: 2e-5
  steps: 20
  batch_size: 8
  micro_batch_size: 4
eval:
  - {task: gsm8k, path: acme/test}
seed: 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with good.yaml in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(GOOD)
    return tmp_path
