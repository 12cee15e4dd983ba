"""python -m benchmarks: every measurement that needs no argument."""

from benchmarks import decompose, evaluate, layer, merge, sandbox, startup, streaming, train

if __name__ == "__main__":
    startup.main()
    decompose.main()
    streaming.main()
    merge.main([])
    evaluate.main([])
    layer.main([])
    train.main([])
    sandbox.main()
