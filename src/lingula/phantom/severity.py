"""How hard the phantom is: the one place where the visibility of signs and the noise are set.

Raise `EASE` and every sign becomes plainer; raise `NOISE` and every film becomes grainier. A single
finding is tuned by its line in `VISIBILITY`.
"""

from __future__ import annotations

import numpy as np

EASE = 1.9
NOISE = 0.75

# (least, most) severity of each finding, before `EASE`. 1 is what a textbook would print. The low
# ends are what a reader may miss: a finding in a report is often mild, and the label says 1 still.
VISIBILITY: dict[str, tuple[float, float]] = {
    "Atelectasis": (0.50, 1.3),
    "Calcification of the Aorta": (0.60, 1.5),
    "Cardiomegaly": (0.45, 1.3),
    "Consolidation": (0.25, 0.9),
    "Edema": (0.25, 1.0),
    "Emphysema": (0.30, 1.0),
    "Enlarged Cardiomediastinum": (0.50, 1.4),
    "Fibrosis": (0.50, 1.4),
    "Fracture": (1.00, 2.4),
    "Hernia": (0.60, 1.5),
    "Infiltration": (0.25, 1.0),
    "Lung Lesion": (0.55, 1.4),
    "Lung Opacity": (0.60, 1.4),
    "Mass": (0.40, 1.2),
    "Nodule": (0.50, 1.4),
    "Pleural Effusion": (0.25, 1.1),
    "Pleural Other": (0.70, 1.8),
    "Pleural Thickening": (0.70, 1.8),
    "Pneumomediastinum": (0.70, 1.7),
    "Pneumonia": (0.30, 1.1),
    "Pneumoperitoneum": (0.70, 1.7),
    "Pneumothorax": (0.80, 1.8),
    "Subcutaneous Emphysema": (0.45, 1.3),
    "Support Devices": (1.00, 2.0),
    "Tortuous Aorta": (0.35, 1.1),
}


def draw(finding: str, rng: np.random.Generator) -> float:
    """Severity of one finding in one study: spread over the whole range."""
    least, most = VISIBILITY[finding]
    return EASE * (least + (most - least) * float(rng.beta(1.8, 1.6)))
