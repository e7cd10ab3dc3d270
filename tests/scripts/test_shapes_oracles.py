import json

import pytest
from PIL import Image

from scripts.shapes_oracles import main


def test_it_writes_tables_json_and_a_sheet(tmp_path, capsys):
    sheet = tmp_path / "pictures" / "sheet.png"
    choice = ["--images", "6", "--image-size", "64", "--levels", "relation", "no_target"]
    main([*choice, "--output", str(tmp_path), "--sheet", str(sheet), "--sheet-columns", "2"])
    content = json.loads((tmp_path / "oracles.json").read_text())
    assert set(content["scores"]) == {"relation", "no_target"}
    assert content["scores"]["no_target"]["no object"]["mIoU"] == 1.0
    assert content["settings"]["images"] == 6
    assert set(content["ceilings"]) == {"2", "4", "8"}
    table = (tmp_path / "oracles.md").read_text()
    assert table.strip() == capsys.readouterr().out.strip()
    assert f"| {content['scores']['relation']['head phrase']['mIoU']:.3f} |" in table
    assert Image.open(sheet).width > 500


def test_impossible_number_of_images(capsys):
    with pytest.raises(SystemExit):
        main(["--images", "0"])
    assert "--images must be at least 1, got 0" in capsys.readouterr().err
