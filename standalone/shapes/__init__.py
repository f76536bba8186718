"""The procedural world behind the `shapes` checkpoint: pictures, captions, a parser that reads them back, and the
training."""
