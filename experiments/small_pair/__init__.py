"""The judgement of a trained small pair, and its verdicts.

Models of several training seeds in; layer, coefficients and verdicts out.

Uses `pipeline`, `stages`.
"""
