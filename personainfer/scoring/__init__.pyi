from .choice_models import ChoiceModel as ChoiceModel
from .choice_models import SimilarUsersVote as SimilarUsersVote
from .choice_models import word_features as word_features
from .latent_users import LatentUsers as LatentUsers
from .likelihood import PEOPLE_IN_GENERAL as PEOPLE_IN_GENERAL
from .likelihood import Likelihood as Likelihood
from .posterior import PersonaPosterior as PersonaPosterior
from .transformers_models import load_model as load_model
