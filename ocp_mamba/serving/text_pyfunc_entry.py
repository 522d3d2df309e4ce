"""The file that MLflow runs to get the model for people ("models from code"); see `serving`."""

from mlflow.models import set_model

from ocp_mamba.serving.text_pyfunc import ServedText

set_model(ServedText())
