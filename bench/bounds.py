"""Of each target that is missed: what was tried, what that brought, and what bounds it."""

BOUNDS: dict[str, str] = {}
