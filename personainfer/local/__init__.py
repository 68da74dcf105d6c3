"""What this machine keeps and runs: files, the cache of replies, weights, and llama.cpp's server."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
