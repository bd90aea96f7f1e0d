"""
Certificates and keys from files: what can serve does, in a handshake in memory, and what can't is
refused in one line.
"""

import base64
import contextlib
import functools
import os
import re
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from twisted.logger import LogLevel, capturedLogs

from kvserver.connections.certificates import BadCertificate, Certificates
from tests.support.memory import timesOpen
from tests.support.wires import Authority, PrivateKey, ecKey, pem

Identity = tuple[Path, Path]

PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
"""
What C{openssl ecparam -genkey} writes before a key on P-256.
"""

TRADITIONAL = serialization.PrivateFormat.TraditionalOpenSSL

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def rsaKey() -> rsa.RSAPrivateKey:
    """
    A key of the kind that most have.
    """
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """
    One for each test: what they write is not to be seen by others.
    """
    return Authority(tmp_path / "authority")


@pytest.fixture
def identity(authority: Authority) -> Identity:
    """
    A certificate and its key that can serve.
    """
    return authority.issue("localhost")


def load(certificate: Path, key: Path, clientCA: Path | None = None) -> Certificates:
    """
    Load files.
    """
    return Certificates(str(certificate), str(key), str(clientCA) if clientCA else None)


def served(certificates: Certificates, context: ssl.SSLContext) -> ssl.SSLObject:
    """
    Shake hands, and let a line come and go.

    @return: The client's end.

    @raise ssl.SSLError: One of both does not want the other.
    """
    toClient, toServer = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = certificates.context.wrap_bio(toServer, toClient, server_side=True)
    client = context.wrap_bio(toClient, toServer, server_hostname="localhost")
    for _ in range(10):
        for end in client, server:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    client.write(b"hello\n")
    assert server.read(100) == b"hello\n"
    server.write(b"hello\n")
    assert client.read(100) == b"hello\n"
    return client


def subject(client: ssl.SSLObject) -> object:
    """
    The name in the certificate that the client was shown.
    """
    certificate = client.getpeercert()
    assert certificate
    return certificate["subject"]


def named(name: str) -> object:
    """
    A subject with this name alone.
    """
    return ((("commonName", name),),)


def reasonFor(certificate: Path, key: Path, clientCA: Path | None = None) -> str:
    """
    Why these files are refused: one line.
    """
    with pytest.raises(BadCertificate) as caught:
        load(certificate, key, clientCA)
    reason = str(caught.value)
    assert "\n" not in reason
    return reason


# Which keys.


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("make", [rsaKey, ecKey, ed25519.Ed25519PrivateKey.generate])
def test_kinds(
    authority: Authority, make: Callable[[], PrivateKey], version: ssl.TLSVersion
) -> None:
    """
    RSA, EC and Ed25519 serve, by TLS 1.2 and 1.3.
    """
    certificates = load(*authority.issue("one", key=make()))
    context = authority.client()
    context.minimum_version = context.maximum_version = version
    assert subject(served(certificates, context)) == named("one")


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Identity]:
    """
    Issues certificates with keys of all kinds, which take a while to be made: each once.
    """
    authority = Authority(tmp_path_factory.mktemp("issued"))
    makes: dict[str, Callable[[], PrivateKey]] = {
        "rsa": rsaKey,
        "ec": ecKey,
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }

    @functools.cache
    def issue(name: str, kind: str) -> Identity:
        name = f"{name}-{kind}"
        if kind == "pss":
            return authority.issuePSS(name)
        return authority.issue(name, key=makes[kind]())

    return issue


@pytest.mark.parametrize("version", VERSIONS)
def test_pss(issued: Callable[[str, str], Identity], version: ssl.TLSVersion) -> None:
    """
    So does a key for RSA-PSS alone.
    """
    certificate, key = issued("one", "pss")
    context = ssl.create_default_context(cafile=certificate.parent / "authority.pem")
    context.minimum_version = context.maximum_version = version
    assert subject(served(load(certificate, key), context)) == named("one-pss")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_curves(authority: Authority, curve: ec.EllipticCurve) -> None:
    """
    So do other curves than the usual one.
    """
    key = ec.generate_private_key(curve)
    assert served(load(*authority.issue("one", key=key)), authority.client())


