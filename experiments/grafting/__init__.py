"""Which fine-tuned parts the direction needs: hybrids of the two models.

Stages in; the parts that a search found, and the judgement of their text, out.

Uses `figures`, `pipeline`, `stages`.
"""
