"""Fine-tune a distilled backbone for a task, and write a self-describing model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from exporters import runtimes
from exporters.runtimes import Runner
from hgkd_edge.confidence import BOOTSTRAP, METHOD, not_better, score_intervals, task_baseline
from hgkd_edge.data.sources import ImageSource, held_out_split, unlearned_classes
from hgkd_edge.engine import Workplace, train
from hgkd_edge.errors import RunError, reason_of
from hgkd_edge.files import atomic_write, file_sha256, write_json
from hgkd_edge.knn_and_probe import majority_top1
from hgkd_edge.manifest_record import ManifestRecord, QuantizationAware
from hgkd_edge.models.backbone import BackboneSpec, read_backbone
from hgkd_edge.models.published_weights import create_published
from hgkd_edge.models.quantized import input_ranges, simulate_int8, take_rounded_weights
from hgkd_edge.processes import is_main
from hgkd_edge.provenance import circumstances, report_photos
from hgkd_edge.records import SCHEMA_VERSION
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import FinetuneRecord, TaskRecord
from hgkd_edge.tasks.base import Answers, ModelCard, VisionTask, read_model, save_model
from hgkd_edge.tasks.card import model_card
from hgkd_edge.tasks.classify import Classification
from hgkd_edge.tasks.config import FinetuneConfig, QatConfig, settled
from hgkd_edge.tasks.detect import ObjectDetection
from hgkd_edge.tasks.multilabel import MultiLabel
from hgkd_edge.tasks.segment import Segmentation

__all__ = [
    "TASKS",
    "answers",
    "finetune",
    "load_model",
    "starting_weights",
    "weigh",
]

BATCH = 16  # images per batch of predictions: a label map of many classes is large

TASKS: dict[str, VisionTask] = {
    task.name: task for task in (Classification(), MultiLabel(), Segmentation(), ObjectDetection())
}


def finetune(
    config: FinetuneConfig,
    run: RunDir,
    *,
    resume: bool = False,
    opened: Callable[[], None] = lambda: None,
) -> FinetuneRecord | None:
    """Fine-tune a backbone into a run folder.

    Args:
        config: Fully resolved.
        run: Where the model is written; usually the run that has the backbone.
        resume: Resume from `checkpoints/finetune.pt`.
        opened: Called once the images are open and have the task's labels.

    Returns:
        Scores on the held-out split, with its name and size; also written to `finetune.json`. None
        on processes other than the main one: their part ends with the training.

    Raises:
        RunError: The backbone file is missing or not written by hgkd-edge.
        RecipeError: The hub's weights cannot be downloaded.
        DataError: The images do not have the task's labels.
    """
    task = TASKS[config.task]
    state, spec = starting_weights(config)
    splits = task.open_splits(config)
    opened()
    source = splits["train"]
    config = settled(config, source.decided)
    spec = replace(spec, bits=source.bits)
    card = ModelCard(config.task, tuple(source.classes), spec, threshold=config.threshold)
    torch.manual_seed(config.seed)
    network = task.create(card)
    if state is not None:
        task.fill(network, state)
    if config.qat is not None:
        network = _simulated(config.qat, card, source)
    report_photos(splits)
    if is_main():
        _record_start(run, config, splits)
    resumed = resume and run.finetune_checkpoint_file.is_file()
    trained = train(
        task.learner(network, card, source, _without_probe(config) if resumed else config),
        source,
        config.train,
        seed=config.seed,
        place=Workplace(
            log_file=run.finetune_log_file,
            checkpoint_file=run.finetune_checkpoint_file,
            tracker_dir=run.path,
            resume_command=f"hgkd-edge finetune {run.quoted} --resume",
        ),
        label=f"fine-tuning ({config.task})",
        resume=resume,
    )
    if not is_main():
        return None
    return _leave(trained.get_submodule("network"), card, config, splits, run)


def _without_probe(config: FinetuneConfig) -> FinetuneConfig:
    """The same settings without a linear probe's weights, which a checkpoint would replace."""
    start = config.classify.model_copy(update={"probe_first": False})
    return config.model_copy(update={"classify": start})


def _record_start(run: RunDir, config: FinetuneConfig, splits: dict[str, ImageSource]) -> None:
    """Write what is trained, on what, to the manifest and to `finetune.yaml`."""
    origin = circumstances(seed=config.seed, precision=config.train.precision, splits=splits)
    entries = ManifestRecord(finetune=origin)
    if config.qat is not None:
        entries.quantization_aware = _origin(config.qat)
    run.update_manifest(entries)
    with atomic_write(run.finetune_file) as temporary:
        settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        temporary.write_text(settings, encoding="utf-8")


