"""The stages up to the steered texts, and what their rows say.

A `Run` in; a folder under it out. In order: `rollouts`, `label`, `derive` (directions), `steer`
(the sweep), `perplexity`. `groups` and `activations` have the sums that figures need, `outcome` and
`text_scores` what steered texts show.

Uses `judges`, `pipeline`.
"""
