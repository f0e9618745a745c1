"""Whole optimizer steps a second, Luban and its peers by turns on one machine."""