def test_parameters(authority: Authority) -> None:
    """
    A key may have its EC PARAMETERS before it.
    """
    key = ecKey()
    certificate, keyFile = authority.issue("one", key=key)
    keyFile.write_bytes(PARAMETERS + pem(key, form=TRADITIONAL))
    assert served(load(certificate, keyFile), authority.client())


@pytest.mark.parametrize("make", [rsaKey, ecKey])
def test_traditional(authority: Authority, make: Callable[[], PrivateKey]) -> None:
    """
    A key may be in the form of old.
    """
    key = make()
    certificate, keyFile = authority.issue("one", key=key)
    keyFile.write_bytes(pem(key, form=TRADITIONAL))
    assert served(load(certificate, keyFile), authority.client())


# Which files.


TEXTS = [
    pytest.param(b"", id="none"),
    pytest.param(b"Certificate:\n    Data:\n        Version: 3 (0x2)\n", id="text"),
    pytest.param("Für das Büro von Ærøskøbing 証明書\n".encode(), id="UTF-8"),
    pytest.param(b"subject=/O=M\xfcller & S\xf6hne\r\n\xff\n" + 999 * b"-" + b"\n", id="bytes"),
]
"""
What people have around the blocks in their files.
"""


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("order", ["key first", "key last", "two files"])
def test_files(tmp_path: Path, authority: Authority, order: str, text: bytes) -> None:
    """
    Key and certificates may be in one file, in any order, or in two, with text around them.
    """
    between = Authority(tmp_path / "between", "an intermediate", authority)
    certificate, key = between.issue("one")
    chain = [certificate.read_bytes(), between.certificate.read_bytes()]
    blocks = {
        "key first": [key.read_bytes(), *chain],
        "key last": [*chain, key.read_bytes()],
        "two files": chain,
    }[order]
    certificate.write_bytes(text + text.join(blocks) + text)
    if order == "two files":
        key.write_bytes(text + key.read_bytes() + text)
    else:
        key = certificate
    assert subject(served(load(certificate, key), authority.client())) == named("one")


def test_lineEndings(identity: Identity, authority: Authority) -> None:
    """
    Files may come from Windows.
    """
    for path in identity:
        path.write_bytes(b"\xef\xbb\xbf\r\n" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert served(load(*identity), authority.client())


def test_chainIsNeeded(tmp_path: Path, authority: Authority) -> None:
    """
    Without its intermediate a certificate is loaded, but who trusts the root alone does not take
    it.
    """
    between = Authority(tmp_path / "between", "an intermediate", authority)
    certificates = load(*between.issue("one"))
    with pytest.raises(ssl.SSLCertVerificationError):
        served(certificates, authority.client())
    assert served(certificates, between.client(partial=True))


def test_longChain(tmp_path: Path, authority: Authority) -> None:
    """
    A chain of 50 KB is shown as a whole.
    """
    last = authority
    chain: list[bytes] = []
    for number in range(80):
        last = Authority(tmp_path / f"between{number}", f"intermediate {number}", last)
        chain.insert(0, last.certificate.read_bytes())
    certificate, key = last.issue("one")
    certificate.write_bytes(certificate.read_bytes() + b"".join(chain))
    assert certificate.stat().st_size > 50_000
    assert subject(served(load(certificate, key), authority.client())) == named("one")


# What is refused.


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, TRADITIONAL])
@pytest.mark.parametrize("make", [rsaKey, ecKey])
def test_passphrase(
    authority: Authority, make: Callable[[], PrivateKey], form: serialization.PrivateFormat
) -> None:
    """
    A key with a passphrase is refused, in each form that there is.
    """
    key = make()
    certificate, keyFile = authority.issue("one", key=key)
    keyFile.write_bytes(pem(key, b"secret", form))
    assert b"ENCRYPTED" in keyFile.read_bytes()
    assert (
        reasonFor(certificate, keyFile)
        == f"--tls-private-key: '{keyFile}' needs a passphrase, and must not"
    )
    certificate.write_bytes(keyFile.read_bytes() + certificate.read_bytes())
    assert (
        reasonFor(certificate, certificate)
        == f"--tls-private-key: '{certificate}' needs a passphrase, and must not"
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [(rsaKey, "key values mismatch"), (ecKey, "key values mismatch")],
)
def test_wrongKey(authority: Authority, make: Callable[[], PrivateKey], reason: str) -> None:
    """
    A key that is another's is refused: both files are named, with OpenSSL's reason.
    """
    certificate, _ = authority.issue("one", key=make())
    _, key = authority.issue("other", key=make())
    assert reasonFor(certificate, key) == (
        f"--tls-private-key: '{key}' is not the key of the certificate in '{certificate}': {reason}"
    )


