from .page import write_report as write_report
from .persona_groups import PersonaGroup as PersonaGroup
from .persona_groups import persona_groups as persona_groups
from .rows import PageRow as PageRow
from .rows import page_rows as page_rows
