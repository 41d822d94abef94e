"""``python -m services.train``: the trainer, settings from the environment."""

from services.train.stage import Train
from spearhead.stage import run_stage

if __name__ == "__main__":
    run_stage(Train)
