"""Data classes that scripts and the REST API share."""
