"""Templates of reasoning problems: each draws numbers, and answers them twice in different ways."""
