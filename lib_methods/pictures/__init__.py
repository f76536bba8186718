"""Images that the methods share: stored, shown as thumbnails, resized, converted to tensors."""
