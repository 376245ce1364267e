"""Proves: a person's directory gives what they may do and names what is missing; a key of no roster signs nothing."""

import shutil

import pytest

from common.errors import ConfigError, FederationError
from common.keystore import save_secret
from common.roster import Roster
from common.signing import Identity
from server.account import Account
from server.control import Control


@pytest.fixture
def home(people):
    people.found()
    return people.home


def test_the_coordinators_home_has_an_administrators_account_and_signs_with_a_key_on_the_roster(home):
    account = Account.of(home)
    assert account.certificate == home / "admins" / "ada.crt"
    assert account.key == home / "admins" / "ada.key"
    assert account.bundle_key.public in account.roster.bundles
    assert account.roster == Roster.read(home / "roster.json")
    assert isinstance(account.control, Control)


def test_a_persons_own_directory_will_do(home, place):
    for name in ("consortium.toml", "roots.pem", "roster.json"):
        shutil.copy(home / name, place)
    for name in ("ada.crt", "ada.key"):
        shutil.copy(home / "admins" / name, place)
    account = Account.of(place)
    assert account.certificate == place / "ada.crt"
    assert isinstance(account.control, Control)
    with pytest.raises(ConfigError, match=r"bundle\.key is missing"):
        _ = account.bundle_key


def test_a_certificate_without_its_key_is_no_account(place):
    (place / "ada.crt").write_text("a certificate")
    with pytest.raises(ConfigError, match="holds no certificate of a person together with its key") as refused:
        Account.of(place)
    assert "veilfed user init" in refused.value.hint


def test_a_key_that_belongs_to_another_certificate_is_named(home):
    from common.tls_keys import TlsKey

    (home / "admins" / "ada.key").write_bytes(TlsKey.generate().pkcs8())
    with pytest.raises(ConfigError, match=r"ada\.crt and .*ada\.key do not fit"):
        _ = Account.of(home).control


def test_a_bundle_key_that_is_not_on_the_roster_signs_nothing(home):
    (home / "bundle.key").unlink()
    save_secret(home / "bundle.key", Identity.generate().private_bytes(), None)
    with pytest.raises(ConfigError, match="not on the roster"):
        _ = Account.of(home).bundle_key


def test_a_roster_that_was_changed_by_hand_is_not_believed(home):
    text = (home / "roster.json").read_text()
    (home / "roster.json").write_text(text.replace("Heart study", "Heart studx"))
    with pytest.raises(FederationError):
        _ = Account.of(home).roster
