"""The file that MLflow runs to get the served model ("models from code"); see `serving`."""

from mlflow.models import set_model

from ocp_mamba.serving.pyfunc import ServedLVM

set_model(ServedLVM())
