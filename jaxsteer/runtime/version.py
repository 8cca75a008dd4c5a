"""The library's version, which results name."""

VERSION = "0.1.0"
