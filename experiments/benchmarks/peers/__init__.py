"""The same steering through other libraries: the same tokens, how long, how many lines."""
