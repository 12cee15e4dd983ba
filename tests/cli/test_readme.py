"""The README's commands are run as they stand there: blocks whose info string says `runnable`, in order, in one fresh folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import REPOSITORY

BLOCK = re.compile(r"^```bash runnable\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def runnable_blocks() -> list[str]:
    return BLOCK.findall((REPOSITORY / "README.md").read_text(encoding="utf8"))


@pytest.mark.slow
def test_the_readme_s_runnable_blocks_run(tmp_path: Path) -> None:
    blocks = runnable_blocks()
    assert len(blocks) >= 3, "the README lost its runnable blocks"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
