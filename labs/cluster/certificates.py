"""The cluster's keys and certificates: an authority, the API server's certificate, clients' certificates,
service-account tokens.

Stands for `kubeadm init phase certs`, and for the token controller. Everything is made anew for each cluster and lives
in memory; only the administrator's certificate leaves it, inside the kubeconfig. Left out: rotation, a separate
front-proxy authority, and asymmetric token signatures (tokens are HS256 JWTs, which only this API server needs to
check).
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = datetime.timedelta(days=365)
EXTENDED = 3607  # seconds: WarnOnlyBoundTokenExpirationPeriod (pkg/serviceaccount/claims.go)
ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """A certificate authority, fresh."""

    def __init__(self, name: str = "kubernetes") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            **dict.fromkeys(
                (
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            ),
        )
        certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM)

    def server(self, name: str, hosts: Iterable[str]) -> KeyPair:
        """A server's certificate for all of `hosts`, names and addresses."""
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        return self._issue(_name(name), ExtendedKeyUsageOID.SERVER_AUTH, names)

    def client(self, user: str, group: str) -> KeyPair:
        """A client's certificate: the common name is the user, the organization the group."""
        return self._issue(_name(user, group), ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self, subject: x509.Name, usage: x509.ObjectIdentifier, names: x509.SubjectAlternativeName | None = None
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            _builder(subject, self._name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(identifier, critical=False)
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return KeyPair(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


def server_context(authority: Authority, server: KeyPair) -> ssl.SSLContext:
    """TLS for the API server: clients may show a certificate, and one that is shown must be ours.

    A client without one must bring a token instead, or is turned away: see `labs.cluster.api.auth`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=authority.certificate.decode())
    # The ssl module loads keys from files only: an anonymous one in memory.
    fd = os.memfd_create("apiserver.pem", os.MFD_CLOEXEC)
    try:
        os.write(fd, server.certificate + server.key)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


class TokenIssuer:
    """Issues service-account tokens, and recognizes them."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def issue(
        self,
        namespace: str,
        account: str,
        pod: str = "",
        pod_uid: str = "",
        *,
        audiences: Sequence[str] = (ISSUER,),
        seconds: int = EXTENDED,
    ) -> str:
        """A JWT (RFC 7519) for a service account, valid for so many seconds. `pod`: to which it is bound, if any.

        The lifetime that every pod's own token asks for is extended, as the real API server does.
        """
        now = int(time.time())
        lifetime = int(VALIDITY.total_seconds()) if seconds == EXTENDED else seconds
        claims = {
            "aud": list(audiences),
            "exp": now + lifetime,
            "iat": now,
            "iss": ISSUER,
            "kubernetes.io": {
                "namespace": namespace,
                **({"pod": {"name": pod, "uid": pod_uid}} if pod else {}),
                "serviceaccount": {"name": account},
            },
            "nbf": now,
            "sub": f"system:serviceaccount:{namespace}:{account}",
        }
        body = f"{_segment({'alg': 'HS256', 'typ': 'JWT'})}.{_segment(claims)}"
        return f"{body}.{self._sign(body)}"

    def user(self, token: str) -> str | None:
        """The user that a token speaks for, or None when it is none of ours, for somebody else, or old."""
        body, _, signature = token.rpartition(".")
        try:
            genuine = hmac.compare_digest(self._sign(body), signature)
        except (TypeError, UnicodeEncodeError):  # not even ASCII
            return None
        if not genuine:
            return None
        text = body.partition(".")[2]
        claims = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if ISSUER not in claims["aud"] or claims["exp"] < time.time():
            return None
        return str(claims["sub"])

    def _sign(self, body: str) -> str:
        return _base64url(hmac.digest(self._secret, body.encode(), hashlib.sha256))


def _segment(value: object) -> str:
    return _base64url(json.dumps(value, separators=(",", ":")).encode())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + VALIDITY)
    )


def _name(common: str, organization: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)] if organization else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
