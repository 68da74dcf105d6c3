from .evaluate import evaluate_prefixes as evaluate_prefixes
from .infer import infer_user_personas as infer_user_personas
from .prefixes import Prefix as Prefix
from .prefixes import persona_prefix as persona_prefix
from .records import UserPersona as UserPersona
from .records import UserPersonas as UserPersonas
from .similar_users import nearest_users as nearest_users
from .similar_users import user_vectors as user_vectors
