"""Commands typed as a stranger would: each mistake ends in one line that says what to type, with no traceback and nothing written."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.service.toy_model import ToyModel
from tlcli.__main__ import main


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a model, a run, images and what else people have lying about."""
    home = tmp_path_factory.mktemp("home")
    ToyModel.make(seed=5).save(home / "models/toy/1/model.onnx", "toy")
    (home / "runs/one").mkdir(parents=True)
    for name in ("config.json", "results.json", "checkpoint.safetensors"):
        (home / "runs/one" / name).write_text("{}")
    for label in ("cat", "dog"):
        (home / "data" / label).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full((32, 32, 3), 60 * number, np.uint8)).save(home / "data" / label / f"{number}.png")
    Image.new("RGB", (64, 64), "red").save(home / "image.png")
    (home / "empty").mkdir()
    (home / "notes.txt").write_text("cat\n")
    (home / "labels.txt").write_text("cat\n\ndog\n")
    (home / "labels.csv").write_text("path,class\nno.png,cat\n")
    (home / "weights.pth").write_bytes(b"PK")
    (home / "broken.toml").write_text("epochs: 3")
    (home / "boxes.json").write_text(json.dumps({}))
    os.mkfifo(home / "pipe.png")
    return home


WRONG = [
    # commands
    ("train data", "no such command 'train': type `tlcli finetune`"),
    ("fine-tune data", "no such command 'fine-tune': type `tlcli finetune`"),
    ("finetun data", "no such command 'finetun': did you mean `tlcli finetune`?"),
    ("evaluate_cam models/toy data", "no such command 'evaluate_cam': did you mean `tlcli evaluate-cam`?"),
    ("Serve models", "no such command 'Serve': did you mean `tlcli serve`?"),
    ("server models", "no such command 'server': type `tlcli serve`"),
    ("ls", "no such command 'ls': type `tlcli models`"),
    ("xyzzy", "no such command 'xyzzy': expected one of finetune, export, predict"),
    # options
    ("finetune data --backbon resnet18", "no such option --backbon: did you mean --backbone?"),
    ("finetune data --learning-rat 1", "no such option --learning-rat: did you mean --lr?"),
    ("finetune data -lr 1", "no such option -lr: did you mean --lr?"),
    ("finetune data --checkpoint x.pth", "no such option --checkpoint: did you mean --weights?"),
    ("finetune data --gpu", "no such option --gpu: say --device cuda"),
    ("finetune data --unfreeze", "no such option --unfreeze: say --mode full"),
    ("finetune --train-dir data", "no such option --train-dir: give the folder above"),
    ("finetune data --lr fast", "Invalid value for '--lr'"),
    ("finetune data --learning-rate=-1", "Invalid value for '--lr'"),
    ("finetune data --batch_size 0", "Invalid value for '--batch-size'"),
    ("finetune data --img-size huge", "Invalid value for '--image-size'"),
    ("finetune data --num-workers -1", "Invalid value for '--workers'"),
    ("finetune data --mode head", "'head' is not one of 'feature-extraction', 'full'"),
    ("finetune data --device gpu", "'gpu' is not one of 'auto', 'cpu', 'cuda'"),
    ("finetune data --classes cat,", "contains an empty name: expected classes separated by commas, such as cat,dog"),
    ("export runs/one --int8", "no such option --int8: export with --precision int8"),
    ("export runs/one --methods gradcam", "no such option --methods: say --cam gradcam,layercam"),
    ("evaluate-cam models/toy data --methods gradcam", "no such option --methods: say --cam gradcam,layercam"),
    ("evaluate-cam models/toy data --explain label", "no such option --explain: say --cam-class own"),
    ("bench image.png --plot p.png", "no such option --plot: say --output FILE.png"),
    ("predict models/toy image.png --cam gradcam --overlays o", "no such option --overlays: say --output FOLDER"),
    (
        "predict --model models/toy image.png",
        "no such option --model: give the model as the first argument: tlcli predict models/NAME IMAGE",
    ),
    ("predict models/toy image.png --topk x", "Invalid value for '--top-k'"),
    ("evaluate models/toy --dataset data", "no such option --dataset: give the data as the second argument"),
    ("visualize -out o runs/one", "no such option -out: did you mean --output?"),
    ("serve models --prot 1", "no such option --prot: did you mean --port?"),
    # repeated options
    ("finetune data --backbone resnet18 --backbone resnet50", "--backbone is given 2 times: it takes one value"),
    ("finetune data --model resnet18 --backbone resnet50", "--backbone is given 2 times: it takes one value"),
    ("finetune data --hflip --no-hflip", "--hflip/--no-hflip is given 2 times: it takes one value"),
    ("finetune data --classes cat --classes dog", "--classes is given 2 times: it takes one value; separate several with commas"),
    ("finetune data --model-kwargs a=1 --model-kwargs a=2", "a is given twice, as 1 and 2: use only one of them"),
    ("serve models --port 1 --port 2", "--port is given 2 times: it takes one value"),
    ("bench image.png --clients 1 --clients 2", "--clients is given 2 times: it takes one value; separate several with commas"),
    # options that would be ignored
    ("predict models/toy image.png --cam-class red", "--cam-class sets the class that a map explains: add a map with --cam"),
    ("predict models/toy image.png --output o", "--output is the folder for overlays of maps: add a map with --cam"),
    ("predict models/toy image.png --softmax", "--softmax sets what a map explains: add a map with --cam"),
    ("predict models/toy image.png --cam eigencam --softmax", "--softmax: eigencam is the same for every class"),
    ("predict models/toy image.png --cam all --cam", "Option '--cam' requires an argument"),
    ("predict models/toy image.png --cam gradcam,", "contains an empty name"),
    ("classify image.png --cam-class red", "--cam-class sets the class that a map explains: add a map with --cam"),
    ("classify image.png --json --jsonl", "--json and --jsonl"),
    ("finetune data --dataset data", "data and --dataset data both name the data set"),
    ("finetune data --data-dir d", "--data-dir does not apply to data, which is a folder of images"),
    ("finetune data --warm-up 0.1", "--warm-up applies only to --mode full"),
    ("finetune data --layer-decay 0.5", "--layer-decay applies only to --mode full"),
    ("finetune data --amp on", "--amp needs --mode full"),
    ("finetune data --mode full --weights none --layer-decay 0.5", "--layer-decay has no effect with --weights none"),
    ("finetune data --mode full --find-lr p.png --epochs 3", "--epochs cannot be combined with --find-lr"),
    ("finetune data --mode full --find-lr p.png --no-export", "--no-export cannot be combined with --find-lr"),
    ("finetune data --print-config --find-lr p.png", "--print-config and --find-lr"),
    ("export runs/one --max-accuracy-drop 1", "--max-accuracy-drop applies only to reduced precision: add --precision fp16 or int8"),
    ("export runs/one --min-map-correlation 0.5", "--min-map-correlation applies only to reduced precision: add --precision fp16 or int8"),
    ("export runs/one --cam none --cam-layer layer3", "--cam-layer cannot be combined with --cam none"),
    ("export runs/one --cam none,gradcam", "expected map methods separated by commas, such as gradcam,layercam; or none"),
    ("export runs/one --seed 3", "--seed only selects the calibration images of --precision int8"),
    ("export runs/one --list-cam-layers --precision fp16", "--precision cannot be combined with --list-cam-layers, which exports nothing"),
    ("export runs/one --labels labels.txt", "--labels: determined by the run"),
    ("serve models --tf32 --device cpu", "--tf32 needs a GPU"),
    ("serve models --poll-s 3", "--poll-s needs --model-control poll"),
    ("serve models --metrics-host 127.0.0.1", "--metrics-host needs --metrics-port"),
    ("models models --models models", "models and --models models both name the model repository"),
    # one thing where another is expected
    ("predict runs/one image.png", "runs/one is a run, not an exported model: `tlcli export runs/one` exports it"),
    ("predict models image.png", "models is a model repository: give one of its models: models/toy"),
    ("predict toy image.png", "toy: no such file or folder: did you mean models/toy?"),
    ("predict image.png models/toy", "image.png is not a model, but models/toy is one: give the model first"),
    ("predict weights.pth image.png", "weights.pth is a checkpoint, not an exported model"),
    ("predict notes.txt image.png", "notes.txt"),
    ("predict models/toy runs/one", "runs/one is a run: expected an image or a folder of images"),
    ("predict models/toy empty", "empty: no image in this folder"),
    ("predict models/toy nosuch.png", "nosuch.png: no such file or folder"),
    ("predict models/toy pipe.png", "left out: pipe.png: a FIFO (named pipe): expected an image file"),
    ("predict models/toy notes.txt", "left out: notes.txt: 4 bytes are not an image"),
    ("predict models/toy image.png --cam gradcamm", "model 'toy' has no map method 'gradcamm'; it has: cam, gradcam"),
    ("predict models/toy image.png --cam gradcam --cam-class purple", "--cam-class 'purple': no such class; expected a label (red, green"),
    ("evaluate runs/one data", "runs/one is a run, not an exported model"),
    ("evaluate data models/toy", "data is not a model, but models/toy is one: give the model first"),
    ("evaluate models/toy runs/one", "runs/one is a run: expected an image or a folder of images"),
    ("evaluate models/toy data --data-dir d", "--data-dir does not apply to data, which is a folder of images"),
    ("evaluate models/toy nosuch", "unknown data set 'nosuch'"),
    ("evaluate-cam data models/toy", "data is not a model, but models/toy is one: give the model first"),
    ("evaluate-cam models runs/one", "models is a model repository: give one of its models: models/toy"),
    ("export models/toy", "models/toy is an exported model, not a run: give a run's folder"),
    ("export models", "models is a model repository, not a run"),
    ("export runs", "runs is a folder of runs: give one of them: runs/one"),
    ("export one", "one: no such folder: did you mean runs/one?"),
    ("export weights.pth", "weights.pth is a checkpoint, not a run: use it with --backbone NAME --weights weights.pth"),
    ("export --backbone test_resnet --weights none --labels labels.txt", "labels.txt: line 2 is empty"),
    ("export resnet18", "resnet18 is a backbone, not a run: use --backbone resnet18"),
    ("predict resnet18 image.png", "resnet18 is a backbone, not an exported model: `tlcli export --backbone resnet18` exports it"),
    ("visualize models/toy", "models/toy is an exported model, not a run"),
    ("compare models/toy runs/one", "models/toy is an exported model, not a run"),
    ("compare runs/one", "give two or more runs"),
    ("finetune runs/one", "runs/one is a run, not a folder of images: use --resume runs/one to resume it"),
    ("finetune models/toy", "models/toy is a model: expected an image or a folder of images"),
    ("finetune resnet18", "resnet18 is a backbone, not a folder of images: use --backbone resnet18"),
    ("finetune nosuch", "unknown data set 'nosuch'"),
    ("finetune nosuch.csv", "nosuch.csv: no such file: expected a label file"),
    ("finetune labels.csv", "labels.csv: line 1: no column label; the columns are path, class: name those to read, such as --columns"),
    (
        "finetune labels.csv --columns label=class",
        "labels.csv: 1 of 1 images cannot be found: line 2: no.png: no such file: paths start from",
    ),
    ("finetune labels.csv --columns class", "'class': expected PURPOSE=NAME, such as path=file,label=class"),
    ("finetune labels.csv --columns label=a,label=b", "label is given twice, as a and b: use only one of them"),
    ("finetune labels.csv --columns picture=file", "--columns: picture=file: expected PURPOSE=NAME with one of path, label"),
    ("finetune labels.csv --columns label=a,labels=b", "--columns: label=a and labels=b: use only one of them"),
    (
        "finetune labels.csv --columns label=class --group-column x",
        "labels.csv: line 1: no column 'x' (--columns group=...): choose from path",
    ),
    ("finetune labels.csv --data-dir d", "--data-dir does not apply to labels.csv, which is a label file"),
    ("finetune data --group-column patient", "--group-column applies to label files, but data is none: leave --group-column out"),
    ("finetune data --columns path=file", "--columns applies to label files, but data is none: leave --columns out"),
    ("evaluate models/toy nosuch.csv", "nosuch.csv: no such file: expected a label file"),
    ("finetune --resume models/toy", "models/toy is an exported model, not a run"),
    ("finetune data --config broken.toml", "broken.toml: not valid TOML"),
    ("finetune data --config nosuch.toml", "nosuch.toml: no such file: expected settings in TOML"),
    ("serve models/toy", "models/toy: one model of a repository: give the repository: models"),
    ("serve models/toy/1", "models/toy/1 is a version of one model: give the repository: models"),
    ("serve models/toy/1/model.onnx", "models/toy/1/model.onnx: one file of a model repository: give the repository: models"),
    ("serve --models nosuch", "nosuch: no such folder: give a model repository"),
    ("serve runs/one", "runs/one is a run, not a model repository: `tlcli export runs/one` exports it to models/"),
    ("serve runs", "runs is a folder of runs, not a model repository: `tlcli export runs/NAME` exports a run"),
    ("models runs/one", "runs/one is a run, not a model repository"),
    ("models models/toy", "models/toy: one model of a repository: give the repository: models"),
    ("classify models/toy", "models/toy is a model: expected an image or a folder of images"),
    ("bench models/toy", "models/toy is a model: expected an image or a folder of images"),
    ("classify image.png --host http://127.0.0.1:8000", "this is an HTTP address, but the client speaks gRPC"),
    ("classify image.png --host 127.0.0.1:1 --port 2", "two different ports"),
    ("health --host 127.0.0.1:port", "'port' is not a port: expected 1 to 65535"),
    ("classify image.png --host 127.0.0.1:1", "no server responds at 127.0.0.1:1"),
    ("backbones nothing-like-it", "no backbone matches 'nothing-like-it'"),
]


