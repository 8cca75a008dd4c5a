"""The small pair of models and its training (`train_small`), in a language made for it.

`convert`, `verify` and `export` are commands alone: their work is done in `jaxsteer.models`.
"""
