"""The versions of the model that were promoted, and the champion among them.

    models/versions/3-1a2b3c4d/   immutable: weights and card, the predictions they were evaluated by, scores
                                  and curves, parameters, lineage.json
    models/champion               a symbolic link to one of the versions, replaced atomically

A version is renamed into place when it is complete and never changed or deleted; a rollback links an older
version again. Promotions and rollbacks are recorded in Git (see provenance). The weights are not in Git but
in DVC's cache, under the commit that the lineage names.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from personlab import params as parameters
from personlab.errors import UserError
from personlab.metrics.coco import ground_truth
from personlab.params import Decode, Params
from personlab.registry import promotion, provenance
from personlab.registry.promotion import Predictions, Rule, Verdict
from personlab.skeleton import Skeleton
from personlab.tables import read_dataset, shards
from personlab.utils.files import atomic_folder, file_lock, read_json, replace_link, write_json

WEIGHTS = "model.safetensors"
CARD = "model.json"
# name in a version: file of the candidate
_FILES = {
    WEIGHTS: "data/infer/model.safetensors",
    CARD: "data/infer/model.json",
    "metrics.json": "data/metrics/evaluate.json",
    "params.yaml": "params.yaml",
}


class Lineage(BaseModel):
    """The provenance of a version, lineage.json. Unknown keys, of other versions of personlab, are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    version: int
    weights: str  # SHA-256
    replaces: int | None  # version of the previous champion
    when: datetime
    why: str
    commit: str
    experiment: str | None  # DVC's
    data: provenance.Data
    params: dict[str, Any]  # as written by the version of personlab that promoted it
    metrics: dict[str, dict[str, float | None]]


# What decides the predictions of a served model: SHA-256 of the weights, and the decoding parameters.
Served = tuple[str, Decode]


@dataclass(frozen=True)
class Version:
    folder: Path

    @cached_property
    def lineage(self) -> Lineage:
        path = self.folder / "lineage.json"
        try:
            return Lineage.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; restore the whole folder") from None
        except ValidationError as error:
            why = parameters.reasons(error)
            raise UserError(f"{path}: not the lineage of a model ({why}); restore the whole folder") from None

    @cached_property
    def settings(self) -> Params:
        """The parameters, as this version of personlab names them."""
        try:
            return parameters.from_saved(self.lineage.params)
        except ValidationError as error:
            raise UserError(f"{self.folder / 'lineage.json'}: params: {parameters.reasons(error)}") from None

    @property
    def served(self) -> Served:
        return self.lineage.weights, self.settings.decode

    @property
    def skeleton(self) -> Skeleton:
        return Skeleton.of_card(read_json(self.folder / CARD), self.folder / CARD)

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions"


@dataclass(frozen=True)
class Candidate:
    """The model of a checkout in which `dvc repro` has run."""

    folder: Path

    @cached_property
    def params(self) -> Params:
        return parameters.load(self.folder / "params.yaml")

    @cached_property
    def data(self) -> provenance.Data:
        return provenance.data_of(self.folder)

    @cached_property
    def weights(self) -> str:
        return provenance.digest(self.folder / _FILES[WEIGHTS], "sha256")

    @property
    def served(self) -> Served:
        return self.weights, self.params.decode

    @property
    def predictions(self) -> Path:
        return self.folder / "data/infer"


# Predictions of a version on validation shards other than those it was evaluated on, in a temporary folder.
PredictAgain = Callable[[Version, Path], AbstractContextManager[Path]]


