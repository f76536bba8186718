"""The subject's photos: found in a folder with captions and masks, read, or taken in from a page or a request."""

from lib_methods.dreambooth.photos.folder import (
    Photo,
    find_photos,
    open_photo,
    read_mask,
    read_photo,
    without_companions,
)

__all__ = ["Photo", "find_photos", "open_photo", "read_mask", "read_photo", "without_companions"]
