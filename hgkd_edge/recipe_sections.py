"""The sections of a recipe. Plain data, no torch.

The text under each key is its description: in docs/recipe.md, and in the JSON schema for editors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from hgkd_edge.pretrain_settings import PretrainConfig
from hgkd_edge.yaml_settings import Section

__all__ = [
    "DataConfig",
    "Fraction",
    "LossConfig",
    "MaskConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainConfig",
]

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

PATHS = {
    "folder": "a folder of images, or a CSV file that lists them",
    "webdataset": "such as shards/train-{000..127}.tar",
    "hf": "a dataset's name on the hub, or its folder",
}


class DataConfig(Section):
    """Where images come from, and how they are decoded."""

    source: Literal["folder", "webdataset", "hf", "bundled"] = "folder"
    """`folder`: a tree of images, or a CSV file. `webdataset`: local tar shards. `hf`: a Hugging
    Face dataset. `bundled`: 2,000 CC0 photos of clothes."""
    path: Path | None = None
    """The folder or CSV file; the shards, such as `shards/train-{000..127}.tar`; or the name or
    folder of the dataset. Unreadable files are skipped, counted, and listed."""
    image_size: Positive | tuple[Positive, Positive] = 224
    """Side in pixels, or `[height, width]`; a multiple of the mask patch."""
    decode: Literal["auto", "once", "streaming"] = "auto"
    """`once`: decode all images before training, into memory or a temporary file. `streaming`:
    decode during training. `auto`: stream if the decoded images would take more than a quarter of
    the memory."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Number of decoding threads. `auto`: one per core, shared among the processes of a machine."""
    holdout: Fraction = 0.1
    """Share of images held out if the data have no other split (a folder without `train/`, or with
    `train/` only). 0 holds out none. Images are chosen by a hash of their name, so adding images
    never moves existing ones."""
    crop_scale: tuple[float, float] = (0.67, 1.0)
    """Area of the random crop, whose shape varies too. `[1, 1]`: no random crop."""
    flip: bool = True
    """Mirror half of the training views. false: for text, for classes that differ by side, and for
    a camera that never moves."""
    bits: Literal["auto"] | Annotated[int, Field(ge=8, le=16)] = "auto"
    """Bits that 16-bit image files use (8 to 16). `auto` checks a sample of the data set, scales
    all images by the same factor, and reports the decision."""

    @property
    def size(self) -> tuple[int, int]:
        """Image height and width in pixels."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    @model_validator(mode="after")
    def _path_goes_with_source(self) -> DataConfig:
        if self.source != "bundled" and self.path is None:
            raise ValueError(f"source '{self.source}' needs data.path, {PATHS[self.source]}")
        if self.source == "bundled" and self.path is not None:
            raise ValueError(
                "source 'bundled' takes no data.path; use source 'folder' for your own"
            )
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError("crop_scale must hold 0 < low <= high <= 1")
        return self


class TeacherConfig(Section):
    """The frozen Transformer whose representation the student predicts."""

    removed: ClassVar[Mapping[str, object]] = {"combine": "mean"}

    name: str
    """A timm ViT, BEiT, DINOv2/v3, EVA, or CLIP image encoder with plain patch tokens."""
    weights: Literal["hub", "path", "pretrain", "bundled"] = "hub"
    """`hub`: downloaded through timm. `path`: a local file. `pretrain`: trained without labels on
    the same images, and cached. `bundled`: the demo teacher of this package."""
    path: Path | None = None
    """The file for `weights: path`."""
    args: dict[str, object] = Field(default_factory=dict)
    """Architecture arguments of the timm model, such as `{depth: 6}`. Only numbers and plain words
    are accepted, nothing that loads a file or opens an address."""
    view: Literal["full", "visible"] = "full"
    """`full`: the teacher sees the whole image. `visible`: it sees only the visible tokens, once
    per mask. This is cheaper with one mask per image and more expensive with several. Targets then
    exist at visible patches only (plain ViTs, last block)."""
    layers: Literal["last"] | list[int] = "last"
    """`last`, or block indices such as `[8, 11]`. Each block's tokens are layer-normalized (no
    affine), then averaged."""
    standardize: bool = True
    """Subtract the mean token of each position from the targets and scale each channel."""
    cache: Annotated[int, Field(ge=0, le=1000)] = 0
    """Number of views per image to cache. The teacher runs once on each view. Its targets are
    stored in half precision in the cache folder (`targets/`) and reused in every epoch with new
    masks. 0: a new view and a teacher pass for every batch. Use it for up to some 10,000 images."""
    pretrain: PretrainConfig = PretrainConfig()
    """Settings for `weights: pretrain`."""

    @field_validator("path")
    @classmethod
    def _home_is_spelled_out(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    @model_validator(mode="after")
    def _path_goes_with_weights(self) -> TeacherConfig:
        if (self.weights == "path") != (self.path is not None):
            raise ValueError("set teacher.path if teacher.weights is 'path', and only then")
        if self.layers == []:
            raise ValueError("layers must be 'last' or name at least one block, such as [8, 11]")
        if self.view == "visible" and self.layers != "last":
            raise ValueError("view 'visible' gives the last block's tokens: set layers to 'last'")
        return self


class StudentConfig(Section):
    """The convolutional student: any timm model that supports `features_only`."""

    name: str
    """A convolutional timm model. `hgkd-edge recipes validate` shows whether it can be sparse."""
    weights: Literal["none", "hub", "path"] = "none"
    """Initial weights. `none`: untrained. `hub`: timm's published weights, whose license is printed
    and recorded. `path`: a local checkpoint of the same network (a classifier in it is ignored), a
    `backbone.safetensors`, or a `model.safetensors`. The sparse encoder has exactly these weights.
    """
    path: Path | None = None
    """The checkpoint for `weights: path`."""
    stem_stride: Literal[1, 2, 4] = 4
    """4 is the model as published. 2 or 1 keep resolution for small images (ResNets). The shapes of
    the weights do not change."""
    backend: Literal["auto", "tiles", "masked", "spconv"] = "auto"
    """`auto`: uses `tiles`. `masked`: the slow reference. `spconv`: training with it needs a GPU.
    """
    args: dict[str, object] = Field(default_factory=dict)
    """Architecture arguments of the timm model, such as `{channels: [32, 64, 128, 256]}`. Arguments
    that hgkd-edge sets are not accepted (`pretrained`, `num_classes`, `in_chans`, `out_indices`,
    `output_stride`, ...)."""
    decoder_width: Positive = 128
    """Channels of the decoder, which is dropped after training. In the study, half or double the
    width changed the score by less than a different seed, and a wider decoder takes more time."""
    head: Literal["linear", "mlp"] = "linear"
    """Layers from the decoder to the teacher's tokens, dropped after training. `linear`: one 1x1
    convolution. `mlp`: two with a GELU between them, and a hidden layer 2 x `decoder_width` wide.
    """

    @field_validator("path")
    @classmethod
    def _home_is_spelled_out(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    @model_validator(mode="after")
    def _path_goes_with_weights(self) -> StudentConfig:
        if (self.weights == "path") != (self.path is not None):
            raise ValueError("set student.path if student.weights is 'path', and only then")
        return self


class MaskConfig(Section):
    """Which patches the student sees."""

    ratio: Fraction | dict[Fraction, Fraction] = 0.6
    """Share of masked patches; 0 shows whole images. Or stages: a mapping from the share of the
    updates that are done to the ratio that holds from there, such as `{0: 0.75, 0.8: 0}`."""
    whole_share: Fraction = 0.0
    """Share of the updates, at the end of training, in which the student sees whole images, as
    after densification. Equivalent to a last stage with ratio 0."""
    patch: Literal["auto"] | Positive = "auto"
    """Side in pixels: the student's deepest stride (`auto`) or a multiple of it."""
    per_image: Positive = 1
    """Number of updates that share one teacher pass, each with a different mask. In the lab
    notebook, 4 with half of the epochs made twice the updates in 1.13 times the time. Students were
    better for it, with masks and without."""
    disjoint: bool = False
    """Draw the `per_image` masks of an image so that every patch is visible once before any is
    visible twice. Masks do not overlap as long as `per_image` x visible patches fit into the image.
    The number of visible patches is unchanged. false: masks are drawn independently."""

    @property
    def stages(self) -> dict[float, float]:
        """Ratio from each share of the updates on, `whole_share` included, in order."""
        stages = dict(self.ratio) if isinstance(self.ratio, dict) else {0.0: self.ratio}
        return {**stages, 1 - self.whole_share: 0.0} if self.whole_share else stages

    @property
    def highest_ratio(self) -> float:
        """The ratio of the most masked stage, used to score predictions and sample views."""
        return max(self.stages.values())

    def ratio_at(self, progress: float) -> float:
        """Share of masked patches once `progress` of the updates are done, in [0, 1)."""
        return [ratio for start, ratio in self.stages.items() if start <= progress][-1]

    @field_validator("ratio", mode="wrap")
    @classmethod
    def _a_share_has_one_ratio(cls, value: Any, valid: Callable[[Any], Any]) -> Any:
        ratio = valid(value)
        if isinstance(value, dict) and len(ratio) < len(value):  # "0" and 0.0
            raise ValueError("two stages of ratio start at the same share")
        return ratio

    @model_validator(mode="after")
    def _stages_are_in_order(self) -> MaskConfig:
        if not isinstance(self.ratio, dict):
            return self
        starts = list(self.ratio)
        if starts[:1] != [0]:
            raise ValueError("the first stage of ratio must start at 0, such as {0: 0.75, 0.8: 0}")
        if starts != sorted(starts):
            raise ValueError(f"the stages of ratio must be in order: {', '.join(map(str, starts))}")
        if self.whole_share and starts[-1] >= 1 - self.whole_share:
            raise ValueError(
                f"the stage of ratio at {starts[-1]:g} would never be reached: whole images start "
                f"at {1 - self.whole_share:g} (whole_share {self.whole_share:g})"
            )
        return self


