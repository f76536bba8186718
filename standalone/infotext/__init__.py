"""The text that says how an image was made: writing it, reading it, and where files keep it."""
