"""What all scripts share that fit a codec to one kind of feature."""

from dataclasses import dataclass
from pathlib import Path

from dtufc import files, provenance
from dtufc.feature import FeatureFacts, list_features, load_facts
from dtufc.stamps import Stamp, digest_files

IDLE = ("features", "output", "machine", "device", "kl_curve")
"""Fields that do not decide a codec: places, devices, facts that a stamp holds by their content, and
whether something is measured of the codec."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Fitting of a codec."""

    features: Path
    """Folder of training features of one kind."""
    output: Path
    """Codec folder."""
    machine: str | None = None
    """Machine preset or YAML with the facts of the features; without one they are tokens x channels,
    as many as the first file has."""

    def facts(self) -> FeatureFacts:
        """The facts of the features.

        Raises:
            FileNotFoundError, UserError: no such machine, or no sound feature.
        """
        if self.machine is not None:
            return load_facts(self.machine)
        return FeatureFacts.of_tokens(list_features(self.features)[0])

    def stamp(self) -> Stamp:
        """Of the codec that a fit would give now; its inputs are the features.

        Raises:
            FileNotFoundError, FeatureError: there are no features.
        """
        values = {k: v for k, v in provenance.config_values(self).items() if k not in IDLE}
        values["facts"] = self.facts().decides()
        return Stamp(files.jsonable(values), digest_files(list_features(self.features)))

    def why_not_made(self) -> str | None:
        """Why the codec must be fitted, in words; ``None`` if it is there and current."""
        return provenance.why_no_codec(self.output, self.stamp())
