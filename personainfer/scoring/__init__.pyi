from .hf_models import load_model as load_model
from .likelihood import PEOPLE_IN_GENERAL as PEOPLE_IN_GENERAL
from .likelihood import Likelihood as Likelihood
from .posterior import PersonaPosterior as PersonaPosterior
