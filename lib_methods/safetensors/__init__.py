"""The one reader of .safetensors headers, and the one reader and writer of their tensors."""
