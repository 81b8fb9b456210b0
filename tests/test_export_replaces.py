"""An export replaces an older one of its kind, and nothing else."""

import stat

import keras
import pytest
from support import BACKEND

from keras_cosattn import export

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")


@pytest.fixture(scope="module")
def model():
    x = keras.Input((None, 3))
    return keras.Model(x, keras.layers.Dense(2)(x), name="model")


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(write, model, path, message):
    before = content(path.parent)
    with pytest.raises(FileExistsError, match=message):
        write(model, path, signatures=["serve"])
    assert content(path.parent) == before


def test_a_tflite_file_does_not_replace_a_saved_model(model, tmp_path):
    export.to_saved_model(model, tmp_path / "m", signatures=["serve"])
    (tmp_path / "m" / "notes.txt").write_text("years of work")
    refused(export.to_tflite, model, tmp_path / "m", r"Cannot write a file there, it is a folder")
    refused(
        export.to_saved_model,
        model,
        tmp_path / "m",
        r"files that were added to it: \['notes.txt'\]",
    )
    (tmp_path / "m" / "notes.txt").unlink()
    export.to_saved_model(model, tmp_path / "m", signatures=["serve"])
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_saved_model_does_not_replace_files_or_foreign_folders(model, tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    refused(export.to_saved_model, model, tmp_path / "thesis", r"a folder there, it is a file")
    model.export(tmp_path / "foreign", verbose=False)
    refused(export.to_saved_model, model, tmp_path / "foreign", r"it is no export")
    (tmp_path / "empty").mkdir()
    export.to_saved_model(model, tmp_path / "empty", signatures=["serve"])


def test_a_tflite_file_does_not_replace_another_file(model, tmp_path):
    model.save(tmp_path / "model.keras")
    refused(export.to_tflite, model, tmp_path / "model.keras", r"no TFLite file is not replaced")
    (tmp_path / "m.tflite").touch()
    export.to_tflite(model, tmp_path / "m.tflite", signatures=["serve"])
    export.to_tflite(model, tmp_path / "m.tflite", signatures=["serve"])


def test_others_may_read_an_export_as_any_new_file(model, tmp_path):
    (tmp_path / "usual").touch()
    (tmp_path / "usual_folder").mkdir()
    file, folder = (
        stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "usual_folder")
    )
    export.to_tflite(model, tmp_path / "m.tflite", signatures=["serve"])
    export.to_saved_model(model, tmp_path / "m", signatures=["serve"])
    for path in [tmp_path / "m.tflite", tmp_path / "m", *(tmp_path / "m").rglob("*")]:
        expected = folder if path.is_dir() else file
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
