"""The docks: thin, bound to session fields."""
