"""What may be a name, a label, a port name: the rules, and what the API says of who breaks them.

Stands for k8s.io/apimachinery/pkg/util/validation.
"""

from __future__ import annotations

import re

_DNS1123_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS1123_SUBDOMAIN = _DNS1123_LABEL + r"(\." + _DNS1123_LABEL + ")*"
_DNS1035_LABEL = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE = f"({_QUALIFIED})?"
_CONFIG_KEY = r"[-._a-zA-Z0-9]+"
_ENVIRONMENT = r"[-._a-zA-Z][-._a-zA-Z0-9]*"


def _broken(message: str, pattern: str, *examples: str) -> str:
    """The sentence about a pattern that was not met (validation.RegexError)."""
    told = " or ".join(f"'{example}', " for example in examples)
    return f"{message} (e.g. {told}regex used for validation is '{pattern}')"


def _check(text: str, limit: int, pattern: str, complaint: str) -> list[str]:
    found = [] if len(text) <= limit else [f"must be no more than {limit} characters"]
    return found if re.fullmatch(pattern, text) else [*found, complaint]


def dns1123_label(text: str) -> list[str]:
    """What is wrong with it as an RFC 1123 label (namespaces, containers)."""
    words = (
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
        "and must start and end with an alphanumeric character"
    )
    return _check(text, 63, _DNS1123_LABEL, _broken(words, _DNS1123_LABEL, "my-name", "123-abc"))


def dns1123_subdomain(text: str) -> list[str]:
    """What is wrong with it as an RFC 1123 subdomain (most names)."""
    words = (
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
        "and must start and end with an alphanumeric character"
    )
    return _check(text, 253, _DNS1123_SUBDOMAIN, _broken(words, _DNS1123_SUBDOMAIN, "example.com"))


def dns1035_label(text: str) -> list[str]:
    """What is wrong with it as an RFC 1035 label (Services)."""
    words = (
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', "
        "start with an alphabetic character, and end with an alphanumeric character"
    )
    return _check(text, 63, _DNS1035_LABEL, _broken(words, _DNS1035_LABEL, "my-name", "abc-123"))


def label_value(text: str) -> list[str]:
    """What is wrong with the value of a label."""
    words = (
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', "
        "and must start and end with an alphanumeric character"
    )
    return _check(text, 63, _LABEL_VALUE, _broken(words, _LABEL_VALUE, "MyValue", "my_value", "12345"))


def qualified_name(text: str) -> list[str]:
    """What is wrong with the key of a label or an annotation: [PREFIX/]NAME."""
    words = (
        "must consist of alphanumeric characters, '-', '_' or '.', "
        "and must start and end with an alphanumeric character"
    )
    complaint = _broken(words, _QUALIFIED, "MyName", "my.name", "123-abc")
    prefix, slash, name = text.rpartition("/")
    if "/" in prefix:
        return [
            f"a qualified name {complaint} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        ]
    found = []
    if slash and not prefix:
        found.append("prefix part must be non-empty")
    elif slash:
        found += [f"prefix part {text}" for text in dns1123_subdomain(prefix)]
    if not name:
        found.append("name part must be non-empty")
    return found + [f"name part {text}" for text in _check(name, 63, _QUALIFIED, complaint)]


def port_name(text: str) -> list[str]:
    """What is wrong with the name of a container's port (RFC 6335)."""
    found = [] if len(text) <= 15 else ["must be no more than 15 characters"]
    if not re.fullmatch(r"[-a-z0-9]+", text):
        found.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search(r"[a-z]", text):
        found.append("must contain at least one letter (a-z)")
    if "--" in text:
        found.append("must not contain consecutive hyphens")
    if text[:1] == "-" or text[-1:] == "-":
        found.append("must not begin or end with a hyphen")
    return found


def port_number(number: int) -> list[str]:
    """What is wrong with it as a port."""
    return [] if 1 <= number <= 65535 else ["must be between 1 and 65535, inclusive"]


def config_key(text: str) -> list[str]:
    """What is wrong with the key of a ConfigMap or Secret."""
    words = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'"
    complaint = _broken(words, _CONFIG_KEY, "key.name", "KEY_NAME", "key-name")
    found = _check(text, 253, _CONFIG_KEY, complaint)
    return [*found, f"must not be '{text}'"] if text in (".", "..") else found


def environment_name(text: str) -> list[str]:
    """What is wrong with the name of an environment variable."""
    words = (
        "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', "
        "and must not start with a digit"
    )
    complaint = _broken(words, _ENVIRONMENT, "my.env-name", "MY_ENV.NAME", "MyEnvName1")
    return [] if re.fullmatch(_ENVIRONMENT, text) else [complaint]
