"""The last stage: every figure with its numbers, the claims table, the report.

Everything before in; `report/` out.

Uses all rooms above it.
"""
