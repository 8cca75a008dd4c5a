"""Directions found otherwise: learned, several, and how much each direction moves the keywords.

Stages in; directions, figures and their numbers out.

Uses `claims`, `figures`, `pipeline`, `stages`.
"""
