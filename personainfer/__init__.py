"""Infer who would prefer each response, and why, from preference data.

Names are imported when they are first used, so that `import personainfer` takes little time.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
