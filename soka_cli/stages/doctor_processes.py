"""Whether several processes of this machine can work together, as --num-processes asks of them."""

import os
import subprocess
import sys

from soka_cli.stages.check import Check

PATIENCE = 120.0  # seconds for all of them to load torch and meet
HANDSHAKE = "soka_cli.stages.handshake"


def process_check(count: int) -> Check:
    """What there is for processes to talk by; with more than one, they are started and add up their numbers."""
    try:
        import torch
        import torch.distributed as distributed
    except ImportError as error:
        return Check("processes", "fail", str(error), "make install, or pip install --force-reinstall soka-cli")
    there = [name for name, found in (("gloo", distributed.is_gloo_available()), ("nccl", distributed.is_nccl_available())) if found]
    gpus = torch.cuda.device_count()
    detail = f"{' and '.join(there) or 'neither gloo nor nccl'} in this torch, {gpus} GPU{'s' if gpus != 1 else ''}"
    if count == 1:
        return Check("processes", "ok" if there else "warn", f"{detail}; not tried (--num-processes N tries it)")
    why = handshake(count)
    if why:
        hint = "look at firewalls of the loopback device, and at GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME"
        return Check("processes", "fail", f"{count} processes did not come together: {why}", hint)
    backend = "nccl" if gpus >= count else "gloo"
    return Check("processes", "ok", f"{detail}; {count} processes added up their numbers by {backend}")


def handshake(count: int) -> str:
    """Start `count` processes that meet on this machine; empty where they did, else what they said last."""
    launcher = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(count), "--rdzv-backend", "c10d"]
    words = [sys.executable, *launcher, "--rdzv-endpoint", "localhost:0", "-m", HANDSHAKE]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PATIENCE:.0f} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if "Error" in line and not line.startswith(" ")]
    return lines[0] if lines else f"exit code {done.returncode}"
