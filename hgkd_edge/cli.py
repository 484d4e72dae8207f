"""The command line: parse, call, print. Imports nothing heavy at module level."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hgkd_edge.bench.cli import devices_command, make_bench_command
from hgkd_edge.data_command import make_data_command
from hgkd_edge.export_command import make_export_command
from hgkd_edge.failures import run_app
from hgkd_edge.processes import is_main, on_main
from hgkd_edge.result_lines import distilled_lines, finetuned_lines, grid_lines, next_line

if TYPE_CHECKING:
    from hgkd_edge.parts import Parts
    from hgkd_edge.recipe import Recipe
    from hgkd_edge.rundir import RunDir

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help panels would double the time that --help takes
    help="Distill a Vision Transformer into a small dense CNN, export it with proof, measure it.",
    epilog="Start with: hgkd-edge demo",
)
recipes_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Recipes that come with the package."
)
app.add_typer(recipes_app, name="recipes")
RunArgument = Annotated[
    Path | None, typer.Argument(help="Run folder or name; default: the latest.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
TrustEngine = Annotated[
    bool,
    typer.Option("--trust-engine", help="Load an engine that was not built on this machine."),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: train.epochs=10. Repeatable.")
]


def _print_version(asked: bool) -> None:
    if asked:
        from hgkd_edge import __version__

        typer.echo(f"hgkd-edge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options of every command; `--debug` is taken out of the arguments by `main`."""


@app.command()
def distill(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or name of a built-in one.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume a stopped run.")] = False,
    run: Annotated[Path | None, typer.Option(help="Run folder; default: runs/NAME.")] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Stop after the first updates and report how it goes."),
    ] = False,
    check_updates: Annotated[int, typer.Option(min=1, help="Updates of --check.")] = 300,
    as_json: AsJson = False,
) -> None:
    """Train a sparse CNN student to predict what a Transformer infers; leave a dense CNN.

    Example: hgkd-edge distill recipe.yaml --set student.name=resnet50
    """
    from hgkd_edge.recipe import find_recipe, load_recipe
    from hgkd_edge.rundir import RunDir

    parts: Parts | None = None  # of the main process alone: networks are not sent to others

    def prepare() -> tuple[Recipe, RunDir, bool]:
        nonlocal parts
        loaded = load_recipe(find_recipe(recipe), overrides or ())
        if resume:
            folder = RunDir.unfinished(loaded) if run is None else RunDir.resolve(run)
            folder.require_same_recipe(loaded)
            if not folder.is_distilled:
                folder.require_resumable()
            return loaded, folder, folder.is_distilled
        # torch comes here: a mistyped name need not wait for it
        from hgkd_edge.parts import build, require_data

        require_data(loaded.data)  # before any weights are downloaded
        parts = build(loaded)  # a recipe that cannot work leaves no folder behind
        return loaded, RunDir.create(loaded, run), False

    loaded, folder, finished = on_main(prepare)
    if finished:
        _say(f"run '{folder.path}' is finished: nothing to resume")
        result = {"run": str(folder.path), **folder.manifest()["result"]}
    else:
        from hgkd_edge import distill as verb

        until = check_updates if check else None
        with _at_work(folder, folder.why_this_folder()):
            made = verb.distill(loaded, folder, parts=parts, resume=resume, until=until)
            result = {"run": str(folder.path), **made}
    _show(result, as_json, lambda: distilled_lines(result))


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe whose teacher.weights is pretrain.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train only a recipe's teacher, without labels; `distill` does it by itself.

    Stopped, the same command goes on. Example: hgkd-edge pretrain demo-teacher
    """
    from hgkd_edge.errors import RecipeError
    from hgkd_edge.recipe import find_recipe, load_recipe

    loaded = load_recipe(find_recipe(recipe), overrides or ())
    if loaded.teacher.weights != "pretrain":
        raise RecipeError(
            f"teacher.weights = '{loaded.teacher.weights}': only 'pretrain' is trained here",
            hint="--set teacher.weights=pretrain",
        )
    from hgkd_edge.data.sources import open_splits
    from hgkd_edge.parts import build
    from hgkd_edge.pretrain import pretrain_teacher

    parts = build(loaded)
    source = open_splits(loaded.data)["train"]
    weights = pretrain_teacher(parts.vit, source, loaded, size=parts.teacher_size)
    _show({"weights": str(weights)}, as_json, lambda: [f"teacher: {weights}"])


@app.command()
def finetune(
    run: RunArgument = None,
    task: Annotated[
        str | None, typer.Option(help="classify, segment or detect [default: classify].")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Labelled photos; default: the run's own.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="distilled (default); or timm, scratch: to compare with."),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume where it stopped, with its own settings.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train the run's backbone for a task; leave model.safetensors and a model card.

    A run keeps one fine-tuned model: a second one, and one not initialized from the run's weights,
    gets a separate run next to it, RUN-TASK or RUN-INIT.

    Example: hgkd-edge finetune runs/demo --task classify --data photos --set train.epochs=30
    """
    from hgkd_edge.tasks import config as settings

    def prepare() -> tuple[settings.FinetuneConfig, RunDir, str]:
        folder = _run(run)
        if resume:
            named = {"task": task, "init": init, "data.path": data}
            asked = [f"{key}={value}" for key, value in named.items() if value is not None]
            return settings.resume(folder, [*asked, *(overrides or ())]), folder, ""
        chosen = settings.resolve(
            folder, task or "classify", data, init or "distilled", overrides or ()
        )
        if chosen.init == "distilled" and not folder.holds_finetuning:
            return chosen, folder, ""
        from hgkd_edge.finetune import starting_weights

        starting_weights(chosen)  # weights that are not available leave no folder behind
        if chosen.init == "distilled":
            return chosen, folder.branch(chosen.task), f"{folder.path} keeps its own model"
        return chosen, folder.branch(chosen.init), f"weights: {chosen.init}"

    chosen, folder, because = on_main(prepare)
    if resume and on_main(lambda: folder.is_finetuned):
        _say(f"the fine-tuning in '{folder.path}' is finished: nothing to resume")
        result = folder.finetune_result()
    else:
        from hgkd_edge import finetune as verb

        with _at_work(folder, because):
            result = verb.finetune(chosen, folder, resume=resume)
    _show(result, as_json, lambda: finetuned_lines(result, folder))


