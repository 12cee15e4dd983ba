"""python -m benchmarks: every measurement that needs no argument."""

from benchmarks import decompose, evaluate, merge, sandbox, startup, streaming

if __name__ == "__main__":
    startup.main()
    decompose.main()
    streaming.main()
    merge.main([])
    evaluate.main([])
    sandbox.main()
