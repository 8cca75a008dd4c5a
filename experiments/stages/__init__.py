"""The stages up to the steered texts, and what their rows say.

A `Run` in; a folder under it out: rollouts, labels, directions, sweeps, perplexity.

Uses `judges`, `pipeline`.
"""
