"""An exit with another identity at the same address: one entry of the configuration changes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.config.client import load_client
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.pairing.invitation import Invitation
from cryprq_proxy.pairing.join import plan, write
from cryprq_proxy.pairing.replacing import replace_id, with_address

OLD, NEW, OTHER = (PeerId(bytes([number]) * 32) for number in range(3))
INVITATION = Invitation(f"cryprq://{NEW}@192.0.2.7:4433", bytes(16))
FILE = f"""# mine; it was {OLD}
failback = 5.0  # 'of {OLD}
default = "exit:home"

[[exit]]
name = "other"
peer = "cryprq://{OTHER}@192.0.2.8:4433"

[[exit]]  # the one at home
name = "home"
priority = 3
peer = [
    "cryprq://{str(OLD).upper()}@192.0.2.7:4433",  # "IPv4"
    'cryprq+wss://{OLD}@home.example',
]

[[rule]]
to = "exit:home"
domains = ["a.example"]
name = "what # goes \\" home"
"""


def test_one_entry_gets_the_new_identity_and_all_else_stays(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text(FILE)
    before = load_client(file)
    planned = plan(INVITATION, file, None, False)
    assert planned.replaces is not None
    assert (planned.replaces.name, planned.replaces.peer_id) == ("home", OLD)
    assert file.read_text() == FILE, "nothing is written yet"
    write(planned)
    after = load_client(file)
    assert [choice.peer_id for choice in after.exits()] == [OTHER, NEW]
    assert after.exits()[1]._replace(peer_id=OLD) == before.exits()[1]
    assert after.exits()[0] == before.exits()[0] and after.rules() == before.rules()
    head, body = FILE.split("[[exit]]  # the one at home")
    text = body.replace(str(OLD).upper(), str(NEW)).replace(str(OLD), str(NEW))
    assert file.read_text() == f"{head}[[exit]]  # the one at home{text}"


def test_an_exit_that_is_known_already_replaces_nothing(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text(FILE)
    write(plan(INVITATION, file, None, False))
    again = plan(INVITATION, file, None, False)
    assert again.replaces is None and not again.changed


def test_it_keeps_its_name(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text(FILE)
    assert plan(INVITATION, file, "home", False).replaces is not None
    with pytest.raises(ConfigError, match=r"is called home in .* and keeps that name: leave out --name"):
        plan(INVITATION, file, "work", False)


def test_without_a_name_the_first_peer_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text(f"peer = 'cryprq://{OLD}@192.0.2.7'\n")
    write(plan(INVITATION, file, None, False))
    assert file.read_text() == f"peer = 'cryprq://{NEW}@192.0.2.7'\n"


@pytest.mark.parametrize("url", [f"cryprq://{NEW}@192.0.2.7:4434", f"cryprq+ws://{NEW}@192.0.2.7:4433/"])
def test_another_port_or_carrier_is_another_exit(url: str, tmp_path: Path) -> None:
    """Both would have the host for a name."""
    file = tmp_path / "client.toml"
    file.write_text(f"peer = 'cryprq://{OLD}@192.0.2.7'\n")
    planned = plan(Invitation(url, bytes(16)), file, None, False)
    assert planned.replaces is None
    write(planned)
    names = [choice.name for choice in load_client(file).exits()]
    assert names == ["192.0.2.7", f"192.0.2.7-{url.partition('7:')[2][:4]}"]


def test_force_replaces_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text(FILE)
    planned = plan(INVITATION, file, None, True)
    assert planned.replaces is None and planned.keep is not None


def test_an_id_that_is_written_with_escapes_is_left_to_the_person(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    escaped = f"\\u{ord(str(OLD)[0]):04x}{str(OLD)[1:]}"
    file.write_text(f'peer = "cryprq://{escaped}@192.0.2.7"\n')
    with pytest.raises(ConfigError, match="in an unusual form: put the new one there"):
        plan(INVITATION, file, None, False)


def moved(tmp_path: Path, text: str, url: str = f"cryprq://{OLD}@192.0.2.99:4433") -> str:
    """What becomes of `text` when the exit OLD has been joined at `url`, where it had other addresses before."""
    file = tmp_path / "client.toml"
    file.write_text(text)
    before = load_client(file)
    planned = plan(Invitation(url, bytes(16)), file, None, False)
    assert planned.moved is not None and planned.replaces is None and planned.changed
    assert planned.moved in before.exits()
    write(planned)
    after = load_client(file)
    assert [choice.peer_id for choice in after.exits()] == [choice.peer_id for choice in before.exits()]
    assert {choice.priority for choice in after.exits()} == {choice.priority for choice in before.exits()}
    assert after.rules() == before.rules()
    again = plan(Invitation(url, bytes(16)), file, None, False)
    assert again.moved is None and not again.changed
    return file.read_text()


def test_an_exit_that_has_moved_has_its_new_address_first(tmp_path: Path) -> None:
    old, new = f"cryprq://{OLD}@192.0.2.7", f"cryprq://{OLD}@192.0.2.99:4433"
    assert moved(tmp_path, f"peer = '{old}' # [mine, {OLD}\n") == (
        f"peer = [\"{new}\", '{old}'] # [mine, {OLD}\n"
    )
    first = str(OLD).upper()
    assert moved(tmp_path, FILE) == FILE.replace(f'"cryprq://{first}@192', f'"{new}", "cryprq://{first}@192')
    two = f'peer = ["cryprq://{OTHER}@192.0.2.8", "{old}"]\n'
    assert moved(tmp_path, two) == two.replace(f'"{old}"', f'"{new}", "{old}"')
    inline = f'exit = [{{ peer = "{old}", name = "home" }}]\n'
    assert moved(tmp_path, inline) == inline.replace(f'"{old}"', f'["{new}", "{old}"]')


def test_an_exit_that_a_rule_calls_by_its_host_keeps_that_name(tmp_path: Path) -> None:
    rule = '\n[[rule]]\nto = "exit:192.0.2.7"\ndomains = ["a.example"]\n'
    text = moved(tmp_path, f'peer = "cryprq://{OLD}@192.0.2.7"\n{rule}')
    assert text == f'peer = ["cryprq://{OLD}@192.0.2.7", "cryprq://{OLD}@192.0.2.99:4433"]\n{rule}'


def test_an_id_that_stands_elsewhere_too_is_left_there(tmp_path: Path) -> None:
    rule = f'[[rule]]\nto = "direct"\nname = "{OLD}"\ndomains = ["a.example", "{OLD}.example"]\n'
    text = moved(tmp_path, f'{rule}\n[[exit]]\npeer = "cryprq://{OLD}@192.0.2.7"\n')
    assert text.startswith(rule) and "192.0.2.99" in text


def test_it_takes_another_carrier_too(tmp_path: Path) -> None:
    assert "wss" in moved(
        tmp_path, f'peer = "cryprq://{OLD}@192.0.2.7"\n', f"cryprq+wss://{OLD}@home.example"
    )


def test_an_address_for_which_there_is_no_room_is_left_to_the_person(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    addresses = ", ".join(f'"cryprq://{OLD}@192.0.2.{number}"' for number in range(1, 9))
    file.write_text(f"peer = [{addresses}]\n")
    reason = r"192\.0\.2\.99:4433 cannot be added .* at most 8 are allowed\): change that file by hand"
    with pytest.raises(ConfigError, match=reason):
        plan(Invitation(f"cryprq://{OLD}@192.0.2.99:4433", bytes(16)), file, None, False)


def test_an_exit_that_is_there_keeps_its_name(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text(FILE)
    for url in (f"cryprq://{OLD}@192.0.2.7:4433", f"cryprq://{OLD}@192.0.2.99:4433"):
        with pytest.raises(ConfigError, match=r"is called home in .* and keeps that name: leave out --name"):
            plan(Invitation(url, bytes(16)), file, "work", False)


@given(st.text(alphabet="a#\"'\\\n= "))
def test_any_text_can_be_looked_through(text: str) -> None:
    assert replace_id(text, OLD, NEW) == text
    assert list(with_address(text, OLD, "")) == []
