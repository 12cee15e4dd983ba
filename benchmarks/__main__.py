"""python -m benchmarks: every measurement that needs no argument."""

from benchmarks import decompose, evaluate, folded_start, layer, merge, sandbox, startup, streaming, train

if __name__ == "__main__":
    startup.main()
    decompose.main(["--full-svd"])
    streaming.main([])
    streaming.main(["--width", "4096", "--inner", "11008", "--layers", "1", "2", "--parts", "growth"])  # 2 of LLaMA-2-7B's 32 layers
    merge.main([])
    evaluate.main([])
    layer.main([])
    folded_start.main([])
    train.main([])
    sandbox.main()
