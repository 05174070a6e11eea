"""Files and flags that `tlcli export --onnx` refuses, each with one line that says why, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.helpers.exports.onnx_files import CLASSES, FORMS, SIZE, Graph, head, stem
from tlcli.__main__ import cli
from tlcli.contract.errors import ParityError, TlcliError
from tlcli.contract.model.onnx_model import Model
from tlcli.exports import onnx_parity, parity
from tlcli.exports.onnx_export import export_onnx
from tlcli.exports.onnx_source.gradients.gradient_flow import Step
from tlcli.exports.onnx_source.gradients.rules import RULES
from tlcli.exports.onnx_source.input_settings import InputSettings

UNIT = InputSettings(input_range="0..1")


def tlcli(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def simple(path: Path) -> Path:
    g = Graph()
    return g.save(path, head(g, g.add("Relu", stem(g))))


def table(path: Path) -> Path:
    """As scikit-learn's converter writes a classifier."""
    g = Graph()
    weights = np.zeros(8).tolist()
    g.add("LinearClassifier", "x", name="label", outputs=2, domain="ai.onnx.ml", coefficients=weights, classlabels_ints=[0, 1])
    return g.save(path, "label", "label_1", shape=("N", 4))


def detector(path: Path) -> Path:
    g = Graph()
    x = stem(g)
    return g.save(path, g.add("Reshape", x, np.array([0, 64, 6])), g.add("Relu", x))


def boxes(path: Path) -> Path:
    g = Graph()
    return g.save(path, g.add("Reshape", stem(g), np.array([0, 64, 6])))


def strings(path: Path) -> Path:
    g = Graph()
    return g.save(path, g.add("StringNormalizer", "x"), shape=("N",), kind=onnx.TensorProto.STRING)


def tokens(path: Path) -> Path:
    g = Graph()
    return g.save(path, g.add("Gemm", "x", g.normal(8, CLASSES)), shape=("N", 8))


def grey(path: Path) -> Path:
    g = Graph()
    return g.save(path, head(g, g.add("Conv", "x", g.normal(6, 1, 3, 3))), shape=("N", 1, SIZE, SIZE))


def half(path: Path) -> Path:
    g = Graph()
    return g.save(path, head(g, stem(g, g.add("Cast", "x", to=1))), kind=onnx.TensorProto.FLOAT16)


def one_class(path: Path) -> Path:
    g = Graph()
    x = g.add("Flatten", g.add("GlobalAveragePool", stem(g)))
    return g.save(path, g.add("Sigmoid", g.add("Gemm", x, g.normal(6, 1))))


def hidden_softmax(path: Path) -> Path:
    g = Graph()
    exponents = g.add("Exp", head(g, stem(g)))
    return g.save(path, g.add("Div", exponents, g.add("ReduceSum", exponents, np.array([1]), keepdims=1)))


def garbage(path: Path) -> Path:
    path.write_bytes(b"\x89PNG not a model")
    return path


def too_old(path: Path) -> Path:
    g = Graph()
    return g.save(path, head(g, stem(g)), opset=6)


def too_new(path: Path) -> Path:
    model = onnx.load(str(simple(path)))
    model.opset_import[0].version = 99
    onnx.save(model, str(path))
    return path


def quantised(path: Path) -> Path:
    """As quantisers write a file in the QDQ format."""
    g = Graph()
    scale, zero = np.float32(0.1), np.array(0, dtype=np.int8)
    x = stem(g)
    return g.save(path, head(g, g.add("DequantizeLinear", g.add("QuantizeLinear", x, scale, zero, name="rounded"), scale, zero)))


def half_inside(path: Path) -> Path:
    g = Graph()
    x = g.add("Relu", g.add("Cast", stem(g), to=onnx.TensorProto.FLOAT16, name="halved"))
    return g.save(path, head(g, g.add("Cast", x, to=onnx.TensorProto.FLOAT)))


def mixing(path: Path) -> Path:
    """A network that works on one image only, because rows of its matrix hold numbers of several channels."""
    g = Graph()
    x = g.add("Reshape", g.add("Transpose", stem(g), perm=[1, 0, 2, 3]), np.array([4, 96]))
    return g.save(path, g.add("Gemm", g.add("Reshape", x, np.array([1, 384])), g.normal(384, CLASSES)), shape=(1, 3, SIZE, SIZE))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (garbage, "not an ONNX file"),
        (table, "scikit-learn style"),
        (detector, "has 2 outputs"),
        (boxes, r"has the shape \[N, 64, 6\], not \[N, classes\]"),
        (strings, "takes strings, not images"),
        (tokens, r"has the shape \[\?, 8\], not that of images"),
        (grey, "does not have three channels"),
        (half, "is float16: expected float32 or uint8"),
        (one_class, "at least two classes"),
        (hidden_softmax, "holds probabilities, and the softmax was not found: name the logits with --logits"),
        (too_old, "opset 6 is too old"),
        (too_new, r"opset 99 is newer than ONNX Runtime [\d.]+ accepts \(2\d\): export it again with opset 2\d"),
        (quantised, r"quantised: QuantizeLinear \(node_rounded\) rounds to integers.*: give the float32 file"),
        (half_inside, r"Cast \(node_halved\) computes in float16: give the float32 file"),
        (mixing, "takes one image at a time .* export it again with a dynamic batch size"),
    ],
)
def test_files_that_are_no_image_classifiers(make: object, message: str, tmp_path: Path) -> None:
    path = make(tmp_path / "x.onnx")  # type: ignore[operator]
    with pytest.raises(TlcliError, match=message) as error:
        export_onnx(path, name="m", repository=tmp_path / "models", settings=UNIT)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "models" / "m").exists()


