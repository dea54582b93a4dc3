"""Files compressed by a trained run: prediction is compression."""

from multimodal_gpt.compression.archive import (
    Compressed,
    Restored,
    Size,
    compress,
    compressed_size,
    decompress,
)

__all__ = ["Compressed", "Restored", "Size", "compress", "compressed_size", "decompress"]