@app.command()
def evaluate(
    run: RunArgument = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A file exported from the run's model: .onnx, .xml or .plan."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test or holdout; default: what training never saw."),
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Score the frozen backbone: k-NN, linear probe.")
    ] = False,
    trust_engine: TrustEngine = False,
    as_json: AsJson = False,
) -> None:
    """Score the fine-tuned model, or, before there is one, the frozen backbone's features.

    Example: hgkd-edge evaluate runs/demo --model runs/demo/export/demo.fp32.onnx
    """
    folder = _run(run)
    from hgkd_edge import evaluate as verb
    from hgkd_edge.tables import score_table, task_table, warning_lines

    if features or not (model or folder.model_file.is_file()):
        following = ("finetune {run} --task classify", "export {run} --onnx --trt")
        result, table = verb.evaluate_features(folder, split=split), score_table
    else:
        following = ("export {run} --onnx --trt", "predict {run} IMAGES")
        result, table = (
            verb.evaluate_model(folder, model=model, split=split, trust_engine=trust_engine),
            task_table,
        )
    _show(
        result,
        as_json,
        lambda: [table(result), *warning_lines(result), next_line(str(folder.path), *following)],
    )


@app.command()
def predict(
    model: Annotated[
        Path, typer.Argument(help="Run folder or name, model.safetensors, .onnx, .xml or .plan.")
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for pictures and JSON.")] = Path("predictions"),
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Lowest score of a box, or of a saved label [default: 0.4].", min=0, max=1
        ),
    ] = None,
    save_labels: Annotated[
        str, typer.Option(help="Also save a data set of the answers: yolo, coco, voc or folders.")
    ] = "",
    trust_engine: TrustEngine = False,
    as_json: AsJson = False,
) -> None:
    """Label, segment or find objects in photos with a fine-tuned model; pictures and JSON.

    Example: hgkd-edge predict runs/demo/export/demo.fp32.onnx photos/
    """
    from hgkd_edge import predict as verb
    from hgkd_edge.tables import prediction_line

    chosen = {} if threshold is None else {"threshold": threshold}
    records = verb.predict(
        model, images, out, trust_engine=trust_engine, save_as=save_labels, **chosen
    )
    _show(records, as_json, lambda: [*map(prediction_line, records), f"pictures and JSON: {out}"])


