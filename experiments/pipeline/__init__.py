"""What stages share: settings, the run and its folder, checks before any work, formats of prompts.

A TOML file and models in; a `Run`, whose stages are skipped while they are valid, out.

Uses `judges`.
"""
