"""Labels of sentences: by keywords, or by a language model behind an endpoint.

Traces in; what each of their sentences does, out. `agreement` compares two judges.

Uses nothing of experiments.
"""
