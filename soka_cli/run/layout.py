"""Where everything lies in a run directory. The only place that spells a path in a run."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunLayout:
    """Paths of one run directory; creates nothing and reads no file."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def recipe_source(self) -> Path:
        return self.root / "recipe.source.yaml"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def last_used(self) -> Path:
        """Beside the run, not in it: the run directory used last in this folder (`runs/.last`)."""
        return self.root.parent / ".last"

    def environment(self, stage: str) -> Path:
        return self.root / "env" / f"{stage.replace('/', '-')}.json"

    def log(self, stage: str) -> Path:
        return self.root / "logs" / f"{stage.replace('/', '-')}.log"

    @property
    def set_aside(self) -> Path:
        return self.root / ".old"

    @property
    def decompose(self) -> Path:
        return self.root / "decompose"

    @property
    def factors(self) -> Path:
        return self.decompose / "factors.safetensors"

    @property
    def spectra(self) -> Path:
        return self.decompose / "spectra.safetensors"

    @property
    def layers(self) -> Path:
        return self.decompose / "layers.json"

    @property
    def search(self) -> Path:
        """What a shape search compared; only where a shape was searched."""
        return self.decompose / "search.json"

    @property
    def decompose_parts(self) -> Path:
        """One file per module while decompose is under way; gone when it is done."""
        return self.root / "decompose.parts"

    @property
    def decompose_matrices(self) -> Path:
        """What a start from data decomposes, while decompose is under way."""
        return self.decompose_parts / "matrices"

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def metrics(self) -> Path:
        return self.train / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.train / "checkpoints"

    @property
    def trackers(self) -> Path:
        """Where trackers that write files put them, each in a folder of its own."""
        return self.train / "trackers"

    @property
    def adapter(self) -> Path:
        return self.train / "adapter"

    @property
    def adapter_weights(self) -> Path:
        """The file inside the adapter's folder, by PEFT's name."""
        return self.adapter / "adapter_model.safetensors"

    @property
    def full_model(self) -> Path:
        return self.train / "model"

    @property
    def evaluations(self) -> Path:
        return self.root / "eval"

    def evaluation(self, name: str, kind: str) -> Path:
        """`name` is the eval entry's, `kind` one of base, adapter, merged, other."""
        return self.evaluations / f"{name}-{kind}"

    def predictions(self, name: str, kind: str) -> Path:
        return self.evaluation(name, kind) / "predictions.jsonl"

    def predictions_part(self, name: str, kind: str, rank: int) -> Path:
        """One process's rows while several share an evaluation; gone when they are put together."""
        return self.evaluation(name, kind) / f"predictions.{rank}.jsonl"

    def predictions_parts(self, name: str, kind: str) -> list[Path]:
        """Those that are there, of any process."""
        return list(self.evaluation(name, kind).glob("predictions.[0-9]*.jsonl"))

    def scores(self, name: str, kind: str) -> Path:
        return self.evaluation(name, kind) / "scores.json"

    @property
    def contamination(self) -> Path:
        """Of all evaluations: which items training rows hold, and the scores with and without them."""
        return self.root / "contamination.json"

    @property
    def merge(self) -> Path:
        return self.root / "merge"

    @property
    def merged_model(self) -> Path:
        return self.merge / "model"

    @property
    def parity(self) -> Path:
        return self.merge / "parity.json"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def report_page(self) -> Path:
        return self.report / "report.html"

    @property
    def report_text(self) -> Path:
        return self.report / "report.md"

    @property
    def report_findings(self) -> Path:
        return self.report / "report.json"

    @property
    def learnt_spectra(self) -> Path:
        """After training: what the update and the trained terms look like."""
        return self.report / "spectra.safetensors"

    def plot(self, name: str) -> Path:
        return self.report / "plots" / f"{name}.svg"
