"""`docs/data.md`: its commands print what it says, its manifest is valid, and it names every field."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from cli_call import call_medloss
from made_layouts import MADE, write_files

from pipelines.data.grids import TOLERANCE
from pipelines.data.known_layouts import LAYOUTS
from pipelines.data.label_scheme import scheme_problems
from pipelines.data.manifest import Case, Channel, Excluded, Manifest

PAGE = Path(__file__).parents[3] / "docs" / "data.md"


@pytest.fixture
def page() -> str:
    if not PAGE.is_file():
        pytest.skip("docs do not travel with the wheel")
    return PAGE.read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def prepare(page: str) -> None:
    """The folders and files of the page, in the working directory."""
    for name, make in MADE.items():
        make(Path(name))
    for n in range(3):
        write_files(Path("hospital"), f"scans/p{n}/t1.nii.gz", f"scans/p{n}/pet.nii.gz")
        write_files(Path("labels"), f"p{n}-final.nii.gz")
        Path("hospital/truth").mkdir(exist_ok=True)
        Path(f"labels/p{n}-final.nii.gz").rename(f"hospital/truth/p{n}-final.nii.gz")
        write_files(Path("unlabelled"), f"images/p{n}.nii.gz")
        Path("scanner").mkdir(exist_ok=True)
        Path(f"scanner/p{n}.mha").write_bytes(b"x")
    Path("cases.csv").write_text(blocks(page, "csv")[0])
    Path("head_and_neck.yaml").write_text(blocks(page, "yaml")[0])


def run(command: str) -> list[str]:
    _, out, err = call_medloss(*shlex.split(command)[1:])
    return [line.rstrip().replace(f"{Path.cwd()}/", "") for line in (out + err).splitlines()]


def test_the_commands_print_what_the_page_says(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(page)
    commands = [entry for block in blocks(page, "console") for entry in block.split("$ ")[1:]]
    assert len(commands) > 15
    for entry in commands:
        command, *printed = entry.splitlines()
        assert run(command) == printed, command


def test_every_field_option_and_layout_is_on_the_page(page: str) -> None:
    for model in (Manifest, Channel, Case, Excluded):
        for name in model.model_fields:
            assert f"`{name}`" in page, name
    for option in ("--channels", "--images", "--labels", "--pairs", "--resample-channels", "--hash", "--patient"):
        assert f"`{option}" in page, option
    for layout in LAYOUTS:
        assert f"layout: {layout}" in page, layout
    assert f"more than {TOLERANCE:g}\nvoxels (of the shortest side)" in page


def test_the_regions_of_the_page_are_valid(page: str) -> None:
    content = yaml.safe_load(blocks(page, "yaml")[1])
    assert list(content) == ["classes", "regions", "region_order"]
    assert list(scheme_problems(content)) == []
