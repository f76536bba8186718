"""Dynamic thresholding: formulas, settings, arguments, infotext, and its part in a sampling."""
