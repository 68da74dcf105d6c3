from .collect import collect_batch as collect_batch
from .submit import submit_batch as submit_batch