@app.command()
def embed(
    model: Annotated[Path, typer.Argument(help="Run folder or name, or a backbone's .onnx.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="File for the features: .npz or .parquet.")] = Path(
        "features.npz"
    ),
    neighbors: Annotated[
        bool, typer.Option("--neighbors", help="Draw images with their nearest neighbors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a backbone's features of images, for search, deduplication and active learning.

    Example: hgkd-edge embed runs/demo photos/ --out features.npz --neighbors
    """
    from hgkd_edge import embed as verb

    found = verb.embed(model, images, out)
    picture = verb.draw_neighbors(found, out.with_suffix(".png")) if neighbors else None
    result = verb.summary(found, out, picture)
    _show(result, as_json, lambda: verb.lines(result))


@app.command()
def demo(
    run: Annotated[Path | None, typer.Option(help="Run folder; default: runs/demo.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """The whole path on bundled photos: three to five minutes on two CPU cores, no network.

    Example: hgkd-edge demo
    """
    from hgkd_edge import demo as verb
    from hgkd_edge.tables import demo_table, warning_lines

    result = verb.demo(run, overrides or ())
    following = ("finetune {run} --task classify", "report")
    _show(
        result,
        as_json,
        lambda: [
            demo_table(result),
            f"run folder: {result['run']}",
            *warning_lines(result),
            *warning_lines(result["evaluation"]),
            next_line(result["run"], *following),
        ],
    )


@app.command()
def report(run: RunArgument = None, as_json: AsJson = False) -> None:
    """Write one HTML page about a run: curves, scores, pictures, proofs, speed, origin.

    Example: hgkd-edge report runs/demo
    """
    from hgkd_edge import report as verb

    page = verb.report(_run(run))
    _show({"report": str(page)}, as_json, lambda: [f"report: {page}"])


@app.command()
def doctor(
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Show which sparse kernel runs where, and why.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what this machine can do, and what to install for the rest.

    Example: hgkd-edge doctor
    """
    from dataclasses import asdict

    from hgkd_edge.tables import doctor_table, kernels_table

    if kernels:
        from hgkd_edge.sparse import kernel_table

        rows = [choice._asdict() for choice in kernel_table()]
        _show(rows, as_json, lambda: [kernels_table(rows)])
        return

    from hgkd_edge.doctor import examine

    capabilities = examine()
    _show([asdict(c) for c in capabilities], as_json, lambda: [doctor_table(capabilities)])


@recipes_app.command("list")
def recipes_list(as_json: AsJson = False) -> None:
    """List the built-in recipes. Example: hgkd-edge recipes list"""
    from hgkd_edge.recipe import builtin_recipes, recipe_summary
    from hgkd_edge.tables import recipes_table

    found = {name: recipe_summary(path) for name, path in builtin_recipes().items()}
    _show(found, as_json, lambda: [recipes_table(found)])


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(help="Name of a built-in recipe.")]) -> None:
    """Print a recipe, comments and all: a start for your own.

    Example: hgkd-edge recipes show demo > my-recipe.yaml
    """
    from hgkd_edge.console import printable
    from hgkd_edge.recipe import find_recipe
    from hgkd_edge.settings import settings_text

    lines = re.split("\r\n|\r|\n", settings_text(find_recipe(name)))
    typer.echo("\n".join(map(printable, lines)), nl=False)


@recipes_app.command("validate")
def recipes_validate(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or name of a built-in one.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe, its two networks included, without training or downloading anything.

    Example: hgkd-edge recipes validate my-recipe.yaml
    """
    from hgkd_edge.recipe import find_recipe, load_recipe

    path = find_recipe(recipe)
    loaded = load_recipe(path, overrides or ())
    from hgkd_edge.parts import build, require_data

    parts = build(loaded, download=False)
    require_data(loaded.data)
    result = {
        "recipe": str(path),
        "image_size": parts.spec.size,
        "mask_grid": parts.mask_grid,
        "mask_patch": parts.mask_patch,
        "token_grid": parts.token_grid,
        "teacher_size": parts.teacher_size,
    }
    _show(result, as_json, lambda: [f"{path}: valid", *grid_lines(result)])


def _show(result: Any, as_json: bool, lines: Any) -> None:
    """The result on stdout: as JSON, or as lines and tables."""
    if not is_main():
        return
    if as_json:
        typer.echo(json.dumps(result, indent=2, default=str))
        return
    from rich.text import Text

    from hgkd_edge.console import make_console

    out = make_console()
    for line in lines():
        out.print(line, soft_wrap=isinstance(line, (str, Text)))


def _load_for_bench(run: Path) -> Any:
    """A run's dense backbone as a PyTorch module; bench itself knows nothing of models."""
    from hgkd_edge.models.backbone import load_embedding_net
    from hgkd_edge.rundir import RunDir

    return load_embedding_net(RunDir.resolve(run).backbone_file)


app.command("data")(make_data_command(_show))
app.command("export")(make_export_command(_show))
app.command("bench")(make_bench_command(_load_for_bench))
app.command("devices")(devices_command)


def _say(line: str) -> None:
    """A line for people, on stderr."""
    if is_main():
        from hgkd_edge.console import printable

        typer.echo(printable(line), err=True)


@contextlib.contextmanager
def _at_work(folder: RunDir, because: str = "") -> Iterator[None]:
    """Announce a folder and train in it, as `RunDir.at_work`; the main process sees to it.

    SIGTERM, as schedulers and torchrun send it, cleans up as Ctrl-C does.
    """
    _say(f"run folder: {folder.path}" + (f" ({because})" if because else ""))

    def terminate(number: int, frame: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        with folder.at_work() if is_main() else contextlib.nullcontext():
            yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(path: Path | None) -> RunDir:
    from hgkd_edge.rundir import RunDir

    return RunDir.resolve(path)


def main() -> NoReturn:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
