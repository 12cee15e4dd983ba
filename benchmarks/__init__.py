"""Measurements: ratios in one run, medians and spread, with the command. Results lie in benchmarks/results."""
