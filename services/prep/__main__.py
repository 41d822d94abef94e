"""``python -m services.prep``: one replica of prep, settings from the environment."""

from services.prep.stage import Prep
from spearhead.stage import run_stage

if __name__ == "__main__":
    run_stage(Prep)
