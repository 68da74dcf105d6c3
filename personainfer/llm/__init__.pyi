from .cache import cache_info as cache_info
from .cache import clear_cache as clear_cache
from .client import LLM as LLM
from .requests import Request as Request
