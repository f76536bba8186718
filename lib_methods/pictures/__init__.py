"""Pictures that the methods share: kept on disk, shown small, brought to a size, made numbers."""
