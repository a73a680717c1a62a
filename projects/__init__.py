"""One file per technique; `MLproject` names them."""

import sys

from mlflow_keras_adv.extras import MissingExtraError, missing

if missing("tensorflow"):
    sys.exit(f"error: {MissingExtraError('tensorflow', 'tensorflow')}")
