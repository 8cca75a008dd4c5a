"""The claims table: rules that stand alone, and the numbers that they are given.

Stages and figures in; a verdict for each claim out. `rules` knows nothing of runs.

Uses `figures`, `stages`.
"""
