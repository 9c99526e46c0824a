"""How the state database came to be what it is, one file a step; `state.migrate` runs those that are missing."""