def _leave(
    network: nn.Module,
    card: ModelCard,
    config: FinetuneConfig,
    splits: dict[str, ImageSource],
    run: RunDir,
) -> FinetuneRecord:
    """Write the model, score it on the held-out split, and record both."""
    task, trained = TASKS[config.task], network
    if config.qat is not None:
        card = replace(card, input_ranges=input_ranges(trained))
        network = task.create(card)
        take_rounded_weights(trained, network)
    save_model(network, card, run.model_file)
    start = config.backbone if config.qat is None else config.qat.model
    run.add_artifact(run.model_file, made_from=[start])
    result = FinetuneRecord(
        schema_version=SCHEMA_VERSION,
        task=config.task,
        init=config.init,
        model=str(run.model_file),
        card=str(run.card_file),
        metric=task.metric,
    )
    if (held_out := held_out_split(splits, labeled=True)) is not None:
        source = splits[held_out]

        def batches(scored: nn.Module) -> Iterator[Answers]:
            runner = runtimes.open(scored, names=task.output_names).run
            return answers(runner, task, card, source)

        result.split, result.photos = held_out, len(source)
        result.scores = task.judge(batches(network), card, run.pictures_dir)
        if config.qat is not None:
            result.int8_score = task.judge(batches(trained), card).single[task.metric]
        weigh(result, splits["train"], source)
    write_json(run.finetune_result_file, result.to_dict())
    with atomic_write(run.card_file) as temporary:
        text = model_card(card, config, result, photos=len(splits["train"]))
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return result


def _simulated(qat: QatConfig, card: ModelCard, source: ImageSource) -> nn.Module:
    """The fine-tuned model that a quantization-aware fine-tuning starts from, with INT8 simulated.

    Raises:
        RunError: The model is missing, or was made for other classes.
    """
    network, made = load_model(qat.model)
    if made.classes != card.classes:
        raise RunError(
            f"{qat.model} was made for the classes {', '.join(made.classes)}; the images have "
            f"{', '.join(card.classes)}",
            hint="fine-tune for these images first, without --qat",
        )
    chosen = source.sample(qat.calibration)
    views = (TASKS[card.task].view(images, card) for images, _ in chosen.batches(BATCH))
    return simulate_int8(network, views)


def _origin(qat: QatConfig) -> QuantizationAware:
    """What the manifest says of a quantization-aware training."""
    return QuantizationAware(
        library=f"nvidia-modelopt {version('nvidia-modelopt')}",
        model=str(qat.model),
        model_sha256=file_sha256(qat.model),
    )


def weigh(result: TaskRecord, train: ImageSource, test: ImageSource) -> None:
    """Add intervals, the baseline, the share of ignored pixels, and warnings where needed.

    Args:
        result: Task, metric, scores and number of images.
        train: The training images.
        test: The images that were scored.
    """
    task, scores, metric = result.task, result.scores, result.metric
    assert scores is not None
    majority = majority_top1(train.labels, test.labels) if task == "classify" else 0.0
    classifies = task in ("classify", "multilabel")
    unlearned = unlearned_classes(train, test) if classifies else ""
    baseline = task_baseline(task, scores, majority, count=result.count)
    intervals = score_intervals(scores, train.classes)
    line = not_better(
        metric,
        scores.single[metric],
        baseline,
        interval=intervals.single.get(metric),
        count=result.count,
    )
    if test.ignored is not None:
        scores.ignored_pixels = test.ignored
    result.baseline, result.intervals = baseline, intervals
    method = METHOD if task == "classify" else BOOTSTRAP
    result.interval_method = method if intervals.single else None
    result.warnings = [text for text in (line, unlearned) if text]


def answers(
    runner: Runner, task: VisionTask, card: ModelCard, source: ImageSource
) -> Iterator[Answers]:
    """A network's outputs for every image of a source, batch by batch."""
    for images, labels in source.batches(BATCH):
        yield Answers(images, labels, runner(task.view(images, card).numpy()))


def load_model(path: Path) -> tuple[nn.Module, ModelCard]:
    """A fine-tuned network in evaluation mode, and its card.

    Raises:
        RunError: The file is damaged or not written by hgkd-edge.
    """
    state, card = read_model(path)
    network = TASKS[card.task].create(card)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(
            f"{path} does not hold the network that it describes: {reason_of(error)}",
            hint="fine-tune it again",
        ) from error
    return network.eval(), card


def starting_weights(config: FinetuneConfig) -> tuple[dict[str, Tensor] | None, BackboneSpec]:
    """The weights to start from (None: untrained) and the backbone's description.

    Raises:
        RunError: The backbone file is missing or not written by hgkd-edge.
        RecipeError: The hub's weights cannot be downloaded.
    """
    state, spec = read_backbone(config.backbone)
    spec = replace(spec, size=config.data.size)
    if config.init == "distilled":
        return state, spec
    if config.init == "scratch" or config.qat is not None:  # a fine-tuned model has its own
        return None, spec
    hub = create_published(
        "student.name",
        spec.name,
        spec.args,
        asked="--init timm",
        instead="--init distilled or scratch",
    )
    return hub.state_dict(), spec
