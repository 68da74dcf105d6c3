"""Infer who would prefer each response, and why, from preference data.

Names are imported when they are first used, so that `import personainfer` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batches import collect_batch as collect_batch
    from .batches import submit_batch as submit_batch
    from .cache import cache_info as cache_info
    from .cache import clear_cache as clear_cache
    from .comparison import compare_responses as compare_responses
    from .exceptions import PersonaInferError as PersonaInferError
    from .export import export_personas as export_personas
    from .inference import ainfer_personas as ainfer_personas
    from .inference import estimate_cost as estimate_cost
    from .inference import infer_personas as infer_personas
    from .inference import iter_personas as iter_personas
    from .likelihood import Likelihood as Likelihood
    from .llm import LLM as LLM
    from .llm import Request as Request
    from .loaders import AddPersonas as AddPersonas
    from .posterior import PersonaPosterior as PersonaPosterior
    from .prefix_evaluation import evaluate_prefixes as evaluate_prefixes
    from .prefixes import persona_prefix as persona_prefix
    from .records import Exemplar as Exemplar
    from .records import Message as Message
    from .records import Persona as Persona
    from .records import PersonaRow as PersonaRow
    from .records import Preference as Preference
    from .records import Usage as Usage
    from .report import write_report as write_report
    from .retrieval import PersonaRetriever as PersonaRetriever
    from .retry import retry_errors as retry_errors
    from .rewards import RewardMatrix as RewardMatrix
    from .salience import salient_words as salient_words
    from .simulation import SimulatedUsers as SimulatedUsers
    from .table import PersonaTable as PersonaTable
    from .tailoring import tailoring_rows as tailoring_rows
    from .users import infer_user_personas as infer_user_personas
    from .verification import Verifier as Verifier
    from .verification import compare_personas as compare_personas
    from .verification import rate_personas as rate_personas
    from .verification import verify_personas as verify_personas

__version__ = "0.1.0"

_MODULE_OF = {
    "AddPersonas": "loaders",
    "Exemplar": "records",
    "LLM": "llm",
    "Likelihood": "likelihood",
    "Message": "records",
    "Persona": "records",
    "PersonaInferError": "exceptions",
    "PersonaPosterior": "posterior",
    "PersonaRetriever": "retrieval",
    "PersonaRow": "records",
    "PersonaTable": "table",
    "Preference": "records",
    "Request": "llm",
    "RewardMatrix": "rewards",
    "SimulatedUsers": "simulation",
    "Usage": "records",
    "Verifier": "verification",
    "ainfer_personas": "inference",
    "cache_info": "cache",
    "clear_cache": "cache",
    "collect_batch": "batches",
    "compare_personas": "verification",
    "compare_responses": "comparison",
    "estimate_cost": "inference",
    "evaluate_prefixes": "prefix_evaluation",
    "export_personas": "export",
    "infer_personas": "inference",
    "infer_user_personas": "users",
    "iter_personas": "inference",
    "persona_prefix": "prefixes",
    "rate_personas": "verification",
    "retry_errors": "retry",
    "salient_words": "salience",
    "submit_batch": "batches",
    "tailoring_rows": "tailoring",
    "verify_personas": "verification",
    "write_report": "report",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
