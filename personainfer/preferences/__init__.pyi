from .labels import LabelCoding as LabelCoding
from .schemas import example_rows as example_rows
