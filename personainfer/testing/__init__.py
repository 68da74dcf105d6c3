"""A fake model behind a real HTTP server, and the faults of machines, for tests of code that meets both."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
