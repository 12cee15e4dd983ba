"""The package `inside`, compiled once and handed to every sandbox as sealed memory: no sandbox reads or compiles our files."""

import fcntl
import marshal
import os
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "inside"
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

# Runs first in a sandbox: makes `inside` importable from the descriptor and starts it.
LOADER = """
import marshal, os, sys
from importlib.machinery import ModuleSpec

class Bundle:
    codes = marshal.loads(os.pread({descriptor}, os.fstat({descriptor}).st_size, 0))
    def find_spec(self, name, path=None, target=None):
        if name in self.codes:
            return ModuleSpec(name, self, is_package=name == "inside")
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(self.codes[module.__name__], module.__dict__)

sys.meta_path.insert(0, Bundle())
from inside.start import main
main()
"""


@cache
def descriptor() -> int:
    """Where the compiled package lies. Nobody can change it any more, so that all sandboxes may share it."""
    codes = {}
    for path in sorted(FOLDER.glob("*.py")):
        name = "inside" if path.stem == "__init__" else f"inside.{path.stem}"
        codes[name] = compile(path.read_text(encoding="utf-8"), path.name, "exec", dont_inherit=True)
    number = os.memfd_create("soka-inside", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(number, marshal.dumps(codes))
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, SEALS)
    return number
