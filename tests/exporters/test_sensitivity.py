"""Rank layers by INT8 damage, and keep the worst in float."""

import numpy as np
import onnx
import pytest

from exporters import runtimes
from exporters.calibrate import calibrate
from exporters.choices import FLAVORS
from exporters.errors import ExportError, VerificationFailed
from exporters.onnx_info import onnx_info, read_onnx
from exporters.quantize import quantize_int8
from exporters.sensitivity import _fewest, quantize_within, rank_layers
from exporters.verify import Tolerance, verify

from .conftest import photo_like

CULPRIT = "layer3.0.conv1"


@pytest.fixture(scope="module")
def uneven(exported, tmp_path_factory):
    """ResNet-18 with a layer that INT8 must damage: one input channel a thousand times too large.

    The weights that read the channel are scaled down to match, so float outputs do not change.
    """
    model = onnx.load(exported("resnet18").path)
    weights = {w.name: w for w in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    conv = nodes[f"{CULPRIT}/Conv"]
    factor = np.ones(64, np.float32)
    factor[0] = 1000
    graph = model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(factor.reshape(1, -1, 1, 1), "loud"))
    louder = onnx.helper.make_node("Mul", [conv.input[0], "loud"], ["louder"], name="louder/Mul")
    graph.node.insert(list(graph.node).index(conv), louder)
    values = onnx.numpy_helper.to_array(weights[conv.input[1]]) / factor[None, :, None, None]
    weights[conv.input[1]].CopyFrom(onnx.numpy_helper.from_array(values, conv.input[1]))
    nodes[conv.name].input[0] = "louder"
    path = tmp_path_factory.mktemp("uneven") / "net.onnx"
    onnx.save(model, path)
    return path, calibrate(read_onnx(path), photo_like(32, seed=7))


@pytest.fixture(scope="module")
def rankings(uneven, images):
    path, calibration = uneven
    return {f: rank_layers(path, calibration, images[:8], flavor=f) for f in FLAVORS}


def likeness(path, images):
    """Mean cosine with the float network, in points."""
    wanted = runtimes.open(path).run(images)["logits"]

    def score(runner):
        got = runner(images)["logits"]
        norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1)
        return 100 * float(((wanted * got).sum(1) / norms).mean())

    return score


def proof_of(path, images, tolerance=Tolerance(relative=None, cosine=-1.0, top1=0.0)):  # noqa: B008
    """The comparison with the float network; by default one that anything passes."""
    return lambda runner: verify(
        runtimes.open(path).run, runner, images, precision="int8", tolerance=tolerance
    )


@pytest.mark.parametrize("flavor", FLAVORS)
def test_the_layer_that_int8_spoils_is_ranked_first(rankings, flavor):
    ranking = rankings[flavor]

    assert ranking[0].module == CULPRIT
    assert ranking[0].damage > 2 * ranking[1].damage
    assert len(ranking) == 14  # all but the classifier
    assert [layer.damage for layer in ranking] == sorted(
        (layer.damage for layer in ranking), reverse=True
    )


@pytest.mark.parametrize("flavor", FLAVORS)
def test_as_few_layers_stay_in_float_as_the_bound_asks_for(
    uneven, rankings, images, tmp_path, flavor
):
    path, calibration = uneven
    score = likeness(path, images)

    bounded = {
        bound: quantize_within(
            path,
            tmp_path / f"{bound}.onnx",
            calibration=calibration,
            ranking=rankings[flavor],
            score=score,
            proof=proof_of(path, images),
            max_drop=bound,
            flavor=flavor,
        )
        for bound in (100.0, 2.0)
    }

    assert bounded[100.0].kept_float == ()
    kept = bounded[2.0].kept_float
    assert kept[0] == f"{CULPRIT}/Conv"
    assert bounded[2.0].drop <= 2.0 < bounded[100.0].drop
    assert {*bounded[2.0].exported.kept_float} == {*kept, "fc/Gemm"}
    assert score(runtimes.open(tmp_path / "2.0.onnx").run) == pytest.approx(bounded[2.0].score)
    weighted = [n for n in onnx.load(tmp_path / "2.0.onnx").graph.node if n.name == kept[0]]
    assert weighted[0].input[0] == "louder"  # not a dequantized tensor


