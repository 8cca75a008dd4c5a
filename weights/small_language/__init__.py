"""The language of the small pair: grammar, problems, worked solutions, tokenizer, training.

The truth about backtracking is known by construction of this text.
"""
