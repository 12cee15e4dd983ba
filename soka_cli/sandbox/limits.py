"""What a program may use: numbers that hold in every layer."""

MEBIBYTE = 1 << 20

MEMORY = 1024 * MEBIBYTE  # address space of one process; also what the processes of a sandbox may have resident together
DISK = 64 * MEBIBYTE  # /tmp, in memory
FILE = 32 * MEBIBYTE
PROCESSES = 32  # threads count
DESCRIPTORS = 64
STACK = 8 * MEBIBYTE
OUTPUT = 4096  # characters that are kept of what a program prints
START = 60.0  # seconds that a sandbox may take to come up on a machine that is busy

RESOURCES = {
    "RLIMIT_AS": MEMORY,
    "RLIMIT_FSIZE": FILE,
    "RLIMIT_NOFILE": DESCRIPTORS,
    "RLIMIT_CORE": 0,
    "RLIMIT_STACK": STACK,
    "RLIMIT_MSGQUEUE": 0,
    "RLIMIT_MEMLOCK": 0,
}
