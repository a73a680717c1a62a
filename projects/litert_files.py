"""What the scripts that make `.tflite` files share: a nested run that makes and weighs one."""

from collections.abc import Callable

import mlflow_keras_adv as mka
from mlflow_keras_adv.compression.conversion import Artifact
from mlflow_keras_adv.compression.footprint import accuracy, highest
from mlflow_keras_adv.compression.runtime import LiteRTModel
from projects.compressing import Variant
from projects.data import Data


def file_variant(
    run: mka.Run,
    name: str,
    make: Callable[[], Artifact],
    *,
    technique: str,
    images: Data,
    dataset: mka.Dataset,
    source: Variant,
    reference: Variant,
) -> Variant:
    """Makes a file in a nested run, measures it and puts it on record.

    Args:
        run: The parent.
        name: Of the nested run and of the model.
        make: Makes the file; a training that it needs is recorded in the nested run.
        technique: Its tag.
        images: Whose validation and test images the file is measured on.
        dataset: Their name and digest.
        source: The model that the file is made of.
        reference: The model that it should agree with.
    """
    with run.child(name, params={"scheme": name}, tags={"technique": technique}) as child:
        artifact = make()
        file = LiteRTModel(artifact.content)
        score = accuracy(highest(file.predict(images.x_validation)), images.y_validation)
        child.log_metrics({"val/accuracy": score}, step=0)
        if artifact.float_layers:
            child.set_tags({"float_layers": ", ".join(artifact.float_layers)})
        finished = mka.log_finished_file(
            child,
            artifact.content,
            images.x_test,
            images.y_test,
            name=name,
            dataset=dataset,
            reference=reference.model,
            parent_model_id=source.finished.info.model_id,
        )
    return Variant(child, file, finished, score)
