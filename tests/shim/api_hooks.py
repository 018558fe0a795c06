"""Hooks of schemathesis: names of existing resources, and the errors that count as faults.

Used by tools/fuzz-api; API_FUZZ_KNOWN is a JSON object with the names of existing resources.
"""

import json
import os
import zlib

import schemathesis

KNOWN = json.loads(os.environ.get("API_FUZZ_KNOWN", "{}"))
# Errors that are faults of the daemon for any request.
FAULTS = {"internal", "unknown", "volume_failed"}


def often(value):
    """Selects two thirds of the values, by their hash, so that a seed repeats a run."""
    return zlib.crc32(repr(value).encode()) % 3 != 0


def known(fields, method):
    """Replaces generated values by names of existing resources."""
    if not isinstance(fields, dict):
        return fields
    for name, value in fields.items():
        if name in KNOWN and isinstance(value, str) and often(value) and method != "DELETE":
            fields[name] = KNOWN[name]
        elif name == "waitMillis" and isinstance(value, int):
            # Long polls would slow the run down.
            fields[name] = value % 20
        elif isinstance(value, dict):
            known(value, method)
    return fields


@schemathesis.hook
def before_call(context, case, kwargs):
    method = case.method.upper()
    known(case.path_parameters, method)
    known(case.query, method)
    if not isinstance(case.body, dict):
        return
    known(case.body, method)
    provider = case.body.get("provider")
    if isinstance(provider, dict) and provider.get("type") == "local" and "path" in provider and often(provider["path"]):
        provider["path"] = KNOWN["directory"]


@schemathesis.check
def no_fault(context, response, case):
    """Checks that no request causes an internal error."""
    if response.status_code < 500:
        return
    error = response.json().get("error", {})
    assert error.get("code") not in FAULTS, f"{response.status_code} {error}"


@schemathesis.check
def one_shape(context, response, case):
    """Checks that every error has a code, a message of one line, and a hint or null."""
    if response.status_code < 400 or case.method.upper() == "HEAD":
        return
    error = response.json()["error"]
    assert set(error) == {"code", "message", "hint"}, error
    assert "\n" not in error["message"] and error["message"], error