def test_logits_can_be_named(tmp_path: Path) -> None:
    path = hidden_softmax(tmp_path / "x.onnx")
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, logits="node_v3", check_images=1)
    assert exported.parity.logits < 1e-5
    with pytest.raises(TlcliError, match="--logits nowhere: no value or node of this name"):
        export_onnx(path, name="m", repository=tmp_path, settings=UNIT, logits="nowhere")


def test_a_missing_file_and_our_own_export(tmp_path: Path) -> None:
    with pytest.raises(TlcliError, match="no such file"):
        export_onnx(tmp_path / "x.onnx", name="m", repository=tmp_path, settings=UNIT)
    exported = export_onnx(simple(tmp_path / "x.onnx"), name="m", repository=tmp_path, settings=UNIT, check_images=1)
    with pytest.raises(TlcliError, match="already exported by tlcli"):
        export_onnx(exported.path, name="n", repository=tmp_path, settings=UNIT)


def test_unknown_preprocessing_is_asked_for(tmp_path: Path) -> None:
    path = simple(tmp_path / "x.onnx")
    with pytest.raises(TlcliError, match=r"--mean and --std .* --input-range .* --guess-preprocessing .* --layout"):
        export_onnx(path, name="m", repository=tmp_path / "models")
    g = Graph()
    open_size = g.save(tmp_path / "y.onnx", head(g, stem(g)), shape=("N", 3, "H", "W"))
    with pytest.raises(TlcliError, match="accepts images of any size: choose one with --image-size"):
        export_onnx(open_size, name="m", repository=tmp_path / "models", settings=UNIT)
    g = Graph()
    open_layout = g.save(tmp_path / "z.onnx", head(g, stem(g)), shape=("N", "C", "H", "W"))
    with pytest.raises(TlcliError, match="does not specify its layout"):
        export_onnx(open_layout, name="m", repository=tmp_path / "models", settings=UNIT)
    settings = InputSettings(input_range="0..1", layout="nchw", image_size=SIZE)
    assert export_onnx(open_layout, name="m", repository=tmp_path / "models", settings=settings, check_images=1).version == 1


def test_ranges_are_normalisations(tmp_path: Path) -> None:
    path = simple(tmp_path / "x.onnx")
    scaled = InputSettings(input_range="0..255", mean=(127.5,) * 3, std=(127.5,) * 3)
    files = [
        export_onnx(path, name=name, repository=tmp_path, settings=settings, methods=(), check_images=1)
        for name, settings in (
            ("a", InputSettings(input_range="-1..1")),
            ("b", scaled),
            ("c", InputSettings(mean=(0.5,) * 3, std=(0.5,) * 3)),
        )
    ]
    assert len({file.description.preprocessing.model_dump_json() for file in files}) == 1
    with pytest.raises(TlcliError, match=r"for values in \[0, 255\] add --input-range 0..255"):
        export_onnx(path, name="d", repository=tmp_path, settings=InputSettings(mean=(123.0,) * 3))


def test_labels_must_match(tmp_path: Path) -> None:
    with pytest.raises(TlcliError, match=r"2 labels, but .* has 5 classes"):
        export_onnx(simple(tmp_path / "x.onnx"), name="m", repository=tmp_path, settings=UNIT, labels=["a", "b"])


