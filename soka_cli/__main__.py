"""python -m soka_cli is soka."""

from soka_cli.cli.app import run_and_exit

if __name__ == "__main__":
    run_and_exit()
