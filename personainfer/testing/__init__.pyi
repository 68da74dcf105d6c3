from .fake_llm import FakeLLM as FakeLLM
from .faults import Fault as Fault
from .faults import Reply as Reply
