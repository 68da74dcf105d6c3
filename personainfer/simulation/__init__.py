"""Simulated users, the data sets that were published about users, and results as figures and pages."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
