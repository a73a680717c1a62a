"""A tracking store that keeps what another does not take for now."""
