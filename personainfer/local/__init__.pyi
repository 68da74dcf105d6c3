from .cache import cache_info as cache_info
from .cache import clear_cache as clear_cache
