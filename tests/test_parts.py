from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from hgkd_edge.data.presence import require_data
from hgkd_edge.distillation.parts import build
from hgkd_edge.errors import ConversionError, DataError, RecipeError
from hgkd_edge.recipe import Recipe, load_recipe
from hgkd_edge.recipe_sections import DataConfig


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.image_size=72", "does not divide.*set data.image_size to (64|80)"),
        ("mask.ratio=0.98", "leaves nothing visible"),
        ("mask.patch=24", "multiple of the student's deepest stride 16"),
        ("student.name=vit_tiny_patch16_224", "not convolutional"),
        ("student.name=resnte18", "did you mean 'resnet"),
        ("teacher.name=resnet18", "not a Vision Transformer"),
        ("data.image_size=16", "too few to match|a single patch is the whole image"),
        ("mask.patch=64", "a single patch is the whole image.*use a smaller mask.patch"),
        ("mask.ratio=0.02", r"masks none of 4x4 patches.*use at least 0\.063"),
        ("mask.ratio={0: 0.98, 0.5: 0}", "mask.ratio 0.98 leaves nothing visible"),
        ("mask.ratio={0: 0.6, 0.5: 0.02}", r"mask.ratio 0.02 masks none of 4x4 patches"),
        ("teacher.layers=[12]", "the teacher has blocks 0 to 11"),
        ("teacher={name: vit_tiny_patch16_224, weights: path, path: /no}", "'/no': no such file"),
        ("teacher.name=beit_base_patch16_224", "cannot be pre-trained here"),
        ("student.args={num_classes: 3}", "student.args.num_classes: is set by hgkd-edge itself"),
        ("student.args={output_stride: 8}", "student.args.output_stride: is set by"),
        ("student.args={pretrained: true}", "student.args.pretrained: is set by"),
    ],
)
def test_an_impossible_combination_is_refused_before_any_image_is_read(
    tiny_recipe_file: Path, override: str, expected: str
) -> None:
    overrides = ["student.args={}", "teacher.args={patch_size: 16}"]
    if "teacher.name" in override:
        overrides[-1] = "teacher.args={}"

    with pytest.raises(RecipeError, match=expected):
        build(load_recipe(tiny_recipe_file, [*overrides, override, "data.path=/nowhere"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is there")
@pytest.mark.parametrize("override", ["train.precision=fp16", "student.backend=spconv"])
def test_what_needs_a_gpu_is_valid_but_not_trained_without_one(
    tiny_recipe_file: Path, override: str
) -> None:
    recipe = load_recipe(tiny_recipe_file, [override, "data.path=/nowhere"])
    if "spconv" in override:
        pytest.importorskip("spconv")

    build(recipe, download=False)
    with pytest.raises(RecipeError, match="needs a GPU"):
        build(recipe)


def test_a_teacher_to_compile_where_nothing_can_be_compiled_is_one_line(
    tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(function: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand many\nmore lines")

    monkeypatch.setattr(torch, "compile", no_compiler)

    with pytest.raises(RecipeError, match=r"^train.compile = true: .*compiler found\)") as caught:
        build(load_recipe(tiny_recipe_file, ["train.compile=true"]))

    assert "\n" not in str(caught.value)


def test_where_only_pixels_are_learned_nothing_masked_is_refused(tiny_recipe_file: Path) -> None:
    loss = "loss={feature_weight: 0, pixel_weight: 1, where: all}"

    with pytest.raises(RecipeError, match=r"mask.whole_share to 0"):
        load_recipe(tiny_recipe_file, [loss, "mask.whole_share=0.1"])
    with pytest.raises(RecipeError, match="masks none of 4x4 patches"):
        build(load_recipe(tiny_recipe_file, [loss, "mask.ratio=0.02"]))


@pytest.mark.parametrize("patch", [7, 8, 14, 16])
def test_the_teacher_sees_what_makes_its_grid_the_students(
    tiny_recipe: dict[str, Any], patch: int
) -> None:
    tiny_recipe["teacher"]["args"] = {"patch_size": patch, "depth": 1, "embed_dim": 48}
    tiny_recipe["data"]["image_size"] = [64, 96]

    parts = build(Recipe.model_validate(tiny_recipe))

    assert parts.teacher_size == tuple(side * patch for side in parts.token_grid)
    stride = 8 if patch < 12 else 16
    assert parts.token_grid == (64 // stride, 96 // stride)


def test_a_student_that_cannot_be_sparse_is_refused_by_module_path(tiny_recipe_file: Path) -> None:
    recipe = load_recipe(tiny_recipe_file, ["student={name: mobilevit_xxs}", "data.image_size=128"])

    with pytest.raises(ConversionError, match="stages"):
        build(recipe)


@pytest.mark.usefixtures("made_again")
def test_a_student_that_could_not_be_saved_is_refused_before_the_training(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plain(key: str, name: str, args: dict[str, Any], **own: Any) -> torch.nn.Module:
        """timm, had it another name for ResNet's stem in the plain model."""
        model = timm.create_model(name, **args, **own)
        if "features_only" not in own:
            model.stem = model._modules.pop("conv1")
        return model

    monkeypatch.setattr("hgkd_edge.models.backbone.create_timm_model", plain)

    with pytest.raises(ConversionError, match=r"'conv1.weight' has no place"):
        build(Recipe.model_validate(tiny_recipe))


def test_weights_of_the_student_that_get_no_gradient_are_frozen(
    tiny_recipe: dict[str, Any],
) -> None:
    tiny_recipe["student"] = {"name": "hrnet_w18_small"}
    tiny_recipe["teacher"]["args"]["patch_size"] = 16

    parts = build(Recipe.model_validate(tiny_recipe))

    frozen = [name for name, p in parts.encoder.named_parameters() if not p.requires_grad]
    assert frozen
    assert all("stage4" in name or "incre" in name for name in frozen)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("folder", "nowhere"),
        ("folder", "~/nowhere-at-all"),
        ("folder", "nowhere/list.csv"),
        ("webdataset", "nowhere"),
        ("webdataset", "nowhere/{000..003}.tar"),
        ("webdataset", "nowhere/*.tar"),
        ("hf", "/nowhere/dataset"),
        ("hf", "../nowhere"),
        ("hf", "nowhere/to/be"),
    ],
)
def test_data_that_is_not_there_is_named(source: str, path: str) -> None:
    with pytest.raises(DataError, match=r"data.path.*nowhere"):
        require_data(DataConfig.model_validate({"source": source, "path": path}))


def test_data_that_is_there_or_on_the_hub_is_taken(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "000.tar").touch()
    configs = [
        {"source": "bundled"},
        {"source": "folder", "path": photos},
        {"source": "webdataset", "path": tmp_path},
        {"source": "hf", "path": tmp_path},
        {"source": "hf", "path": "owner/name"},
        {"source": "hf", "path": "mnist"},
    ]

    for config in configs:
        require_data(DataConfig.model_validate(config))


def test_a_recipe_is_made_into_weights_once_and_its_grids_are_read_from_shapes(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_recipe["teacher"] |= {"name": "vit_tiny_patch16_224", "args": {}}
    create, made = timm.create_model, []

    def counted(name: str, **settings: Any) -> torch.nn.Module:
        model = create(name, **settings)
        made.append((name, next(model.parameters()).device.type))
        return model

    monkeypatch.setattr(timm, "create_model", counted)

    build(Recipe.model_validate(tiny_recipe))

    assert [device for name, device in made if name.startswith("vit")] == ["meta", "cpu"]


@pytest.mark.parametrize(("section", "instead"), [("teacher", "'pretrain'"), ("student", "'none'")])
def test_published_weights_without_a_network_name_the_setting_and_what_else_there_is(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, section: str, instead: str
) -> None:
    create = timm.create_model

    def offline(*args: Any, pretrained: bool = False, **more: Any) -> Any:
        if pretrained:
            raise OSError("no network")
        return create(*args, **more)

    monkeypatch.setattr(timm, "create_model", offline)
    tiny_recipe[section]["weights"] = "hub"

    with pytest.raises(RecipeError, match=f"{section}.weights = 'hub': weights of") as caught:
        build(Recipe.model_validate(tiny_recipe))

    assert instead in caught.value.hint
