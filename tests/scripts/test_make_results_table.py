"""The results in a model card come from files alone."""

import copy
import json

import pytest

from processing.evaluation.metrics import ReferringSegmentationMetric
from scripts import make_results_table
from scripts.make_results_table import BEGIN, END


CARD = f"# Model\n\nBefore.\n\n{BEGIN}\nwhat was there\n{END}\n\nAfter.\n"


def results(part, counts, model="jmceln-small", protocol="original", limit=None):
    metric = ReferringSegmentationMetric()
    metric.update_counts(counts)
    return {
        "model": {"name": f"runs/{model}", "parameters": 1_500_000, "dtype": "float32"},
        "image_processor": {"size": {"height": 480, "width": 480}},
        "data": {"parts": {part: 10}, "images": 10, "expressions": len(counts)},
        "settings": {"protocol": protocol, "protocol_description": "as described", "limit": limit},
        "scores": metric.compute(),
        "controls": {"the object": {"scores": metric.compute()}},
    }


def fill(tmp_path, *files, options=()):
    card = tmp_path / "card.md"
    card.write_text(CARD)
    paths = []
    for index, content in enumerate(files):
        paths.append(tmp_path / f"{index}.json")
        paths[-1].write_text(json.dumps(content))
    assert make_results_table.main([str(card), *map(str, paths), *options]) == 0
    return card.read_text()


def line_of(card, start):
    (line,) = [line for line in card.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_measured_results_are_written_between_the_markers(tmp_path):
    card = fill(tmp_path, results("shapes/test", [(1, 2, 1), (3, 4, 4), (0, 0, 0)]))
    assert card.startswith("# Model\n\nBefore.\n\n")
    assert card.endswith("\n\nAfter.\n")
    assert "what was there" not in card
    assert "**jmceln-small** on shapes/test: 3 expressions on 10 images." in card
    assert "1.5 M parameters" in card
    row = line_of(card, "| all |")
    # oIoU 4 of 7, mIoU of 1/2 and 3/5, and as nothing was predicted where nothing is: N-acc 1.
    assert row[:3] == ["all", "3", "57.14"]
    assert row[3].startswith("55.00 ± ")
    assert row[-2:] == ["100.00", "100.00"]
    assert len(line_of(card, "| control: the object |")) == len(row)


def test_tests_that_were_not_run_say_so_beside_published_numbers(tmp_path):
    card = fill(tmp_path)
    published = json.loads(make_results_table.PUBLISHED.read_text())
    rows = [line for line in card.splitlines() if line.startswith("| **JMCELN**")]
    assert [row.count("not run") for row in rows] == [8, 8, 3]
    for score in ("oIoU", "mIoU"):
        for entry in published["refcoco"][score]:
            numbers = " | ".join("-" if value is None else f"{value:.2f}" for value in entry["percent"])
            assert f"| {entry['model']} | {numbers} | {published['sources'][entry['source']]} |" in card
    command = "jmceln evaluate --model MODEL --dataset jxu124/refcoco-benchmark --split refcoco_plus_unc_testB"
    assert command in card
    assert card.count("jmceln evaluate --model MODEL") == 9


def test_measured_splits_take_their_cells(tmp_path):
    card = fill(
        tmp_path,
        results("refcoco_unc/testA", [(1, 2, 1)]),
        results("refcoco_unc/val", [(3, 4, 4)]),
        results("refcoco_unc/val", [(9, 10, 10)], protocol="lavt"),
        results("refcocog_umd/val", [(1, 1, 1)], limit=5),
        results("grefcoco_unc/val", [(1, 2, 1), (0, 0, 0)]),
    )
    comparison = card[card.index("### Beside other models") :]
    rows = [line for line in comparison.splitlines() if line.startswith("| **jmceln-small")]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert cells[0] == ["**jmceln-small**", "60.00", "50.00", *["not run"] * 6, "this repository"]
    assert cells[1] == ["**jmceln-small (lavt protocol)**", "81.82", *["not run"] * 7, "this repository"]
    assert cells[-1] == ["**jmceln-small**", "50.00", "75.00", "100.00", "this repository"]
    # The first five images are no test set, and what was run needs no command.
    assert "--split refcocog_umd_val" in comparison
    assert "--split refcoco_unc_val" not in comparison
    assert "data/grefcoco" not in comparison


def test_check_tells_whether_the_card_is_up_to_date(tmp_path, capsys):
    content = results("shapes/test", [(1, 2, 1)])
    card = fill(tmp_path, content)
    arguments = ["--check", str(tmp_path / "card.md"), str(tmp_path / "0.json")]
    assert make_results_table.main(arguments) == 0
    changed = copy.deepcopy(content)
    changed["scores"]["oIoU"] = 0.9
    (tmp_path / "0.json").write_text(json.dumps(changed))
    assert make_results_table.main(arguments) == 1
    assert "out of date" in capsys.readouterr().err
    assert (tmp_path / "card.md").read_text() == card


@pytest.mark.parametrize("card", ["no markers", f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_a_card_without_its_markers_is_refused(card):
    with pytest.raises(ValueError, match="must contain each of the two markers"):
        make_results_table.fill(card, "text")


def test_other_json_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json is not a result"):
        make_results_table.read_results(tmp_path / "other.json")
