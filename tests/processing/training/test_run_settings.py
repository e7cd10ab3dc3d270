"""Which changes of settings are named when a run is resumed."""

import pytest

from processing.training.run import refuse_other_settings
from processing.training.run_settings import differing_settings, read_settings, write_settings


def test_a_changed_field_is_named_with_both_values():
    before = {"training": {"learning_rate": 1e-3, "seed": 0}, "data": {"size": 3}, "model": {"tokenizer": "words"}}
    now = {"training": {"learning_rate": 1e-4, "seed": 0}, "data": {"size": 4}, "model": {"tokenizer": "words"}}
    assert differing_settings(before, now) == [
        "data.size was 3 and is 4",
        "training.learning_rate was 0.001 and is 0.0001",
    ]


def test_fields_of_a_mapping_that_only_one_run_has_are_named():
    before, now = {"model": {"model_config": {"a": {"b": 1}}}}, {"model": {"model_config": {"a": {"c": 2}}}}
    assert differing_settings(before, now) == [
        "model.model_config.a.b was 1 and is None",
        "model.model_config.a.c was None and is 2",
    ]
    assert differing_settings({"data": {"x": None}}, {"data": {"x": {"a": 1}}}) == ["data.x was None and is {'a': 1}"]


def test_settings_of_another_release_paths_and_logging_may_change():
    before = {"training": {"output_dir": "a", "save_steps": 1, "new": 1}, "data": {"image_folder": "a"}, "versions": 1}
    now = {"training": {"output_dir": "b", "save_steps": 2, "old": 1}, "data": {"image_folder": "b"}, "versions": 2}
    assert differing_settings(before, now) == []
    # Names that begin like those of the logging are free in the arguments of the training alone.
    assert differing_settings({"data": {"log_tables": 1}}, {"data": {"log_tables": 2}}) != []


def test_long_values_are_shortened():
    (difference,) = differing_settings({"data": {"train": "a " * 200}}, {"data": {"train": "b"}})
    assert difference.endswith("... and is 'b'")
    assert len(difference) < 120


def test_written_settings_are_read_again(tmp_path):
    assert read_settings(tmp_path) is None
    write_settings({"data": {"path": tmp_path}}, tmp_path)
    assert read_settings(tmp_path) == {"data": {"path": str(tmp_path)}}


@pytest.mark.parametrize(("count", "end"), [(5, "data.4 was 0 and is 1. Choose"), (7, "; and 2 more. Choose")])
def test_a_refusal_names_five_settings_and_counts_the_others(tmp_path, count, end):
    write_settings({"data": {str(number): 0 for number in range(count)}}, tmp_path)
    with pytest.raises(ValueError, match="is from a run with other settings") as refused:
        refuse_other_settings(str(tmp_path), {"data": {str(number): 1 for number in range(count)}})
    assert end in str(refused.value)
    assert str(refused.value).count(" was 0 and is 1") == 5
