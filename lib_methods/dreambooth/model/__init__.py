"""The model that is trained: what it is made of, its parts, its LoRA, and how it generates images."""
