"""The subresource token of ServiceAccounts: a token for whoever asks (`kubectl create token`).

Stands for pkg/registry/core/serviceaccount/storage/token.go (TokenREST) and pkg/apis/authentication/validation. Left
out: tokens that are bound to a Secret or a Node, and clients that want a pod's token and give its uid wrong.

What belongs here: what is asked for. What does not: the tokens themselves (`labs.cluster.certificates`).
"""

from __future__ import annotations

import datetime
from typing import Any

from labs.cluster.api import status
from labs.cluster.certificates import ISSUER, TokenIssuer
from labs.cluster.fielderrors import FieldError, Invalid, invalid
from labs.cluster.resources import Object
from labs.cluster.store import now

KIND, VERSION = "TokenRequest", "authentication.k8s.io/v1"
SECONDS = 3600
LEAST_SECONDS = 600
MOST_SECONDS = 1 << 32


def answer(account: Object, question: Any, tokens: TokenIssuer) -> Object:
    """The TokenRequest with its token. Raises ApiError 400 and 422."""
    if not isinstance(question, dict) or question.get("kind", KIND) != KIND:
        raise status.bad_request(f"the object provided is unrecognized (must be of type {KIND})")
    asked = question.get("spec") or {}
    if not isinstance(asked, dict):
        raise _wrong("spec", "v1.TokenRequestSpec")
    audiences, seconds = asked.get("audiences") or [ISSUER], asked.get("expirationSeconds")
    seconds = SECONDS if seconds is None else seconds
    if not isinstance(audiences, list) or not all(isinstance(one, str) for one in audiences):
        raise _wrong("spec.audiences", "[]string")
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        raise _wrong("spec.expirationSeconds", "int64")
    if mistake := _mistake(seconds):
        raise status.of_error(Invalid(KIND, "", [mistake], VERSION.partition("/")[0]))
    metadata = account["metadata"]
    bound = asked.get("boundObjectRef") or {}
    pod, uid = (str(bound.get(field) or "") for field in ("name", "uid")) if isinstance(bound, dict) else ("", "")
    token = tokens.issue(metadata["namespace"], metadata["name"], pod, uid, audiences=audiences, seconds=seconds)
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return {
        "kind": KIND,
        "apiVersion": VERSION,
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "creationTimestamp": now()},
        "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": asked.get("boundObjectRef")},
        "status": {"token": token, "expirationTimestamp": end.strftime("%Y-%m-%dT%H:%M:%SZ")},
    }


def _wrong(field: str, kind: str) -> status.ApiError:
    return status.bad_request(f"json: cannot unmarshal into Go struct field {KIND}.{field} of type {kind}")


def _mistake(seconds: int) -> FieldError | None:
    field = "spec.expirationSeconds"
    if seconds < LEAST_SECONDS:
        return invalid(field, seconds, "may not specify a duration less than 10 minutes")
    if seconds > MOST_SECONDS:
        return invalid(field, seconds, "may not specify a duration larger than 2^32 seconds")
    return None
