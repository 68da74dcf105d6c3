from .fake_llm import FakeLLM as FakeLLM
from .faults import Fault as Fault
from .faults import Reply as Reply
from .kills import KilledRun as KilledRun
from .kills import killed_at_write as killed_at_write
from .machine_faults import clock_jump as clock_jump
from .machine_faults import full_disk as full_disk
from .machine_faults import locked_database as locked_database
