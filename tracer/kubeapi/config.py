"""How to reach a cluster's API: reading kubeconfig files, and the service account of a pod.

What belongs here: which file counts, what it says, certificates and tokens as bytes. What does not: talking to the API
(`tracer.kubeapi`). Follows k8s.io/client-go/tools/clientcmd, except that it runs nothing: the tracer is root, and a
kubeconfig may belong to someone else, so credential plugins (`exec`, `auth-provider`) are refused with a clear word.
"""

from __future__ import annotations

import base64
import binascii
import os
import pwd
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tracer.errors import FormatError, K8snetError, MissingError

LAB_KUBECONFIG = Path("/run/k8snet/k8snet/kubeconfig")
ADMIN_KUBECONFIG = Path("/etc/kubernetes/admin.conf")  # kubeadm's, on a control plane node
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LAB_ANSWERS_SECONDS = 0.3

HINT = "kubectl config view; or: k8snet-trace --kubeconfig FILE"


@dataclass(frozen=True, slots=True)
class Access:
    """All that is needed to reach one API server. Certificates and keys are PEM; absent things are None."""

    source: str  # where this was read, for messages
    server: str  # URL, perhaps with a path
    certificate_authority: bytes | None = None
    insecure: bool = False  # insecure-skip-tls-verify
    tls_server_name: str | None = None
    proxy_url: str | None = None
    client_certificate: bytes | None = None
    client_key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None  # read again now and then: it rotates
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def find(explicit: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Access:
    """The cluster that the user means: `explicit`, or $KUBECONFIG, or the first of the usual places that says how.

    The usual places: the miniature cluster if it is up, ~/.kube/config (then that of who called sudo),
    /etc/kubernetes/admin.conf, the service account of the pod that this runs in. A usual place that is of no use (no
    current context, a credential plugin) is passed over when a later one will do. Raises MissingError when there is
    none, FormatError for a file that is no kubeconfig.
    """
    if explicit is not None:
        return read([Path(explicit)])
    if environ.get("KUBECONFIG"):
        return read([Path(name) for name in environ["KUBECONFIG"].split(os.pathsep) if name])
    refusal: K8snetError | None = None
    for candidate in _usual_places(environ):
        try:
            return candidate if isinstance(candidate, Access) else read([candidate])
        except K8snetError as error:
            refusal = refusal or error
    raise refusal or MissingError("no kubeconfig was found", hint=HINT)


def read(paths: list[Path]) -> Access:
    """What these kubeconfig files say together: of two entries with one name the earlier counts, as for kubectl.

    Files that do not exist are passed over as long as one does. Raises MissingError or FormatError.
    """
    merged = _Merged()
    found = False
    for path in paths:
        document = _load(path)
        if document is not None:
            found = True
            merged.add(document, path)
    if not found:
        raise MissingError(f"there is no kubeconfig {os.pathsep.join(map(str, paths))}", hint=HINT)
    return merged.access()


def in_cluster(environ: Mapping[str, str] = os.environ, directory: Path = SERVICE_ACCOUNT) -> Access | None:
    """The API as a pod sees it, or None outside one (rest.InClusterConfig of client-go)."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    token = directory / "token"
    if not host or not port or not token.is_file():
        return None
    try:
        authority = (directory / "ca.crt").read_bytes()
    except OSError:
        authority = None
    host = f"[{host}]" if ":" in host else host
    source = f"the service account in {directory}"
    return Access(source, f"https://{host}:{port}", certificate_authority=authority, token_file=token)


def _usual_places(environ: Mapping[str, str]) -> Iterator[Path | Access]:
    """Where to look when nobody says, best first; only what exists."""
    if LAB_KUBECONFIG.is_file() and _answers(LAB_KUBECONFIG):
        yield LAB_KUBECONFIG
    for home in _homes(environ):
        if (home / ".kube/config").is_file():
            yield home / ".kube/config"
    if ADMIN_KUBECONFIG.is_file():
        yield ADMIN_KUBECONFIG
    access = in_cluster(environ)
    if access is not None:
        yield access


def _homes(environ: Mapping[str, str]) -> Iterator[Path]:
    """Our own home directory, and that of the user who called sudo."""
    if environ.get("HOME"):
        yield Path(environ["HOME"])
    if environ.get("SUDO_USER"):
        try:
            yield Path(pwd.getpwnam(environ["SUDO_USER"]).pw_dir)
        except KeyError:
            return


def _answers(path: Path) -> bool:
    """Whether something listens where a kubeconfig points: the file of a cluster that was killed stays behind."""
    try:
        url = urlsplit(read([path]).server)
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=LAB_ANSWERS_SECONDS):
            return True
    except (K8snetError, OSError, ValueError):
        return False


def _load(path: Path) -> Mapping[str, Any] | None:
    """The document in one file; None when there is no such file."""
    import yaml  # here, so that the start of the program does not pay for it

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"the kubeconfig {path} can't be read: {error}", hint=HINT) from error
    try:
        document = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise FormatError(f"the kubeconfig {path} is not YAML: {error}", hint=HINT) from error
    if not isinstance(document, Mapping):
        raise FormatError(f"the kubeconfig {path} holds no mapping", hint=HINT)
    return document


class _Merged:
    """Several kubeconfig files as one."""

    def __init__(self) -> None:
        self._sections: dict[str, dict[str, tuple[Mapping[str, Any], Path]]] = {
            "clusters": {},
            "users": {},
            "contexts": {},
        }
        self._current: str | None = None
        self._source = ""

    def add(self, document: Mapping[str, Any], path: Path) -> None:
        """Take over what earlier files did not say."""
        self._source = self._source or str(path)
        if self._current is None and document.get("current-context"):
            self._current = str(document["current-context"])
            self._source = str(path)
        for section, entries in self._sections.items():
            key = section.removesuffix("s")
            for entry in document.get(section) or []:
                if not isinstance(entry, Mapping) or not isinstance(entry.get(key) or {}, Mapping):
                    raise FormatError(f"the kubeconfig {path} has something else than a {key} in {section}", hint=HINT)
                entries.setdefault(str(entry.get("name")), (entry.get(key) or {}, path))

    def access(self) -> Access:
        """What the current context says."""
        if self._current is None:
            raise FormatError(f"the kubeconfig {self._source} sets no current context", hint=HINT)
        context, _ = self._entry("contexts", self._current)
        cluster, cluster_path = self._entry("clusters", str(context.get("cluster")))
        user: Mapping[str, Any] = {}
        user_path = cluster_path
        if context.get("user"):
            user, user_path = self._entry("users", str(context["user"]))
        self._refuse_unsafe(user, user_path)
        server = _string(cluster, "server")
        if server is None or urlsplit(server).scheme not in ("http", "https") or not urlsplit(server).hostname:
            raise FormatError(f"the kubeconfig {cluster_path} names no server for {self._current}", hint=HINT)
        token_file = _string(user, "tokenFile")
        return Access(
            source=self._source,
            server=server.rstrip("/"),
            certificate_authority=_pem(cluster, "certificate-authority", cluster_path),
            insecure=cluster.get("insecure-skip-tls-verify") is True,
            tls_server_name=_string(cluster, "tls-server-name"),
            proxy_url=_string(cluster, "proxy-url"),
            client_certificate=_pem(user, "client-certificate", user_path),
            client_key=_pem(user, "client-key", user_path),
            token=_string(user, "token"),
            token_file=user_path.parent / token_file if token_file else None,
            username=_string(user, "username"),
            password=_string(user, "password"),
        )

    def _entry(self, section: str, name: str) -> tuple[Mapping[str, Any], Path]:
        """A named entry and the file that it is from."""
        try:
            return self._sections[section][name]
        except KeyError:
            raise FormatError(f"the kubeconfig {self._source} has no {name!r} in {section}", hint=HINT) from None

    def _refuse_unsafe(self, user: Mapping[str, Any], path: Path) -> None:
        """Refuse credential plugins, which are programs, and impersonation: to leave it out would give more rights."""
        for key in ("exec", "auth-provider", "as"):
            if user.get(key):
                raise MissingError(
                    f"the kubeconfig {path} wants {key!r} for its user, which k8snet-trace does not do",
                    hint="kubectl create token ACCOUNT gives a token for a kubeconfig of its own",
                )


def _string(mapping: Mapping[str, Any], key: str) -> str | None:
    """A value that must be text; None when it is absent or empty."""
    value = mapping.get(key)
    return str(value) if value else None


def _pem(mapping: Mapping[str, Any], key: str, path: Path) -> bytes | None:
    """A certificate or key: the base64 text of KEY-data, which wins, or the file KEY, relative to the kubeconfig."""
    data = _string(mapping, f"{key}-data")
    if data is not None:
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise FormatError(f"the kubeconfig {path} holds a {key}-data that is not base64", hint=HINT) from error
    name = _string(mapping, key)
    if name is None:
        return None
    try:
        return (path.parent / name).read_bytes()
    except OSError as error:
        raise FormatError(f"the {key} of the kubeconfig {path} can't be read: {error}", hint=HINT) from error