@pytest.mark.parametrize(("typed", "expected"), WRONG, ids=[typed for typed, _ in WRONG])
def test_a_mistake_ends_in_one_line_that_helps(
    typed: str, expected: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["tlcli", *shlex.split(typed)])
    before = sorted(home.rglob("*"))
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code in (1, 2)
    assert expected in said, said
    (line,) = [line for line in said.splitlines() if expected in line]
    assert len(line) < 400
    assert "Traceback" not in said
    assert sorted(home.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (
            "finetune data --learning-rate 0.5 --num-epochs 3 --imgsz 64 --model resnet18 --print-config",
            {"lr": 0.5, "epochs": 3, "image_size": 64},
        ),
        (
            "finetune --data data --batch_size=4 --opt sgd --wd 0.1 --print-config",
            {"batch_size": 4, "optimizer": "sgd", "weight_decay": 0.1},
        ),
        ("finetune data --print-config", {"dataset": "data"}),
    ],
)
def test_other_spellings_mean_our_options(
    typed: str, expected: dict[str, object], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tomllib

    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["tlcli", *shlex.split(typed)])
    main()
    settings = tomllib.loads(capsys.readouterr().out)
    assert {name: settings[name] for name in expected} == expected


def test_a_folder_named_like_a_known_data_set_is_the_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cats-vs-dogs").symlink_to(home / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tlcli", "finetune", "cats-vs-dogs", "--print-config"])
    main()
    assert f'dataset = "{tmp_path}/cats-vs-dogs"' in capsys.readouterr().out


def test_the_models_are_listed_by_argument_too(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(home)
    for arguments in (["models"], ["models", "models"], ["models", "--models", "models"]):
        monkeypatch.setattr(sys, "argv", ["tlcli", *arguments, "--json"])
        main()
        assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["toy"]
