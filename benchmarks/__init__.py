"""Measures: how well and how fast each method is."""