class LossConfig(Section):
    """How prediction and target are compared, and where."""

    removed: ClassVar[Mapping[str, object]] = {"cosine_weight": 0}

    target: Literal["smooth_l1", "mse", "cosine"] = "smooth_l1"
    """Distance between predicted and teacher tokens (layer-normalized)."""
    where: Literal["all", "masked", "visible"] = "all"
    """Positions in the loss."""
    feature_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the token loss. 0 with a `pixel_weight` is SparK, for comparison: pixels only. The
    teacher is then neither loaded nor run."""
    pixel_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of SparK's loss: pixels of masked patches, normalized per patch."""
    weigh_sites: bool = False
    """Multiply each token's distance by the mean square of its target, relative to the mean of the
    batch: positions where the images differ count more. For a camera that never moves. Needs
    `teacher.standardize`."""
    embedding_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the embedding loss: 1 - cosine of one vector per image, predicted from the
    student's deepest map, and the teacher's class token, or its mean token if it has none that was
    trained. Needs `feature_weight` above 0."""

    @model_validator(mode="after")
    def _something_is_learned(self) -> LossConfig:
        if self.feature_weight == self.pixel_weight == 0:
            raise ValueError("feature_weight and pixel_weight are both 0: nothing would be learned")
        if self.embedding_weight and not self.feature_weight:
            raise ValueError(
                f"embedding_weight {self.embedding_weight:g} needs the teacher, which "
                "feature_weight 0 disables: set embedding_weight to 0 or feature_weight above 0"
            )
        return self


class TrainConfig(Section):
    """The optimization."""

    epochs: Positive = 100
    """One epoch is one pass over the images."""
    batch_size: Positive = 256
    """Global batch size: all processes and accumulation steps together."""
    optimizer: Literal["adamw", "lamb"] = "adamw"
    """The optimizer."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Highest learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay; biases and norms are not decayed."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 5
    """Length of the linear warm-up. Cannot be more than `epochs`. If it is not set and 5 is too
    long, half of `epochs`."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: `cosine` to zero, or `constant`."""
    clip_grad: Annotated[float, Field(ge=0)] = 5.0
    """Largest gradient norm, also for `lamb`; 0: off."""
    ema: Fraction = 0.999
    """Decay of the moving average of the weights. The average is what is saved; 0: off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where it is faster than fp32: on GPUs that support it, and on CPUs with AMX,
    AMD's AVX512_BF16 or Arm's bf16. Otherwise fp32. `fp16` needs a GPU."""
    accumulate: Positive = 1
    """Split a batch into this many equal parts that run one after the other. This needs less memory
    and gives the gradient of the whole batch in distillation and classification. BatchNorm and
    `loss.weigh_sites` see each part separately; so do the losses of segmentation and detection."""
    sync_batchnorm: bool = False
    """Compute BatchNorm statistics over all processes. Costs two exchanges per layer."""
    compile: bool = False
    """`torch.compile` for the teacher, with `view: full` only. Needs a C++ compiler on CPUs."""
    graph: Literal["auto", "off"] = "auto"
    """On a GPU, `auto` runs distillation as a CUDA graph, which avoids the CPU time of kernel
    launches. If a graph is not possible, one line of output says why. `off`: never."""
    checkpoint_every: Positive = 10
    """Epochs between checkpoints. Ctrl-C and the end of training also save one."""
    evaluate_every: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Epochs between held-out scores during distillation: k-NN (where images have labels) and
    cosine to the teacher in the log, pictures in TensorBoard. `auto`: about every 30,000 images,
    which takes a few percent of the time. 0: never."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """The last two must be installed; they use the project `hgkd-edge`."""

    @field_validator("graph", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare off as False

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            fits = max(1, self.batch_size // self.accumulate) * self.accumulate
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into accumulate = "
                f"{self.accumulate} parts: use a batch_size of {fits}"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainConfig:
        if self.warmup_epochs <= self.epochs:
            return self
        if "warmup_epochs" in self.model_fields_set:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} is more than epochs {self.epochs}: the "
                "training would end during warm-up; set warmup_epochs lower"
            )
        object.__setattr__(self, "warmup_epochs", self.epochs / 2)  # lowers only the default
        return self