@dataclass(frozen=True)
class Registry:
    """The versions of a project's model."""

    root: Path  # folder of the project

    def versions(self) -> list[Version]:
        """Oldest first."""
        found = [Version(path.parent) for path in self._folder.glob("versions/*/lineage.json")]
        return sorted(found, key=lambda version: version.lineage.version)

    def champion(self) -> Version | None:
        link = self._folder / "champion"
        if not link.is_symlink():
            return None
        if not link.exists():
            raise UserError(f"{link}: its version is missing; restore it, or 'personlab models rollback N'")
        return Version(link.resolve())

    def judge(self, candidate: Candidate, rule: Rule, predict_again: PredictAgain) -> Verdict:
        """Compare a candidate with the champion. Changes nothing.

        A model that was replaced or rolled back is not promoted again, except by the rule `always`: a
        scheduled run that trains it once more must not undo a rollback.

        Raises:
            UserError: files of the candidate are missing, or of different runs; or it has other keypoints
                than the champion, unless the rule is `always` or `never`.
        """
        data, champion = candidate.data, self.champion()
        if champion is None:
            return Verdict(rule != "never", "there is no champion yet")
        if candidate.served == champion.served and _same(candidate.predictions, champion.predictions):
            why = f"it is the champion, version {champion.lineage.version}"
            return Verdict(False, why, unchanged=True)
        if rule not in ("always", "never") and (retired := self._retired(candidate, champion)):
            number = retired.lineage.version
            why = f"it is version {number}, which was replaced or rolled back; "
            return Verdict(False, f"{why}'personlab models rollback {number}' brings it back")
        skeleton = read_dataset(candidate.folder / "data").skeleton
        if champion.skeleton.keypoints != skeleton.keypoints:
            why = f"its keypoints ({skeleton}) are not the champion's ({champion.skeleton})"
            if rule in ("always", "never"):
                return Verdict(rule == "always", why)
            raise UserError(f"{why}: scores cannot be compared; promote it with the rule 'always'")
        val = candidate.folder / "data/ingest/val"
        images = shards.annotated(val, candidate.folder / "data/targets/val")

        def read(predictions: Path, params: Params) -> Predictions:
            return Predictions(shards.detections(predictions, images, val), params.decode.max_people)

        same_images = champion.lineage.data.val == data.val
        kept = nullcontext(champion.predictions)
        with kept if same_images else predict_again(champion, val) as predictions:
            old = read(predictions, champion.settings)
        new = read(candidate.predictions, candidate.params)
        return promotion.decide(promotion.compare(ground_truth(images.values(), skeleton), old, new), rule)

    def promote(
        self, candidate: Candidate, rule: Rule, predict_again: PredictAgain, why: str = ""
    ) -> tuple[Verdict, Version | None]:
        """Make a candidate the champion if `judge` promotes it.

        Args:
            why: recorded before the rule's own reason.

        Returns:
            The verdict, and the new version if it was promoted.

        Raises:
            UserError: as `judge`; or the candidate's dvc.lock is in no commit and no DVC experiment.
        """
        # one at a time: each is judged against the champion that the one before left
        with file_lock(self._folder / ".lock"):
            verdict = self.judge(candidate, rule, predict_again)
            if not verdict.promoted:
                return verdict, None
            version = self._add(candidate, "; ".join(filter(None, (why, verdict.why))))
            self._crown(version, f"version {version.lineage.version}: {version.lineage.why}")
            return verdict, version

    def rollback(self, number: int | None = None, why: str = "") -> Version:
        """Make an earlier version the champion again. Default: the one that the champion replaced.

        Raises:
            UserError: there is no such version, or it is the champion.
        """
        with file_lock(self._folder / ".lock"):
            champion = self.champion()
            wanted = champion.lineage.replaces if champion and number is None else number
            if wanted is None:
                raise UserError("no earlier champion; 'personlab models list' lists the versions")
            known = {version.lineage.version: version for version in self.versions()}
            if wanted not in known:
                raise UserError(f"no version {wanted}; there are: {', '.join(map(str, known)) or 'none'}")
            if champion and champion.lineage.version == wanted:
                raise UserError(f"version {wanted} is the champion already")
            self._crown(known[wanted], "; ".join(filter(None, (f"rolled back to version {wanted}", why))))
            return known[wanted]

    @property
    def _folder(self) -> Path:
        return self.root / "models"

    def _retired(self, candidate: Candidate, champion: Version) -> Version | None:
        """The last version that is the candidate's model, if the champion is not."""
        if candidate.served == champion.served:
            return None
        same = [each for each in self.versions() if each.lineage.weights == candidate.weights]
        return next((each for each in reversed(same) if each.served == candidate.served), None)

    def _add(self, candidate: Candidate, why: str) -> Version:
        state = provenance.state_of(candidate.folder)
        champion, digest = self.champion(), candidate.weights
        number = max((version.lineage.version for version in self.versions()), default=0) + 1
        lineage = Lineage(
            version=number,
            weights=digest,
            replaces=champion.lineage.version if champion else None,
            when=datetime.now(UTC).replace(microsecond=0),
            why=why,
            commit=state.commit,
            experiment=state.experiment,
            data=candidate.data,
            params=candidate.params.model_dump(mode="json"),
            metrics=read_json(candidate.folder / _FILES["metrics.json"]),
        )
        final = self._folder / "versions" / f"{number}-{digest[:8]}"
        with atomic_folder(final) as folder:
            for name, source in _FILES.items():
                shutil.copyfile(candidate.folder / source, folder / name)
            others = shutil.ignore_patterns(WEIGHTS, CARD)
            shutil.copytree(candidate.predictions, folder / "predictions", ignore=others)
            shutil.copytree(candidate.folder / "data/plots/evaluate", folder / "plots")
            write_json(folder / "lineage.json", lineage.model_dump(mode="json"))
        return Version(final)

    def _crown(self, version: Version, message: str) -> None:
        lineage = version.lineage
        scores = ", ".join(f"{task} AP {values['AP']}" for task, values in lineage.metrics.items())
        message = (
            f"{message}\n\nweights: sha256 {lineage.weights}\nscores: {scores}\n"
            f"data: train {lineage.data.train}, val {lineage.data.val}\n"
            f"experiment: {lineage.experiment or '-'}\n"
        )
        # Recorded first: what Git refuses does not happen.
        provenance.record(self.root, lineage.commit, lineage.version, message)
        replace_link(self._folder / "champion", version.folder.relative_to(self._folder))


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same predictions."""
    first, second = (
        {path.name: path.read_bytes() for path in folder.glob("*.parquet")} for folder in (one, other)
    )
    return first == second