def test_where_no_assignment_holds_the_file_is_put_aside(uneven, rankings, images, tmp_path):
    path, calibration = uneven
    scores = iter([100.0, *[0.0] * 100])

    with pytest.raises(VerificationFailed, match=r"100\.00 points lost.*allows 0\.5") as caught:
        quantize_within(
            path,
            tmp_path / "net.onnx",
            calibration=calibration,
            ranking=rankings["cpu"],
            score=lambda _: next(scores),
            proof=proof_of(path, images),
            max_drop=0.5,
            flavor="cpu",
        )

    assert "larger --max-drop or --precision fp16" in caught.value.hint
    assert "net.failed-verification.onnx" in caught.value.hint
    assert [file.name for file in tmp_path.iterdir()] == ["net.failed-verification.onnx"]


@pytest.mark.parametrize("flavor", FLAVORS)
def test_the_search_ends_at_a_network_that_passes_the_verification(
    uneven, rankings, images, tmp_path, flavor
):
    path, calibration = uneven
    strict = Tolerance(relative=None, cosine=0.97, top1=0.0, noise=0.2)
    proof = proof_of(path, images, strict)
    plain = quantize_int8(path, tmp_path / "p.onnx", calibration=calibration, flavor=flavor)
    assert not proof(runtimes.open(plain.path).run).passed

    bounded = quantize_within(
        path,
        tmp_path / "net.onnx",
        calibration=calibration,
        ranking=rankings[flavor],
        score=lambda _: 50.0,  # a score that accepts anything
        proof=proof,
        max_drop=0.5,
        flavor=flavor,
    )

    assert bounded.kept_float[0] == f"{CULPRIT}/Conv"
    assert proof(runtimes.open(tmp_path / "net.onnx").run).passed


def test_a_bound_of_the_verification_is_not_answered_with_the_flag_just_given(
    uneven, rankings, images, tmp_path
):
    path, calibration = uneven
    never = Tolerance(relative=None, cosine=2.0, top1=0.0)

    with pytest.raises(VerificationFailed, match="does not agree") as caught:
        quantize_within(
            path,
            tmp_path / "net.onnx",
            calibration=calibration,
            ranking=rankings["cpu"][-3:],
            score=lambda _: 50.0,
            proof=proof_of(path, images, never),
            max_drop=0.5,
            flavor="cpu",
        )

    assert "--max-drop" not in caught.value.hint


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 5, 8, 13, 20])
def test_the_search_finds_the_smallest_number_that_holds(needed):
    tried = []

    def holds(kept):
        tried.append(kept)
        return kept >= needed

    assert _fewest(holds, most=20) == needed
    assert len(tried) <= 11


def test_ranking_without_images_is_an_error(uneven, images):
    path, calibration = uneven

    with pytest.raises(ExportError, match="no images"):
        rank_layers(path, calibration, images[:0], flavor="cpu")


def test_integers_from_end_to_end_on_a_cpu(exported, tmp_path):
    # ONNX Runtime pools and adds in integers here, and keeps constant arithmetic in float.
    source = exported("convnext_atto").path
    quantize_int8(source, tmp_path / "n.onnx", images=photo_like(8), flavor="cpu")

    nodes = onnx.load(tmp_path / "n.onnx").graph.node
    kinds = {node.op_type for node in nodes}
    makers = {output: node for node in nodes for output in node.output}
    assert "GlobalAveragePool" in kinds
    assert "GlobalAveragePool" not in {n.op_type for n in onnx.load(source).graph.node}
    gelus = [node for node in nodes if node.op_type == "Erf"]
    assert gelus
    assert all(makers[node.input[0]].op_type != "DequantizeLinear" for node in gelus)
    assert onnx_info(tmp_path / "n.onnx").outputs == onnx_info(source).outputs
