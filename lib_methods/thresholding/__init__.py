"""Guidance that does not burn: corrections of the guided prediction."""
