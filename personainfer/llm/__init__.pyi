from .client import LLM as LLM
from .requests import Request as Request
