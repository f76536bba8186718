"""DreamBooth: a model learns a subject from a handful of photos (Ruiz et al. 2022, arXiv 2208.12242)."""
