"""One file per technique; `MLproject` names them."""
