"""Guidance: ways to combine the predictions with and without the prompt that avoid burnt colours."""
