"""Hooks of schemathesis: names of existing resources, and the errors that count as faults.

Read by tools/fuzz-api; API_FUZZ_KNOWN is a JSON object of what was made before.
"""

import json
import os
import zlib

import schemathesis

KNOWN = json.loads(os.environ.get("API_FUZZ_KNOWN", "{}"))
# Errors that are faults of the daemon for any request.
FAULTS = {"internal", "unknown", "volume_failed"}


def often(value):
    """Whether a value is replaced: always the same for the same value, so that a seed repeats a run."""
    return zlib.crc32(repr(value).encode()) % 3 != 0


def known(fields, method):
    """Puts what is there in the place of what was made up."""
    if not isinstance(fields, dict):
        return fields
    for name, value in fields.items():
        if name in KNOWN and isinstance(value, str) and often(value) and method != "DELETE":
            fields[name] = KNOWN[name]
        elif name == "waitMs" and isinstance(value, int):
            # A long poll is as right as a short one.
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
    """Every error is a code, a line and maybe a hint."""
    if response.status_code < 400 or case.method.upper() == "HEAD":
        return
    error = response.json()["error"]
    assert set(error) == {"code", "message", "hint"}, error
    assert "\n" not in error["message"] and error["message"], error
