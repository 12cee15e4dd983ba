"""python -m benchmarks: every measurement that needs no argument."""

from benchmarks import startup

if __name__ == "__main__":
    startup.main()
