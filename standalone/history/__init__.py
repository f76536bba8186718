"""Every image that was saved: found, searched, shown small, thrown away and brought back."""
