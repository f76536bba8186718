"""Scripts of extensions: loading them, their controls and their hooks."""
