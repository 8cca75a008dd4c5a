"""experiments.real_model: the guide's command, on a tiny model."""

from hf_folders import write_folder

from experiments.real_model import BEGINNINGS, HAPPY, HAPPY_WORDS, SAD, SAD_WORDS, main


def test_a_table_of_every_cell(tmp_path, capsys):
    folder = str(write_folder(tmp_path / "hf"))
    argv = ["--model", folder, "--layers", "0", "1", "--coeffs", "0", "2"]
    assert main([*argv, "--samples", "1", "--tokens", "3"]) == 0
    said = capsys.readouterr().out
    for metric in ("happy words", "sad words", "repetition"):
        # Unsteered, and the direction and a random one at each layer.
        assert sum(f"  {metric}  " in line for line in said.splitlines()) == 5
    assert f"{len(BEGINNINGS)} beginnings × 1 texts a cell" in said


def test_the_lists_are_alike_in_number_and_share_no_word():
    assert len(HAPPY) == len(SAD) == 10
    assert not set(HAPPY_WORDS) & set(SAD_WORDS)
