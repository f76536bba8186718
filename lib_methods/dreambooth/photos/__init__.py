"""The subject's photos: found in a folder with captions and masks, read, or taken in from a page or a request."""
