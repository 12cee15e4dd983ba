"""Runs programs that nobody trusts, and says what it does not stop.

`judge` gives one verdict, `judge_all` many; `describe` says what isolates programs on this machine.
"""

from soka_cli.sandbox.isolation import describe, find_isolation
from soka_cli.sandbox.pool import judge, judge_all, no_isolation
from soka_cli.sandbox.verdict import Program, Verdict

__all__ = ["Program", "Verdict", "describe", "find_isolation", "judge", "judge_all", "no_isolation"]
