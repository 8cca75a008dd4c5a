"""Decoding loops of one's own, built from the library's public pieces: worked examples."""
