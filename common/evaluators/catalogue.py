"""The list of evaluators. A new one is one class and one line here; the contract test runs over all."""

from common.evaluators.classification import Utility
from common.evaluators.contribution import Contribution
from common.evaluators.drift import Drift
from common.evaluators.explanation import Explanation
from common.evaluators.exposure import Exposure
from common.evaluators.fairness import Fairness
from common.evaluators.inversion import Inversion
from common.evaluators.membership import MembershipInference
from common.evaluators.privacy_audit import PrivacyAudit
from common.evaluators.property_inference import PropertyInference
from common.evaluators.report import Evaluator, Findings, Material
from common.evaluators.robustness import Adversarial, OutOfDistribution, Robustness

EVALUATORS: tuple[Evaluator, ...] = (
    Utility(),
    Fairness(),
    Robustness(),
    Adversarial(),
    OutOfDistribution(),
    Explanation(),
    PrivacyAudit(),
    MembershipInference(),
    Inversion(),
    Exposure(),
    PropertyInference(),
    Contribution(),
    Drift(),
)


def evaluate_all(material: Material) -> list[Findings]:
    """What every evaluator finds whose parts are all there."""
    return [each.evaluate(material) for each in EVALUATORS if each.needs <= material.parts]
