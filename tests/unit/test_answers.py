"""What servers, poolers and libpq say when there is no connection, and what is done about it."""

from __future__ import annotations

import pytest

from alembic_entrypoint.postgres.answers import Outcome, shorten, understand

WAIT, DENIED, WRONG, UNUSABLE = Outcome.WAIT, Outcome.DENIED, Outcome.WRONG, Outcome.UNUSABLE
AT = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '

#: Word for word what PostgreSQL 13 to 18, libpq, PgBouncer, asyncpg and the resolver say.
SAID = [
    (AT + "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?", WAIT),
    (AT + "timeout expired", WAIT),
    (AT + "server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally", WAIT),
    (AT + "No route to host", WAIT),
    ("the name 'db' does not resolve: Name or service not known", WAIT),
    ('could not translate host name "db" to address: Temporary failure in name resolution', WAIT),
    (AT + "FATAL:  the database system is starting up", WAIT),
    (AT + "FATAL:  the database system is shutting down", WAIT),
    (AT + "FATAL:  the database system is in recovery mode", WAIT),
    (AT + "FATAL:  the database system is not yet accepting connections\nDETAIL:  Consistent recovery state", WAIT),
    (AT + "FATAL:  the database system is not accepting connections\nDETAIL:  Hot standby mode is disabled.", WAIT),
    (AT + 'FATAL:  database "app" is not currently accepting connections', WAIT),
    (AT + "FATAL:  sorry, too many clients already", WAIT),
    (AT + "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", WAIT),
    (AT + 'FATAL:  too many connections for role "app"', WAIT),
    (AT + "session is read-only", WAIT),
    (AT + "server is in hot standby mode", WAIT),
    (AT + "SSL SYSCALL error: EOF detected", WAIT),
    (AT + "SSL error: unexpected eof while reading", WAIT),
    ("the name 'certificate' does not resolve: Name or service not known", WAIT),
    (AT.replace("127.0.0.1", "sslmode.example.com") + "Connection refused", WAIT),
    ("it is a standby, which cannot be migrated", WAIT),
    (AT + "FATAL:  Passwort-Authentifizierung für Benutzer »app« fehlgeschlagen", WAIT),
    ("", WAIT),
    (AT + 'FATAL:  password authentication failed for user "app"', DENIED),
    (AT + "fe_sendauth: no password supplied", DENIED),
    (AT + 'FATAL:  Peer authentication failed for user "app"', DENIED),
    (AT + "FATAL:  SASL authentication failed", DENIED),
    (AT + 'authentication method requirement "scram-sha-256" failed: server requested a cleartext password', DENIED),
    (AT + "channel binding required, but server authenticated client without channel binding", DENIED),
    (AT + 'FATAL:  role "app" does not exist', DENIED),
    (AT + 'FATAL:  role "app" is not permitted to log in', DENIED),
    (AT + "FATAL:  no such user: app", DENIED),
    (AT + 'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "app", database "app", no encryption', DENIED),
    (AT + 'FATAL:  pg_hba.conf rejects connection for host "10.0.0.1", user "app", database "app"', DENIED),
    (AT + 'FATAL:  permission denied for database "app"\nDETAIL:  User does not have CONNECT privilege.', DENIED),
    (AT + "server does not support SSL, but SSL was required", DENIED),
    (AT + "SSL error: certificate verify failed", DENIED),
    (AT + 'server certificate for "other" does not match host name "db"', DENIED),
    (AT + 'root certificate file "/root/.postgresql/root.crt" does not exist', DENIED),
    (AT + "SSL error: tlsv1 alert unknown ca", DENIED),
    (AT + 'FATAL:  database "app" does not exist', WRONG),
    (AT + "FATAL:  no such database: app", WRONG),
    ('invalid sslmode value: "perhaps"', UNUSABLE),
    ('invalid connection option "colour"', UNUSABLE),
    ('invalid port number: "99999"', UNUSABLE),
    ('invalid integer value "soon" for connection option "keepalives_idle"', UNUSABLE),
    ('missing "=" after "nonsense" in connection info string', UNUSABLE),
    ("could not match 2 port numbers to 3 hosts", UNUSABLE),
    ('connection is bad: "perhaps"', UNUSABLE),
    ("connection is bad: No such file or directory\n\tIs the server running locally?", WAIT),
]


@pytest.mark.parametrize(("text", "outcome"), SAID)
def test_an_answer_is_known_by_its_words(text: str, outcome: Outcome) -> None:
    assert understand(text).outcome is outcome


@pytest.mark.parametrize(
    ("sqlstate", "outcome"),
    [
        ("57P01", WAIT),
        ("57P03", WAIT),
        ("53300", WAIT),
        ("08006", WAIT),
        ("28P01", DENIED),
        ("28000", DENIED),
        ("42501", DENIED),
        ("3D000", WRONG),
        ("XX000", WAIT),
        (None, WAIT),
    ],
)
def test_a_code_counts_in_whatever_language_the_words_are(sqlstate: str | None, outcome: Outcome) -> None:
    assert understand("etwas ist geschehen", sqlstate).outcome is outcome


def test_a_code_counts_more_than_words() -> None:
    assert understand('database "starting up" does not exist', "3D000").outcome is WRONG


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ("the database system is starting up", 'password authentication failed for user "app"', WAIT),
        ("Connection refused", 'password authentication failed for user "app"', DENIED),
        ("it is a standby, which cannot be migrated", 'database "app" does not exist', WAIT),
        ("Connection refused", 'database "app" does not exist', WRONG),
        ('database "app" does not exist', 'no pg_hba.conf entry for host "10.0.0.1"', DENIED),
    ],
)
def test_of_several_hosts_the_one_that_may_get_ready_counts_first(first: str, second: str, outcome: Outcome) -> None:
    for text in (f"{AT}{first}\n{AT}{second}", f"{AT}{second}\n{AT}{first}"):
        assert understand(text).outcome is outcome


def test_a_reason_is_one_line_without_repetition() -> None:
    text = "last\nMultiple connection attempts failed. All failures were:\n- host: 'a'\t x\n\n- host: 'b'  x\n last \n"
    assert shorten(text) == "last | host: 'a' x | host: 'b' x"
    assert understand(text).reason == shorten(text)
