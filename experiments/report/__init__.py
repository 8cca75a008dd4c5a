"""The last stages: every figure with its numbers, the claims table, the report, the page.

Everything before in; `report/` and `page/` out.

Uses all rooms above it.
"""
