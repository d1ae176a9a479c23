"""GLUE's metrics through scikit-learn and scipy, as a metric that ``evaluate.load`` takes by path.

Each task names what its leaderboard reports; "default" is for data outside GLUE.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


BINARY_F1 = ("mrpc", "qqp")


class GlueAccuracy(evaluate.Metric):
    """Accuracy for every classification task, and beside it what the task asks for."""

    def _info(self) -> evaluate.MetricInfo:
        kind = "float32" if self.config_name == "stsb" else "int64"
        features = {"predictions": datasets.Value(kind), "references": datasets.Value(kind)}
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="class numbers, or scores for stsb",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        if self.config_name == "stsb":
            pearson = float(pearsonr(predictions, references)[0])
            return {"pearson": pearson, "spearmanr": float(spearmanr(predictions, references)[0])}
        scores = {"accuracy": float(accuracy_score(references, predictions))}
        if self.config_name == "cola":
            scores["matthews_correlation"] = float(matthews_corrcoef(references, predictions))
        if self.config_name in BINARY_F1:
            scores["f1"] = float(f1_score(references, predictions))
        if self.config_name == "default":
            scores["f1_macro"] = float(f1_score(references, predictions, average="macro"))
        return scores
