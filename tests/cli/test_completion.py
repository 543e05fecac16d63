import contextlib
import io
import shutil
import subprocess

import pytest

from convattn.cli import COMMANDS, main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["--print-completion", "bash"]) == 0
    file = tmp_path_factory.mktemp("shell") / "convattn.bash"
    file.write_text(printed.getvalue())
    return file


def complete(script, *words):
    """What bash offers for the last word."""
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    asked = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _convattn; '
        'printf "%s\\n" "${COMPREPLY[@]}"; complete -p convattn'
    )
    command = ["bash", "-c", asked, "bash", str(script), "convattn", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    *offered, registered = ended.stdout.split("\n")[:-1]
    assert registered == "complete -o default -F _convattn convattn"
    return [word for word in offered if word]


pytestmark = pytest.mark.long


def test_commands(script):
    assert complete(script, "") == list(COMMANDS)
    assert complete(script, "pre") == ["predict"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("finetune", "--minu"), ["--minutes"]),
        (("train", "quickstart", "--optim.mome"), ["--optim.momentum"]),
        (("explain", "--print-c"), ["--print-config"]),
        (("finetune", "pictures", "x"), []),  # files are bash's own
        (("nothing", "--"), []),
    ],
)
def test_flags(words, offered, script):
    assert complete(script, *words) == offered


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_flags_of_its_own(command, script):
    common = {"--config", "--print-config", "--help"}
    assert set(complete(script, command, "--")) > common


@pytest.mark.parametrize(
    ("words", "said"),
    [(["fsh"], "unknown shell 'fsh'; the nearest is"), ([], "takes one shell: bash or zsh")],
)
def test_mistakes(words, said, capsys):
    assert main(["--print-completion", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_not_there_names_no_flag(capsys):
    assert main(["finetune", "/nowhere"]) == 2
    assert "/nowhere does not exist" in (said := capsys.readouterr().err)
    assert "--data" not in said
