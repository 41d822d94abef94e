"""``python -m services.inference``: one inference replica, settings from the environment."""

from services.inference.stage import Inference
from spearhead.stage import run_stage

if __name__ == "__main__":
    run_stage(Inference)
