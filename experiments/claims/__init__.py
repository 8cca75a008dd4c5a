"""The claims table: rules that stand alone, and the numbers that they are given.

Stages and figures in; a verdict for each claim out. `contrasts` has the intervals that decide,
`rules` what each claim asks to be positive: neither knows anything of runs. `calibrate` measures
how often they err in `claim_worlds`: synthetic `worlds` whose truth is known.

Uses `figures`, `pipeline`, `stages`.
"""
