"""Guidance: ways to combine the predictions with and without the prompt that avoid burnt colours. A formula a file.

Formulas are pure functions of predictions of the clean latent, shape (batch, channels, h, w): `base` (u, without the
prompt), `direction` (c - u, towards the prediction c with it) and the CFG scale w. They return a guided prediction of
the same shape and type; plain guidance is u + w (c - u). An image's result does not depend on its batch.
"""
