from .labels import LabelCoding as LabelCoding
from .recognition import example_rows as example_rows
