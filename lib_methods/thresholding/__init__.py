"""Dynamic thresholding: corrections of the guided prediction that avoid burnt colours."""
