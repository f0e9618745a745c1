"""The typed config of a recipe's `tune:` block: how the values are searched for that its spaces leave open."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Auto, Config, field
from luban.foundation.durations import Duration


class PopulationConfig(Config):
    """Population-based training (Jaderberg et al., arXiv:1711.09846)."""

    size: Annotated[int, Field(ge=2)] = field(8, "Trainings that run side by side.", unit="trainings")
    interval: Duration | Auto = field("auto", "Length after which the worst are replaced; auto is a tenth of the run.")
    share: Annotated[float, Field(gt=0, le=0.5)] = field(0.25, "Share of the population that is replaced by copies of as many of the best.")
    perturbation: PositiveFloat = field(1.25, "A copy's numbers are multiplied or divided by this, at random.")


class TuneConfig(Config):
    """Search over the spaces that a recipe's stages hold."""

    sampler: Literal["tpe", "cma_es", "grid", "random", "population"] = field("tpe", "How values are chosen: tpe and cma_es learn from finished trials, grid walks through all (5 of a range without step), population changes them while it trains.")
    pruner: Literal["none", "asha", "hyperband", "median"] = field("none", "Stop trials that fall behind, at their validations: asha and hyperband keep the best of each rung, median those better than half.")
    trials: PositiveInt = field(20, "Trials in all, over every start of the command.", unit="trials", role="machine")
    minutes: PositiveFloat | None = field(None, "No trial begins after so long; those that run are finished.", unit="minutes", role="machine")
    metric: str | Auto = field("auto", "What makes a trial good: a figure of the tuned stage, such as accuracy or loss; auto is the main metric of its task, or its loss.")
    direction: Literal["auto", "minimize", "maximize"] = field("auto", "Whether less or more of the metric is better; auto knows.")
    stage: str = field("", "The stage whose metric counts; empty takes the last train, fit or ensemble stage that the spaces change.")
    seeds: PositiveInt = field(1, "Seeds that each trial is made with; its value is their mean.", unit="seeds")
    reduction: Annotated[int, Field(ge=2)] = field(3, "asha and hyperband: of a rung, one in so many goes on, and to so many times the validations.", role="machine")
    grace: PositiveInt = field(1, "Validations before a trial may be pruned.", unit="validations", role="machine")
    storage: str = field("", "Where the trials are written down: an SQL address (postgresql://…, mysql://…, sqlite:///…) that several machines reach; empty is a journal file in the run's folder.", role="machine")
    engine: Literal["processes", "ray"] = field("processes", "Who runs the trials: processes of this machine, or the nodes of a Ray cluster.", role="machine")
    jobs: PositiveInt = field(1, "Trials that run at the same time.", unit="trials", role="machine")
    keep: PositiveInt = field(1, "Trials, the best first, whose models are kept.", unit="trials", role="machine")
    startup: Annotated[int, Field(ge=0)] | Auto = field("auto", "Trials drawn at random before tpe or cma_es learns from them; auto is a quarter, from 4 to 10.", unit="trials", role="machine")
    population: PopulationConfig = field(PopulationConfig(), "Of the sampler population.")

    foreign: ClassVar[dict[str, str]] = {
        "n_trials": "trials",
        "num_samples": "trials",
        "timeout": "minutes",
        "n_jobs": "jobs",
        "algorithm": "sampler",
        "search_alg": "sampler",
        "scheduler": "pruner",
        "objective": "metric",
        "mode": "direction",
    }

    @model_validator(mode="after")
    def _population_alone(self) -> TuneConfig:
        if self.sampler == "population" and (self.pruner != "none" or self.seeds > 1):
            raise ValueError("a population replaces its worst itself and has one seed: leave pruner and seeds out")
        return self
