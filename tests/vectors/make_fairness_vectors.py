"""Writes fairness.json: what fairlearn says of pooled predictions, for tests that run without it.

python tests/vectors/make_fairness_vectors.py
"""

import json
from pathlib import Path

import numpy as np


def predictions(seed: int, n: int) -> dict[str, list]:
    random = np.random.default_rng(seed)
    sex, race = random.choice(["f", "m"], n), random.choice(["a", "b", "c"], n, p=[0.5, 0.3, 0.2])
    labels = (random.random(n) < 0.2 + 0.3 * (sex == "m") + 0.1 * (race == "b")).astype(int)
    scores = np.clip(random.normal(0.35 + 0.3 * labels + 0.1 * (sex == "m") - 0.1 * (race == "c"), 0.2), 0, 0.999)
    return {"sex": sex.tolist(), "race": race.tolist(), "labels": labels.tolist(), "scores": scores.round(3).tolist()}


def by_fairlearn(labels: list, scores: list, groups: list) -> dict[str, float]:
    from fairlearn import metrics
    from sklearn.metrics import accuracy_score, precision_score

    named = (np.array(scores) >= 0.5).astype(int)
    asked = {"sensitive_features": groups}
    frame = metrics.MetricFrame(
        metrics={"accuracy": accuracy_score, "precision": precision_score}, y_true=labels, y_pred=named, **asked
    )
    return {
        "demographic_parity_difference": metrics.demographic_parity_difference(labels, named, **asked),
        "demographic_parity_ratio": metrics.demographic_parity_ratio(labels, named, **asked),
        "equal_opportunity_difference": metrics.equal_opportunity_difference(labels, named, **asked),
        "equalized_odds_difference": metrics.equalized_odds_difference(labels, named, **asked),
        "predictive_parity_difference": float(frame.difference()["precision"]),
        "worst_accuracy": float(frame.group_min()["accuracy"]),
    }


def main() -> None:
    cases = []
    for seed, n in [(1, 300), (2, 1000), (3, 4000)]:
        drawn = predictions(seed, n)
        both = [", ".join(pair) for pair in zip(drawn["sex"], drawn["race"], strict=True)]
        by = {"sex": drawn["sex"], "race": drawn["race"], "sex and race": both}
        cases.append(
            {
                "seed": seed,
                "records": n,
                "fairlearn": {
                    name: by_fairlearn(drawn["labels"], drawn["scores"], groups) for name, groups in by.items()
                },
            }
        )
    Path(__file__).with_name("fairness.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
