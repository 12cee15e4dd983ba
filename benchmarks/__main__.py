"""python -m benchmarks: every measurement that needs no argument."""

from benchmarks import decompose, sandbox, startup, streaming

if __name__ == "__main__":
    startup.main()
    decompose.main()
    streaming.main()
    sandbox.main()
