"""Who may ask. Deny by default: a route says who may where it is registered, and what says nothing answers nobody.

`policies` says what each policy means, `keys` and `tokens` find out who asks, `guard` stands before every view. A view that
reads users' lists calls `authorize` with each user_id, however many there are.
"""

from lookup_api.auth.guard import Guard, authorize, review
from lookup_api.auth.policies import ANY_LISTS, METRICS, OWN_LISTS, PUBLIC, GuardedRule, Policy

__all__ = ["ANY_LISTS", "METRICS", "OWN_LISTS", "PUBLIC", "Guard", "GuardedRule", "Policy", "authorize", "review"]
