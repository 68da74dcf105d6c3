from .containers import read_preferences as read_preferences
from .source_rows import SourceRow as SourceRow
from .table import PersonaTable as PersonaTable
