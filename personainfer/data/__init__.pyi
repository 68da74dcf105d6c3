from .readers import SourceRow as SourceRow
from .readers import read_preferences as read_preferences
from .table import PersonaTable as PersonaTable
