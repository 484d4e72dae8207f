"""`Run`: what can be done with a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgkd_edge.api.result import Result, as_html, as_text
from hgkd_edge.api.signatures import takes_fields_of
from hgkd_edge.api.work import (
    Overrides,
    as_assignments,
    require_training_packages,
)
from hgkd_edge.bench.options import BenchOptions, RunBenchOptions
from hgkd_edge.cells import counted
from hgkd_edge.console import console
from hgkd_edge.errors import RunError
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.manifest_record import Distilled
from hgkd_edge.processes import on_main
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.tables import label_tables, score_table, task_table, warning_lines

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hgkd_edge.api.embedding import Embeddings
    from hgkd_edge.api.model import AnyImages, Predictions
    from hgkd_edge.score_records import FinetuneRecord, ScoreRecord
    from hgkd_edge.tasks.config import FinetuneConfig

__all__ = ["Run", "distilled_lines", "load"]


def load(path: str | os.PathLike[str] | None = None) -> Run:
    """An existing run.

    Args:
        path: Its folder, or its name in `runs/`; None is the latest.

    Raises:
        RunError: There is none, or the folder is not a run. Exported files: `load_model`.
    """
    return Run(RunDir.resolve(None if path is None else Path(path)))


class Run:
    """A run folder: its backbone, fine-tuned model, exported files, measurements and records.

    Everything lies in files, so a `Run` may be made again at any time: `hgkd_edge.load(run.path)`.
    """

    def __init__(self, folder: RunDir) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @property
    def recipe(self) -> Recipe:
        """The fully resolved recipe that the run was made from."""
        return self.folder.recipe()

    @property
    def distilled(self) -> Result:
        """What the distillation recorded: `run`, `held_out` scores, `warnings`.

        Raises:
            RunError: It is not finished.
        """
        self.folder.require(self.folder.backbone_file, fix=self.folder.resume_command)
        recorded = self.folder.manifest().result or Distilled(held_out=None)
        return Result(
            {"run": str(self.path), **recorded.to_dict()},
            lambda: distilled_lines(str(self.path), recorded),
        )

    @property
    def finetuned(self) -> Result:
        """What the fine-tuning recorded: `task`, `model`, `card`, `metric`, `scores`, `warnings`.

        Raises:
            RunError: It is not finished.
        """
        fix = f"hgkd-edge finetune {self.folder.quoted}"
        self.folder.require(self.folder.finetune_result_file, fix=fix)
        record = self.folder.finetune_result()
        assert record is not None, "its file was required"
        return Result(record.to_dict(), lambda: _finetuned_lines(record))

    def finetune(
        self,
        task: str | None = None,
        data: str | os.PathLike[str] | None = None,
        *,
        init: str | None = None,
        overrides: Overrides = (),
        resume: bool = False,
        qat: bool = False,
    ) -> Run:
        """Train the run's backbone for a task; leave model.safetensors and a model card.

        Args:
            task: `classify` (the default), `multilabel`, `segment` or `detect`. `classify` becomes
                `multilabel` if images have several labels.
            data: Labeled images; None is those of the run.
            init: `distilled` (the default); `timm` or `scratch` to compare with.
            overrides: Keys to change: `{"train.epochs": 30}` or `["train.epochs=30"]`.
            resume: Resume a stopped fine-tuning with its own settings.
            qat: Train the run's fine-tuned model further, quantization-aware, in a separate run.

        Returns:
            The run that holds the model. A run keeps one: a second one, and one not initialized
            from the run's weights, gets a separate run next to it.

        Raises:
            RecipeError: A setting is invalid.
            DataError: The images cannot be read, or do not have the task's labels.
            RunError: The run has no backbone yet, or nothing to resume.
        """
        changes = as_assignments(overrides)
        given = None if data is None else Path(data)

        def prepare() -> tuple[FinetuneConfig, RunDir, str]:
            named = {"task": task, "init": init, "data.path": given}
            asked = as_assignments({key: named[key] for key in named if named[key] is not None})
            if qat:
                return *self._quantization_aware([*asked, *changes], resume), ""
            if resume:
                from hgkd_edge.tasks.config import resume as settings_of

                return settings_of(self.folder, [*asked, *changes]), self.folder, ""
            return self._settled(task or "classify", given, init or "distilled", changes)

        config, folder, because = on_main(prepare)
        if resume and on_main(lambda: folder.is_finetuned):
            line = f"the fine-tuning in '{folder.path}' is finished: nothing to resume"
            console.print(line, soft_wrap=True)
            return Run(folder)
        require_training_packages("finetune")
        from hgkd_edge.finetune import finetune

        with folder.at_work():
            finetune(config, folder, resume=resume, opened=lambda: folder.announce(because))
        return Run(folder)

    def _settled(
        self, task: str, data: Path | None, init: str, changes: Sequence[str]
    ) -> tuple[FinetuneConfig, RunDir, str]:
        """Settings of a new fine-tuning, its folder, and why it is not this run's."""
        from hgkd_edge.tasks.config import resolve

        config = resolve(self.folder, task, data, init, changes)
        if config.init == "distilled" and not self.folder.holds_finetuning:
            return config, self.folder, ""
        require_training_packages("finetune")
        from hgkd_edge.finetune import starting_weights

        starting_weights(config)  # weights that are not available leave no folder behind
        if config.init == "distilled":
            return config, self.folder.branch(config.task), f"{self.path} keeps its own model"
        return config, self.folder.branch(config.init), f"weights: {config.init}"

    def _quantization_aware(
        self, changes: Sequence[str], resume: bool
    ) -> tuple[FinetuneConfig, RunDir]:
        """Settings and folder of a quantization-aware training, once it can work."""
        from hgkd_edge.models.quantized import require_modelopt
        from hgkd_edge.tasks import config as settings

        require_modelopt()
        if not resume:
            return settings.quantization_aware(self.folder, changes), self.folder.branch("qat")
        begun = settings.resume(self.folder, changes)
        if begun.qat is None:
            raise RunError(
                f"the fine-tuning in '{self.path}' is not quantization-aware",
                hint=f"hgkd-edge finetune {self.folder.quoted} --resume",
            )
        return begun, self.folder

    def evaluate(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        split: str | None = None,
        features: bool = False,
        trust_engine: bool = False,
    ) -> Result:
        """Score the fine-tuned model, or, before there is one, the frozen backbone's features.

        Args:
            model: A file exported from the run's model, to score in its place.
            split: `train`, `val`, `test` or `holdout`; None is what training never saw.
            features: Score the frozen backbone by k-NN and linear probe although there is a model.
            trust_engine: Load an engine although it was not built on this machine.

        Returns:
            `split`, `photos`, scores with their intervals and baselines, and `warnings`.

        Raises:
            RunError: There is nothing to score, `model` is not of this run, or is given with
                `features`.
            DataError: There is no such split with labels.
        """
        if features and model is not None:
            raise RunError(
                f"--features scores the backbone, and not --model {model}",
                hint="use one of the two options",
            )
        require_training_packages("evaluate")
        from hgkd_edge.evaluate import evaluate_features, evaluate_model

        if features or not (model or self.folder.model_file.is_file()):
            known = evaluate_features(self.folder, split=split)
            return _evaluated(known, score_table(known))
        path = None if model is None else Path(model)
        found = evaluate_model(self.folder, model=path, split=split, trust_engine=trust_engine)
        return _evaluated(found, task_table(found), *label_tables(found))

    @takes_fields_of(ExportOptions)
    def export(self, **options: Any) -> Result:
        """Export to ONNX, OpenVINO and TensorRT, each file verified on real images.

        Args:
            **options: The fields of `ExportOptions`, such as `precision="int8"`, `trt=True`,
                `openvino=True` or `bundles=["jetson"]`. The fp32 ONNX file is always made.

        Returns:
            `files` with the verification of each; also in the run's `export.json`.

        Raises:
            ExportError: Options that cannot work, or the fp32 file failed.
            ExportIncomplete: Other files failed; its `result` lists both.
        """
        from hgkd_edge.api.exporting import export

        chosen = ExportOptions(**options)
        return export(self.folder, chosen)

    @takes_fields_of(RunBenchOptions)
    def bench(self, device: str = "cpu", **options: Any) -> Result:
        """Measure latency and throughput of the exported files.

        Args:
            device: `cpu`, `cuda`, `openvino` or `jetson`.
            **options: The other fields of `RunBenchOptions`, such as `batches=[1, 8]`,
                `host="nvidia@orin"` (over SSH) or `duration_s=2.0`.

        Returns:
            `file` (bench.json), `sessions` and `refusals`.

        Raises:
            RunError: There is no exported file.
            DeviceError: The device cannot be reached or used.
            WrongOutputs: A file's outputs differ from its ONNX file's.
            WorkFailed: The work on a device failed, or the connection broke.
        """
        from hgkd_edge.api.measuring import measure

        return measure(BenchOptions(models=(self.path,), device=device, **options))

    def predict(
        self,
        images: AnyImages,
        *,
        out: str | os.PathLike[str] | None = None,
        threshold: float | None = None,
        save_labels: str = "",
    ) -> Predictions:
        """Predict with the fine-tuned model: `load_model(run.path).predict(images)`.

        Args:
            images: As for `Model.predict`: files, folders, PIL images or arrays.
            out: Write pictures and `predictions.json` to this folder.
            threshold: Lowest score of a box or a label; None is the model's own.
            save_labels: Also write the predictions as a data set to `out/labels`: yolo, coco, voc,
                folders or csv.

        Raises:
            RunError: The run is not fine-tuned.
            DataError: There are no images, or none can be read.
        """
        from hgkd_edge.api.model import load_model

        model = load_model(self.path)
        return model.predict(images, out=out, threshold=threshold, save_labels=save_labels)

    def embed(
        self,
        images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        out: str | os.PathLike[str] | None = None,
        *,
        neighbors: str | os.PathLike[str] | None = None,
    ) -> Embeddings:
        """Compute the backbone's features of images: `hgkd_edge.embed(run.path, images)`.

        Args:
            images: Image files, or folders of them.
            out: Write the features to this file, `.npz` or `.parquet`.
            neighbors: Draw a few images with their nearest neighbors to this picture file.

        Raises:
            RunError: The run has no backbone yet.
            DataError: There are no images, or none can be read.
        """
        from hgkd_edge.api.embedding import embed

        return embed(self.path, images, out, neighbors=neighbors)

    def report(self, *others: Run) -> Path:
        """Write one HTML page: curves, pictures, scores, proofs, the file to deploy, provenance.

        Args:
            *others: Runs to compare this one with, on one page.

        Returns:
            The page: `report.html`, or `comparison.html` in this run's folder.

        Raises:
            RunError: A file of a run is damaged, or there are too many runs.
        """
        from hgkd_edge.report import report

        return report(self.folder, *(other.folder for other in others))

    def lines(self) -> list[RenderableType]:
        """What the run holds, for a `rich` console."""
        lines: list[RenderableType] = [f"run folder: {self.path}"]
        if self.folder.is_finetuned:
            lines += self.finetuned.lines()
        elif self.folder.is_distilled:
            lines += self.distilled.lines()[1:]
        else:
            lines.append(f"not finished: {self.folder.resume_command}")
        return lines

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __str__(self) -> str:
        return as_text(self.lines())

    def _repr_html_(self) -> str:
        return as_html(self.lines())


def distilled_lines(run: str, distilled: Distilled) -> list[RenderableType]:
    """What a distillation left, and how well it predicts features."""
    held_out = distilled.held_out
    lines: list[RenderableType] = [
        f"run folder: {run}",
        f"dense backbone: {run}/backbone.safetensors",
    ]
    if held_out is not None:
        lines.append(
            f"teacher features at {held_out.sites} sites of "
            f"{counted(held_out.photos, 'held-out image')}: cosine "
            f"{held_out.student:.3f} (mean token: {held_out.mean_token:.3f})"
        )
    return [*lines, *warning_lines(distilled.warnings)]


def _finetuned_lines(record: FinetuneRecord) -> list[RenderableType]:
    """What a fine-tuning left, after its scores."""
    lines: list[RenderableType] = [f"model: {record.model}", f"model card: {record.card}"]
    if record.single:
        lines = [task_table(record), *label_tables(record), *lines]
    if record.int8_score is not None:
        lines.append(f"with INT8 simulated: {record.metric} {record.int8_score:.4f}")
    return [*lines, *warning_lines(record.warnings)]


def _evaluated(record: ScoreRecord, *tables: RenderableType) -> Result:
    return Result(record.to_dict(), lambda: [*tables, *warning_lines(record.warnings)])