def test_a_wrong_rule_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is independent: with a rule that is wrong by a per mille, the export fails and leaves nothing."""
    g = Graph()
    path = g.save(tmp_path / "x.onnx", head(g, g.add("Sigmoid", stem(g))))
    right = RULES["Sigmoid"]

    def wrong(step: Step) -> None:
        step.gradient = step.op("Mul", step.gradient, 1.001)
        right(step)

    monkeypatch.setitem(RULES, "Sigmoid", wrong)
    with pytest.raises(ParityError, match=r"gradcam differs by 0\.00\d+ of its largest value"):
        export_onnx(path, name="m", repository=tmp_path / "models", settings=UNIT, layers=["layer"], check_images=4)
    assert not (tmp_path / "models" / "m").exists()


def test_tolerances_are_those_of_other_exports() -> None:
    names = ("LOGITS_TOLERANCE", "LARGE_LOGIT", "MAPS_TOLERANCE", "SHARE_OF_TERMS", "MAPS_TOLERANCES", "MAPS_THAT_COUNT")
    for name in names:
        assert getattr(onnx_parity, name) == getattr(parity, name)


def test_preprocessing_is_guessed_on_labelled_images(tmp_path: Path) -> None:
    """A network whose classes are colours tells red from blue only in the right channel order."""
    g = Graph()
    kernel = np.zeros((3, 3, 3, 3), dtype=np.float32)
    for channel in range(3):
        kernel[channel, channel] = 1 / 9
    x = g.add("Flatten", g.add("GlobalAveragePool", g.add("Conv", "x", kernel, name="layer")))
    # The classes: below 64, between, above: only values from 0 to 255 are told apart. Blue comes first.
    weight = np.array([[-1, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=np.float32)
    path = g.save(tmp_path / "x.onnx", g.add("Gemm", x, weight, np.array([64, 60, -150], dtype=np.float32)))
    for label, blue in (("high", 250), ("low", 2), ("middle", 100)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20, 20), (120 - 40 * number, 50, blue)).save(tmp_path / "images" / label / f"{number}.png")
    (tmp_path / "labels.txt").write_text("low\nmiddle\nhigh\n")
    arguments = ("export", "--onnx", path, "--labels", tmp_path / "labels.txt", "-o", tmp_path / "models", "--check-images", 1)
    answer = tlcli(*arguments, "--guess-preprocessing", tmp_path / "images")
    assert answer.exit_code == 0, answer.output
    assert "100.0%  --input-range 0..255 --channel-order bgr\n" in answer.output
    assert "using --input-range 0..255 --channel-order bgr" in answer.output
    failed = tlcli(*arguments, "--guess-preprocessing", tmp_path / "nowhere")
    assert "no such folder" in str(failed.exception)
    (tmp_path / "images" / "high").rename(tmp_path / "images" / "other")
    (tmp_path / "images" / "low").rename(tmp_path / "elsewhere")
    failed = tlcli(*arguments, "--guess-preprocessing", tmp_path / "images")
    assert "the folder other is not a label" in str(failed.exception)


def test_flags_of_other_exports_are_rejected(tmp_path: Path) -> None:
    path = simple(tmp_path / "x.onnx")
    for flags in (("--precision", "int8"), ("--dynamic-size",), ("--temperature", "2"), ("--weights", "none")):
        answer = tlcli("export", "--onnx", path, "--input-range", "0..1", *flags)
        assert answer.exit_code == 2
        assert flags[0] in answer.output
    answer = tlcli("export", "--backbone", "resnet18", "--input-range", "0..1")
    assert "add --onnx FILE" in answer.output
    answer = tlcli("export", "--onnx", path, "--backbone", "resnet18")
    assert "use only one of them" in answer.output


def test_the_layers_are_listed(tmp_path: Path) -> None:
    answer = tlcli("export", "--onnx", FORMS["keras"](tmp_path / "x.onnx"), "--list-cam-layers")
    assert answer.exit_code == 0, answer.output
    rows = [line.split() for line in answer.stdout.splitlines()]
    assert ["activation", "Relu", "8", "8", "8"] in rows
    assert ["last", "Transpose", "8", "8", "8"] in rows


def test_pytorch_is_not_needed(tmp_path: Path) -> None:
    """In a process in which PyTorch, torchvision and timm cannot be imported: export, and predict with maps."""
    path = FORMS["keras"](tmp_path / "net.onnx")
    Image.new("RGB", (20, 20), (200, 30, 90)).save(tmp_path / "a.png")
    code = f"""
import sys
for name in ("torch", "torchvision", "timm", "onnxscript"):
    sys.modules[name] = None
from tlcli.__main__ import main
sys.argv = ["tlcli", *{["export", "--onnx", str(path), "--input-range", "0..1", "-o", str(tmp_path / "models"), "--check-images", "2"]!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
sys.argv = ["tlcli", *{["predict", str(tmp_path / "models/net"), str(tmp_path / "a.png"), "--cam", "gradcam", "-o", str(tmp_path / "o")]!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models/net/1/model.onnx").exists()
    assert list((tmp_path / "o").rglob("*.png"))
    assert "class_" in done.stdout


def test_the_file_is_served_like_any_other(tmp_path: Path) -> None:
    path = FORMS["paddle"](tmp_path / "net.onnx")
    answer = tlcli("export", "--onnx", path, "--input-range", "0..1", "-o", tmp_path / "models", "--check-images", 2)
    assert answer.exit_code == 0, answer.output
    assert "the predicted class agrees with net.onnx on 100%" in answer.output
    assert (tmp_path / "models/net/config.pbtxt").exists()
    model = Model.open(tmp_path / "models/net/1/model.onnx", "cpu")
    inputs = {value.name: value.type for value in model.session.get_inputs()}
    assert inputs == {"images": "tensor(uint8)"} or inputs.keys() == {"images", "targets", "wanted", "softmax"}
    images = np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8)
    (nothing,) = model.session.run(["gradcam"], {"images": images, "wanted": np.zeros((1, len(model.description.switches)), dtype=bool)})
    assert nothing.shape[:2] == (0, 0)
