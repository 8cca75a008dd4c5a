"""Figures 2 to 6, the headline plot, the cosines and Appendix C.

Stages in; a picture out, with its numbers in CSV and JSON beside it.

Uses `judges`, `pipeline`, `stages`.
"""
