"""`tlcli.load(...).predict(...)`: the numbers of `tlcli predict`, for every form of image."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import tlcli
from tests.helpers.service.toy_model import SIZE, ToyModel
from tlcli.__main__ import cli
from tlcli.contract.errors import ImageError, ModelFileError, NotFoundError, RequestError


@pytest.fixture(scope="module")
def model(models: Path) -> tlcli.Model:
    return tlcli.load(models, device="cpu")


def predicted(models: Path, images: Path, out: Path, *flags: str) -> dict[str, np.ndarray]:
    """The arrays that `tlcli predict --npz` writes."""
    arguments = ["predict", models / "toy", images, "--device", "cpu", "--npz", out / "o.npz", *flags]
    answer = CliRunner().invoke(cli, list(map(str, arguments)))
    assert answer.exit_code == 0, answer.output
    with np.load(out / "o.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("place", ["", "toy", "toy/1", "toy/1/model.onnx"])
def test_a_model_is_loaded_from_its_repository_folder_version_or_file(models: Path, place: str) -> None:
    model = tlcli.load(str(models / place), device="cpu")
    assert model.name == "toy"
    assert model.labels[:3] == ("red", "green", "blue")
    assert "gradcam" in model.cams
    assert repr(model) == "Model('toy', 7 classes, 64x64, 6 maps, cpu)"


def test_a_path_without_a_model_says_what_it_is(models: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no model found"):
        tlcli.load(tmp_path)
    with pytest.raises(NotFoundError, match="an image, not a model"):
        tlcli.load(images / "a.png")
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match=r"x\.onnx"):
        tlcli.load(tmp_path / "x.onnx")
    for name in ("one", "two"):
        ToyModel.make(seed=1).save(tmp_path / f"models/{name}/1/model.onnx", name)
    with pytest.raises(NotFoundError, match="a model repository: give one of its models"):
        tlcli.load(tmp_path / "models")


@pytest.mark.parametrize("cam", ["gradcam", "scorecam"])
def test_the_numbers_are_those_of_the_command_to_the_bit(model: tlcli.Model, models: Path, images: Path, tmp_path: Path, cam: str) -> None:
    expected = predicted(
        models, images, tmp_path, "--cam", cam, "--cam-class", "blue", "--cam-class", "-1", "--output", str(tmp_path / "o")
    )
    answers = model.predict(str(images), cam=cam, classes=["blue", -1])
    assert [answer.source for answer in answers] == list(expected["paths"]) == [str(images / "a.png"), str(images / "b.jpg")]
    for row, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.scores, expected["scores"][row])
        np.testing.assert_array_equal(answer.logits, expected["logits"][row])
        np.testing.assert_array_equal(answer.maps[cam], expected["maps"][row])
        assert answer.explained == tuple(expected["classes"][row])
    for name in ("a", "b"):
        drawn = next(answer for answer in answers if Path(answer.source).stem == name).overlay
        with Image.open(tmp_path / f"o/{name}.{cam}.blue.png") as written:
            np.testing.assert_array_equal(np.asarray(drawn), np.asarray(written))


def test_an_answer_says_label_score_and_the_best_classes(model: tlcli.Model, images: Path) -> None:
    answer = model.predict(images / "a.png", cam="gradcam")
    order = np.argsort(-answer.scores)
    assert (answer.label, answer.class_id, answer.score) == (model.labels[order[0]], order[0], pytest.approx(answer.scores.max()))
    assert answer.label == "red"
    assert [best.class_id for best in answer.top(3)] == list(order[:3])
    assert answer.top(2)[1] == (model.labels[order[1]], float(answer.scores[order[1]]), order[1])
    assert len(answer.top(100)) == 7
    assert answer.map.shape == (8, 8)
    assert answer.map.dtype == np.float32
    np.testing.assert_array_equal(answer.map, answer.maps["gradcam"][0])
    assert repr(answer) == f"Answer('red', {answer.score:.4f}, cam=gradcam)"
    with pytest.raises(RequestError, match=r"top\(0\): expected 1 or more"):
        answer.top(0)


def test_several_maps_and_classes_are_drawn_by_name(model: tlcli.Model, images: Path) -> None:
    answer = model.predict(images / "a.png", cam=["gradcam", "cam"], classes=("green", 2, "-1"))
    assert list(answer.maps) == ["gradcam", "cam"]
    assert [model.labels[class_id] for class_id in answer.explained] == ["green", "blue", "red"]
    assert answer.draw("cam", "red").tobytes() == answer.draw("cam", -1).tobytes() == answer.draw("cam", 0).tobytes()
    assert answer.draw("cam", "red").tobytes() != answer.draw("cam", "green").tobytes()
    assert answer.overlay.tobytes() == answer.draw("gradcam", "green").tobytes()
    for arguments, message in ((("lime",), "cam 'lime' was not requested"), (("cam", "yellow"), "cls 'yellow' was not explained")):
        with pytest.raises(RequestError, match=message):
            answer.draw(*arguments)
    assert tuple(model.predict(images / "a.png", cam="all").maps) == model.cams


def test_without_cam_there_is_no_map(model: tlcli.Model, images: Path) -> None:
    answer = model.predict(images / "a.png")
    assert answer.maps == {}
    with pytest.raises(RequestError, match=r'no map was requested: use predict\(image, cam="gradcam"\)'):
        _ = answer.overlay
    with pytest.raises(RequestError, match="classes and softmax: no map is requested: add cam"):
        model.predict(images / "a.png", classes="red", softmax=True)


def test_an_image_has_the_same_answer_in_every_form(model: tlcli.Model, images: Path) -> None:
    path = images / "a.png"
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
        forms = [
            path,
            str(path),
            path.read_bytes(),
            memoryview(path.read_bytes()),
            Image.open(path),
            pixels,
            np.asfortranarray(pixels),
            np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
        ]
    answers = model.predict(forms, cam="gradcam")
    assert len(answers) == len(forms)
    for answer in answers:
        np.testing.assert_array_equal(answer.scores, answers[0].scores)
        np.testing.assert_array_equal(answer.map, answers[0].map)
        assert answer.overlay.tobytes() == answers[0].overlay.tobytes()
    np.testing.assert_array_equal(model.predict(np.stack([pixels, pixels]))[1].scores, answers[0].scores)


def test_grey_arrays_are_grey_images(model: tlcli.Model) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)
    answers = model.predict([grey, grey[..., None], np.repeat(grey[..., None], 3, axis=2)])
    for answer in answers:
        np.testing.assert_array_equal(answer.scores, answers[2].scores)


def test_an_array_of_the_inputs_size_is_cropped_as_every_image_is(model: tlcli.Model, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(model.predict(pixels).scores, model.predict(tmp_path / "x.png").scores)


def test_an_overlay_does_not_follow_later_changes_of_the_callers_image(model: tlcli.Model) -> None:
    image = Image.new("RGB", (64, 48), "red")
    answer = model.predict(image, cam="gradcam")
    image.paste("blue", (0, 0, 64, 48))
    assert answer.image.getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("no-such.png", NotFoundError, "no-such.png"),
        (b"no image", ImageError, "8 bytes are not an image"),
        (b"", ImageError, "empty"),
        (np.zeros((3, 8, 8), np.uint8), RequestError, r"got uint8 \[3, 8, 8\]: move the channels to the end"),
        (np.zeros((8, 8, 3)), RequestError, r"got float64 \[8, 8, 3\]: scale values in \[0, 1\]"),
        (np.zeros((0, 8, 3), np.uint8), RequestError, r"got uint8 \[0, 8, 3\]"),
        (np.zeros(8, np.uint8), RequestError, r"got uint8 \[8\]"),
        (Image.new("F", (8, 8)), ImageError, "floating-point values"),
        (5, RequestError, "expected an image as a path, a URL, .*, got int"),
        ([None], RequestError, "got NoneType"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(model: tlcli.Model, image: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as refused:
        model.predict(image)  # type: ignore[call-overload]
    assert "\n" not in str(refused.value)


def test_an_unreadable_image_of_several_is_raised_or_skipped(model: tlcli.Model, images: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    several = [images / "a.png", tmp_path / "broken.png", images / "b.jpg"]
    with pytest.raises(ImageError, match=r"broken\.png: 8 bytes are not an image"):
        model.predict(several)
    with pytest.warns(UserWarning, match=r"left out: .*broken\.png"):
        answers = model.predict(several, on_error="skip")
    assert [Path(answer.source).name for answer in answers] == ["a.png", "b.jpg"]
    with pytest.raises(RequestError, match="on_error 'ignore': expected 'raise' or 'skip'"):
        model.predict(several, on_error="ignore")  # type: ignore[call-overload]


def test_no_images_have_no_answers(model: tlcli.Model, tmp_path: Path) -> None:
    assert model.predict([]) == []
    with pytest.raises(NotFoundError, match="no image in this folder"):
        model.predict(tmp_path)


def test_a_notebook_shows_an_answer_a_list_and_a_model(model: tlcli.Model, images: Path) -> None:
    answers = model.predict(images, cam="gradcam")
    with Image.open(io.BytesIO(answers[0]._repr_png_())) as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(answers[0].overlay))
    assert answers[0]._repr_html_().count("<img src='data:image/png;base64,") == 2
    assert model.predict(images / "a.png")._repr_html_().count("<img") == 1
    assert "red" in answers[0]._repr_html_()
    assert answers._repr_html_().count("<figure") == 2
    assert "toy" in model._repr_html_()


def test_text_from_outside_is_escaped(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "<script>.png"
    Image.new("RGB", (8, 8)).save(path)
    assert "<script>" not in tlcli.load(models, device="cpu").predict(path, cam="gradcam")._repr_html_()


def test_folders_say_what_they_leave_out(model: tlcli.Model, images: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes((images / "a.png").read_bytes())
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.warns(UserWarning, match=r"left out: .*notes\.txt"):
        assert len(model.predict([str(tmp_path)])) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(model.predict(images)) == 2
