"""Colours that all figures share; a page has a second, lighter set for a dark screen.

Each is at least 3 : 1 against its background, as WCAG 2 asks of graphics.
"""

LIGHT = {
    "blue": "#1f5fa8",
    "orange": "#c4572a",
    "green": "#3d8b57",
    "grey": "#7d7d7d",
    "purple": "#7a5195",
    "gold": "#96700a",
    "teal": "#25818e",
    "olive": "#5b7f3a",
}
DARK = {
    "blue": "#6ea8e8",
    "orange": "#e8895c",
    "green": "#6bbd86",
    "grey": "#9a9a9a",
    "purple": "#b38fd0",
    "gold": "#d0a63a",
    "teal": "#5fbecb",
    "olive": "#98bd74",
}
# Shapes of points, and letters like them for a legend, which are printed where backgrounds are not.
GLYPHS = {
    "circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "triangle-down": "▼",
    "cross": "✚",
}  # fmt: skip
SHAPES = tuple(GLYPHS)
