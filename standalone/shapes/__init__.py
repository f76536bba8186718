"""The procedural world behind the `shapes` checkpoint: images, captions, a parser that reads them back, and the
training."""