@pytest.mark.parametrize("right", ["rsa", "ec", "pss", "ed25519"])
@pytest.mark.parametrize("wrong", ["rsa", "ec", "pss", "ed25519"])
def test_wrongKeyOfAnyKind(issued: Callable[[str, str], Identity], right: str, wrong: str) -> None:
    """
    Also if it is for RSA-PSS, or of another kind than the certificate is for. Both files are named,
    and the reason is OpenSSL's: it can't tell a key for another kind of signature from a wrong one.
    """
    certificate, _ = issued("one", right)
    _, key = issued("other", wrong)
    if right == wrong:
        expected = f"--tls-private-key: '{key}' is not the key of the certificate in "
        expected += f"'{certificate}': key values mismatch"
    else:
        expected = f"--tls-certificate: '{certificate}' can't be used with --tls-private-key: "
        expected += f"'{key}': no certificate assigned"
    assert reasonFor(certificate, key) == expected


def asPSS(key: rsa.RSAPrivateKey) -> bytes:
    """
    The same key, for RSA-PSS alone: PKCS #8 (RFC 5958) with the algorithm of RFC 4055.
    """

    def field(tag: int, *parts: bytes) -> bytes:
        content = b"".join(parts)
        size = len(content)
        return bytes([tag, 0x82]) + size.to_bytes(2, "big") + content

    inner = key.private_bytes(serialization.Encoding.DER, TRADITIONAL, serialization.NoEncryption())
    algorithm = field(0x30, bytes.fromhex("06092a864886f70d01010a"))
    return armored(field(0x30, b"\x02\x01\x00", algorithm, field(0x04, inner)))


def armored(der: bytes) -> bytes:
    """
    The PEM of a private key.
    """
    text = base64.encodebytes(der)
    return b"-----BEGIN PRIVATE KEY-----\n" + text + b"-----END PRIVATE KEY-----\n"


def test_rightKeyOfAnotherKind(authority: Authority) -> None:
    """
    The key of the certificate, but for RSA-PSS alone, is not called another's: nobody knows that.
    """
    key = rsaKey()
    certificate, keyFile = authority.issue("one", key=key)
    keyFile.write_bytes(asPSS(key))
    assert reasonFor(certificate, keyFile) == (
        f"--tls-certificate: '{certificate}' can't be used with --tls-private-key: '{keyFile}': "
        "no certificate assigned"
    )


def test_keyThatIsUnknown(authority: Authority) -> None:
    """
    A key of a kind that this OpenSSL does not know, or that is not the certificate's, as one of
    ML-DSA (RFC 9881), is not called encrypted, nor no key at all.
    """
    certificate, keyFile = authority.issue("one")
    seed = b"\x80\x20" + bytes(32)
    algorithm = bytes.fromhex("300b0609608648016503040311")
    rest = b"\x02\x01\x00" + algorithm + b"\x04" + bytes([len(seed)]) + seed
    keyFile.write_bytes(armored(b"\x30" + bytes([len(rest)]) + rest))
    reason = reasonFor(certificate, keyFile)
    assert f"--tls-private-key: '{keyFile}'" in reason
    assert "passphrase" not in reason
    assert "no PEM file" not in reason


