"""Measurements that need an accelerator or long minutes; results are in RESULTS.md.

Each file is a command. `machine` has what they share, `decode` how a step is timed.
"""
