"""All that predictions and labels tell of how well a model predicts. Pure."""

from common.evaluators.calibration import calibration_error
from common.evaluators.report import Findings, Material, needed
from common.evaluators.utility import evaluate, f1, macro_f1, precision, recall


class Utility:
    """Accuracy, log loss, calibration error; for two classes AUROC, precision, recall, F1, else macro F1.

    References: those of `utility` and `calibration`. What the records do not support is left out.
    """

    name = "utility"
    needs = frozenset({"probabilities", "labels"})

    def evaluate(self, material: Material) -> Findings:
        rows = needed(material.probabilities, "probabilities", self.name)
        labels = needed(material.labels, "labels", self.name)
        figures, remarks = evaluate(rows, labels), []
        figures["calibration_error"] = calibration_error(rows, labels, material.rng)
        if rows.shape[1] > 2:
            figures["macro_f1"] = macro_f1(rows, labels, material.rng)
            return Findings(self.name, figures)
        named, true = bool((rows.argmax(axis=1) == 1).any()), bool((labels == 1).any())
        for figure, there in ((precision, named), (recall, true), (f1, named or true)):
            if there:
                figures[figure.__name__] = figure(rows, labels)
            else:
                remarks.append(f"no {figure.__name__}: no record is of class 1, or none is named so")
        return Findings(self.name, figures, tuple(remarks))
