"""The bundle's metadata passes MONAI's own check, against a schema that travels with it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from forked import Ended, run_module
from monai.bundle import verify_metadata

from pipelines.utils.files import resource_folder

METADATA = resource_folder("configs") / "metadata.json"
SCHEMA = resource_folder("configs") / "schema" / "meta_schema_20240725.json"
SHA256 = "cd64aa8a5904426f6fc6855dabe46af8c742d5bad644b4e9cfb78ebad09ad678"
REQUIRED = json.loads(SCHEMA.read_text())["required"]


def changed(folder: Path, **changes: Any) -> Path:
    """The metadata with other values; None leaves a field out."""
    content = {key: value for key, value in (metadata() | changes).items() if value is not None}
    path = folder / "metadata.json"
    path.write_text(json.dumps(content))
    return path


def metadata() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(METADATA.read_text())
    return content


def command(file: Path) -> Ended:
    return run_module("monai.bundle", "verify_metadata", "--meta_file", file, "--filepath", SCHEMA)


def verify(file: Path) -> None:
    verify_metadata(meta_file=str(file), filepath=str(SCHEMA), hash_val=SHA256, hash_type="sha256")


def test_the_schema_is_the_published_one() -> None:
    assert hashlib.sha256(SCHEMA.read_bytes()).hexdigest() == SHA256
    # The command looks for no other file than the one that the metadata names.
    assert metadata()["schema"].endswith("/" + SCHEMA.name)


def test_monais_command_accepts_the_metadata() -> None:
    done = command(METADATA)
    assert done.returncode == 0, done.stderr[-2000:]
    output = done.stdout + done.stderr
    assert "skipped downloading" in output
    assert "verified with no error" in output


def test_monais_command_refuses_metadata_without_a_required_field(tmp_path: Path) -> None:
    done = command(changed(tmp_path, copyright=None))
    assert done.returncode != 0
    assert "'copyright' is a required property" in done.stderr


@pytest.mark.parametrize("field", [name for name in REQUIRED if name != "schema"])
def test_every_required_field_is_checked(field: str, tmp_path: Path) -> None:
    verify(METADATA)
    with pytest.raises(ValueError, match=f"'{field}' is a required property"):
        verify(changed(tmp_path, **{field: None}))


def test_a_network_output_without_its_type_is_refused(tmp_path: Path) -> None:
    formats = metadata()["network_data_format"]
    del formats["outputs"]["pred"]["dtype"]
    with pytest.raises(ValueError, match="Failed validating"):
        verify(changed(tmp_path, network_data_format=formats))


def test_the_versions_are_those_the_tests_ran_with() -> None:
    constraints = Path(__file__).parents[3] / "constraints.txt"
    if not constraints.is_file():
        pytest.skip("constraints.txt does not travel with the wheel")
    lines = [line.split("==") for line in constraints.read_text().splitlines() if "==" in line]
    pinned = {name.lower(): version for name, version in lines}
    content = metadata()
    named = content["required_packages_version"] | {
        "monai": content["monai_version"],
        "torch": content["pytorch_version"],
        "numpy": content["numpy_version"],
    }
    assert named == {name: pinned[name.lower()] for name in named}
