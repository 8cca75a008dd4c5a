"""The claims table: rules that stand alone, and the numbers that they are given.

Stages and figures in; a verdict for each claim out. `contrasts` has the intervals that decide,
`rules` what each claim asks to be positive: neither knows anything of runs. `calibrate` says how
often they err in the `worlds` whose truth is known.

Uses `figures`, `pipeline`, `stages`.
"""
