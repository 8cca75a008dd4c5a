"""Measurements that need an accelerator or long minutes; results are in RESULTS.md."""