def test_indented(authority: Authority, identity: Identity) -> None:
    """
    Blanks before a certificate do no harm: least of all is the key blamed for them.
    """
    certificate, key = identity
    certificate.write_bytes(b"  " + certificate.read_bytes())
    assert served(load(certificate, key), authority.client())


def inSecondLine(block: bytes, damage: bytes) -> bytes:
    """
    A PEM block with this at the begin of its second line.
    """
    first, second, rest = block.split(b"\n", 2)
    return b"\n".join((first, damage + second[len(damage) :], rest))


DAMAGES = [
    pytest.param(lambda block: inSecondLine(block, b"****"), id="no base64"),
    pytest.param(lambda block: inSecondLine(block, b"AAAA"), id="no DER"),
    pytest.param(lambda block: inSecondLine(block, b"\xff\xfe"), id="no ASCII"),
    pytest.param(lambda block: inSecondLine(block, b"\0\0"), id="NUL"),
    pytest.param(lambda block: block.split(b"\n")[0] + b"\n" + block[-30:], id="empty"),
    pytest.param(lambda block: block[: len(block) // 2], id="cut"),
    pytest.param(lambda block: block[:-40] + block[-30:], id="lacks a part"),
]
"""
What may happen to a certificate.
"""


@pytest.mark.parametrize("damaged", DAMAGES)
@pytest.mark.parametrize("number", [0, 1])
def test_damagedCertificate(
    tmp_path: Path,
    authority: Authority,
    identity: Identity,
    number: int,
    damaged: Callable[[bytes], bytes],
) -> None:
    """
    One of which not everything is there is refused, also if it is not the first.
    """
    certificate, key = identity
    blocks = [certificate.read_bytes(), authority.certificate.read_bytes()]
    blocks[number] = damaged(blocks[number])
    certificate.write_bytes(b"".join(blocks))
    assert reasonFor(certificate, key).startswith(f"--tls-certificate: '{certificate}'")


@pytest.mark.parametrize("damaged", DAMAGES)
@pytest.mark.parametrize("number", [0, 1])
def test_damagedAuthority(
    tmp_path: Path,
    authority: Authority,
    identity: Identity,
    number: int,
    damaged: Callable[[bytes], bytes],
) -> None:
    """
    So is one of an authority for clients: nobody is to find out by being refused.
    """
    other = Authority(tmp_path / "other", "another")
    blocks = [authority.certificate.read_bytes(), other.certificate.read_bytes()]
    blocks[number] = damaged(blocks[number])
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(b"".join(blocks))
    assert reasonFor(*identity, trusted).startswith(f"--tls-client-ca: '{trusted}'")


@pytest.mark.parametrize("damaged", DAMAGES)
def test_damagedKey(identity: Identity, damaged: Callable[[bytes], bytes]) -> None:
    """
    So is a key.
    """
    certificate, key = identity
    key.write_bytes(damaged(key.read_bytes()))
    assert reasonFor(certificate, key).startswith(f"--tls-private-key: '{key}' ")


def test_weak(authority: Authority) -> None:
    """
    A key that OpenSSL takes to be too short is refused, and not found out by the first client.
    """
    certificate, key = authority.issue("weak", key=rsa.generate_private_key(65537, 1024))
    assert reasonFor(certificate, key) == (
        f"--tls-certificate: '{certificate}' can't be used with --tls-private-key: '{key}': "
        "ee key too small"
    )


# Who is let in.


def test_clients(tmp_path: Path, authority: Authority, identity: Identity) -> None:
    """
    Those are let in that the authority has signed, and no others.
    """
    certificates = load(*identity, authority.certificate)
    stranger = Authority(tmp_path / "stranger", "a stranger")
    assert served(certificates, authority.client(authority.issue("client")))
    for context in authority.client(), authority.client(stranger.issue("stranger")):
        with pytest.raises(ssl.SSLError):
            served(certificates, context)


def test_intermediate(tmp_path: Path, authority: Authority, identity: Identity) -> None:
    """
    With an intermediate alone those are let in that it has signed, but not those that the root has
    signed, nor those of its sister.
    """
    between = Authority(tmp_path / "between", "an intermediate", authority)
    sister = Authority(tmp_path / "sister", "its sister", authority)
    certificates = load(*identity, between.certificate)
    assert served(certificates, authority.client(between.issue("client")))
    for issuer in authority, sister:
        with pytest.raises(ssl.SSLCertVerificationError):
            served(certificates, authority.client(issuer.issue("client")))


def test_clientWithChain(tmp_path: Path, authority: Authority, identity: Identity) -> None:
    """
    With the root those are let in that show the chain to it.
    """
    between = Authority(tmp_path / "between", "an intermediate", authority)
    certificates = load(*identity, authority.certificate)
    client = between.issue("client")
    with pytest.raises(ssl.SSLCertVerificationError):
        served(certificates, authority.client(client))
    client[0].write_bytes(client[0].read_bytes() + between.certificate.read_bytes())
    assert served(certificates, authority.client(client))


def test_severalAuthorities(tmp_path: Path, authority: Authority, identity: Identity) -> None:
    """
    There may be several, with text around them, and one of them twice.
    """
    others = [Authority(tmp_path / f"other{number}", f"other {number}") for number in range(2)]
    trusted = tmp_path / "trusted.pem"
    texts = [other.certificate.read_bytes() for other in (*others, others[0])]
    trusted.write_bytes("Größe\n".encode().join(texts))
    certificates = load(*identity, trusted)
    for other in others:
        assert served(certificates, authority.client(other.issue("client")))
    with pytest.raises(ssl.SSLCertVerificationError):
        served(certificates, authority.client(authority.issue("client")))


def test_noAuthority(tmp_path: Path, authority: Authority, identity: Identity) -> None:
    """
    A certificate in that file that is no authority's is refused, and it is said which one.
    """
    certificate, key = identity
    assert reasonFor(certificate, key, certificate) == (
        f"--tls-client-ca: '{certificate}': certificate 1 of 1 is not that of an authority, "
        "by its basicConstraints and keyUsage"
    )
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.certificate.read_bytes() + certificate.read_bytes())
    assert reasonFor(certificate, key, trusted) == (
        f"--tls-client-ca: '{trusted}': certificate 2 of 2 is not that of an authority, "
        "by its basicConstraints and keyUsage"
    )


def test_authorityThatMayNotSign(tmp_path: Path, authority: Authority, identity: Identity) -> None:
    """
    An authority whose keyUsage does not let it sign certificates is none, and is not said to have
    CA:FALSE, which it has not.
    """
    key = ecKey()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority that may not sign")])
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    usage = x509.KeyUsage(True, *[False] * 8)
    signed = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
    path = tmp_path / "mute.pem"
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    reason = reasonFor(*identity, path)
    assert "is not that of an authority, by its basicConstraints and keyUsage" in reason


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("kind", ["FIFO", "terminal", "/dev/null"])
def test_noRegularFile(
    tmp_path: Path, authority: Authority, identity: Identity, which: int, kind: str
) -> None:
    """
    A FIFO, a terminal and a device are refused: the event loop would wait for them, or read for
    ever.
    """
    files = [*identity, authority.certificate]
    controller, terminal = os.openpty()
    files[which] = tmp_path / "FIFO"
    if kind == "FIFO":
        os.mkfifo(files[which])
    else:
        files[which].symlink_to(os.ttyname(terminal) if kind == "terminal" else kind)
    option = ("--tls-certificate", "--tls-private-key", "--tls-client-ca")[which]
    before = timesOpen(files[which])
    assert reasonFor(*files) == f"{option}: '{files[which]}' is no regular file"
    assert timesOpen(files[which]) == before
    os.close(controller)
    os.close(terminal)


def test_noCertificateOfAuthority(tmp_path: Path, identity: Identity) -> None:
    """
    So is a file without a certificate.
    """
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    for path in empty, identity[1]:
        assert (
            reasonFor(*identity, path)
            == f"--tls-client-ca: '{path}' is no PEM file of a certificate"
        )


# Until when.


def warnings(certificate: Path, key: Path) -> tuple[Certificates, list[str]]:
    """
    Load files, and see what is logged.
    """
    with capturedLogs() as logs:
        certificates = load(certificate, key)
    assert all(event["log_level"] is LogLevel.warn for event in logs)
    return certificates, [event["log_format"].format(**event) for event in logs]


def test_expiry(authority: Authority) -> None:
    """
    The end of validity is known, to the second.
    """
    certificates, warned = warnings(*authority.issue("one", days=30))
    end = datetime.now(timezone.utc) + timedelta(days=30)
    assert 0 <= end.timestamp() - certificates.expiry < 20
    assert warned == []


@pytest.mark.parametrize(
    ("days", "begins", "what"),
    [
        (-1, None, "has expired: its validity ended at"),
        (30, 7, "is not valid yet: its validity begins at"),
    ],
)
def test_validity(authority: Authority, days: int, begins: int | None, what: str) -> None:
    """
    A certificate that has expired, or is not valid yet, is a warning with the date, and is shown.
    """
    certificate, key = authority.issue("one", days, begins=begins)
    certificates, (warned,) = warnings(certificate, key)
    found = re.fullmatch(
        f"--tls-certificate: {certificate} {what} ([-0-9]+T[:0-9]+\\+00:00)", warned
    )
    assert found
    date = datetime.now(timezone.utc) + timedelta(days=begins or days)
    assert abs(datetime.fromisoformat(found[1]) - date) < timedelta(seconds=20)
    context = authority.client()
    with pytest.raises(ssl.SSLCertVerificationError):
        served(certificates, context)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    assert served(certificates, context)


# Again.


def reloads(certificates: Certificates) -> list[str]:
    """
    Load the files again, and see what is logged.
    """
    with capturedLogs() as logs:
        certificates.reload()
    return [event["log_format"].format(**event) for event in logs]


def test_reload(authority: Authority, identity: Identity) -> None:
    """
    What is loaded again serves from then on, and has its own expiry.
    """
    certificates = load(*identity)
    first = served(certificates, authority.client()).getpeercert()
    expiry = certificates.expiry
    assert authority.issue("localhost", days=30) == identity
    assert served(certificates, authority.client()).getpeercert() == first
    assert reloads(certificates) == ["The certificates have been loaded again"]
    assert served(certificates, authority.client()).getpeercert() != first
    assert certificates.expiry < expiry


@pytest.mark.parametrize(
    "broken", [None, b"", b"nonsense", b"\xff\xfe", PARAMETERS, pem(ecKey()), pem(ecKey(), b"x")]
)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_brokenReload(
    tmp_path: Path, authority: Authority, identity: Identity, which: int, broken: bytes | None
) -> None:
    """
    As long as one of the files can't be used all stays as it was.
    """
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.certificate.read_bytes())
    files = (*identity, trusted)
    certificates = load(*files)
    before = certificates.context, certificates.expiry
    good = files[which].read_bytes()
    if broken is None:
        files[which].unlink()
    else:
        files[which].write_bytes(broken)
    (logged,) = reloads(certificates)
    option = ("--tls-certificate", "--tls-private-key", "--tls-client-ca")[which]
    assert logged.startswith(f"The certificates stay as they were: {option}: '{files[which]}' ")
    assert (certificates.context, certificates.expiry) == before
    client = authority.client(authority.issue("client"))
    assert served(certificates, client)
    files[which].write_bytes(good)
    assert reloads(certificates) == ["The certificates have been loaded again"]
    assert served(certificates, client)
