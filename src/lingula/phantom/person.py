"""Who is on the film, and the generators that belong to a patient, a study and an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_PATIENT, _STUDY, _IMAGE, _LABELS = range(4)


@dataclass(frozen=True)
class Person:
    """What the table says of a patient. `age` in years at the first study."""

    age: int
    female: bool


@dataclass(frozen=True)
class Seeds:
    """Three levels of chance: an image shares its signs with its study, its body with its patient.

    They are read off the spawn key (patient, study, image) of one `SeedSequence`; a shorter key
    serves for the levels that it lacks. So an image depends on nothing but the seed and its key.
    """

    sequence: np.random.SeedSequence

    def _generator(self, depth: int, *tag: int) -> np.random.Generator:
        key = (*self.sequence.spawn_key[:depth], 7919, *tag)
        return np.random.Generator(
            np.random.SFC64(np.random.SeedSequence(self.sequence.entropy, spawn_key=key))
        )

    def patient(self, *tag: int) -> np.random.Generator:
        """Chance that is the same for all images of a patient."""
        return self._generator(1, _PATIENT, *tag)

    def study(self, *tag: int) -> np.random.Generator:
        """Chance that is the same for the images of one study."""
        return self._generator(2, _STUDY, *tag)

    def image(self, *tag: int) -> np.random.Generator:
        """Chance of one image alone."""
        return self._generator(3, _IMAGE, *tag)

    def labels(self, *tag: int) -> np.random.Generator:
        """Chance that decides labels; apart from drawing, so that either can change alone."""
        return self._generator(2, _LABELS, *tag)


def person(seeds: Seeds) -> Person:
    """The patient's age and sex."""
    rng = seeds.patient(0)
    age = int(np.clip(rng.normal(61, 17), 18, 91))
    return Person(age, bool(rng.random() < 0.47))
