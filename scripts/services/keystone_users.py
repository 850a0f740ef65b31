#!/usr/bin/env python3
"""Makes in a new Keystone what Swift's tests need: a service, two projects of one user, somebody who may read all accounts, an application credential.

usage: keystone_users.py KEYSTONE_URL STORAGE_URL ENV_FILE
"""

import json
import sys
import time
import urllib.error
import urllib.request

api, storage, env_file = sys.argv[1:]
DOMAIN = {"id": "default"}


def call(method, path, body=None, token=None):
    """The headers and the document of an answer."""
    headers = {"Content-Type": "application/json", **({"X-Auth-Token": token} if token else {})}
    data = json.dumps(body).encode() if body else None
    for left in range(5, -1, -1):
        try:
            with urllib.request.urlopen(urllib.request.Request(api + path, data, headers, method=method)) as answer:
                text = answer.read()
                return answer.headers, json.loads(text) if text else None
        except urllib.error.HTTPError as error:  # Keystone on SQLite at times locks itself out of its database
            if error.code != 500 or not left:
                raise
            time.sleep(1)


def token_of(user, password, project):
    who = {"name": user, "domain": DOMAIN, "password": password}
    identity = {"methods": ["password"], "password": {"user": who}}
    scope = {"project": {"name": project, "domain": DOMAIN}}
    headers, document = call("POST", "/auth/tokens", {"auth": {"identity": identity, "scope": scope}})
    return headers["X-Subject-Token"], document["token"]["user"]["id"]


class Admin:
    """A token that is asked for again when it has expired, which may be soon."""

    def __init__(self):
        self.token = None

    def call(self, method, path, body=None):
        for is_last in (not self.token, True):
            if is_last:
                self.token, _ = token_of("admin", "secret", "admin")
            try:
                return call(method, path, body, self.token)
            except urllib.error.HTTPError as error:
                if error.code != 401 or is_last:
                    raise


admin = Admin()
roles = {role["name"]: role["id"] for role in admin.call("GET", "/roles")[1]["roles"]}


def make(kind, **what):
    return admin.call("POST", f"/{kind}s", {kind: what})[1][kind]["id"]


def grant(project, user, role):
    admin.call("PUT", f"/projects/{project}/users/{user}/roles/{roles[role]}")


service = make("project", name="service", domain_id="default")
test = make("project", name="test", domain_id="default")
grant(service, make("user", name="swift", password="swiftpass", domain_id="default"), "admin")
other = make("project", name="other", domain_id="default")
member = make("user", name="tester", password="testing", domain_id="default")
grant(test, member, "member")
grant(other, member, "member")
roles["ResellerAdmin"] = make("role", name="ResellerAdmin")
grant(service, make("user", name="operator", password="operating", domain_id="default"), "ResellerAdmin")
store = make("service", name="swift", type="object-store")
for interface in ("public", "internal", "admin"):
    make("endpoint", service_id=store, interface=interface, region="RegionOne", url=storage)

tester, user = token_of("tester", "testing", "test")
credential = {"application_credential": {"name": "cinderfs"}}
made = call("POST", f"/users/{user}/application_credentials", credential, tester)[1]["application_credential"]

with open(env_file, "w", encoding="ascii") as env:
    env.write(
        f"OS_AUTH_URL={api}\nOS_USERNAME=tester\nOS_PASSWORD=testing\nOS_PROJECT_NAME=test\n"
        "OS_USER_DOMAIN_NAME=Default\nOS_PROJECT_DOMAIN_NAME=Default\nOS_REGION_NAME=RegionOne\n"
        f"OTHER_STORAGE_URL={storage.replace('%(tenant_id)s', other)}\nOPERATOR_NAME=operator\nOPERATOR_PASSWORD=operating\n"
        f"APPLICATION_CREDENTIAL_ID={made['id']}\nAPPLICATION_CREDENTIAL_SECRET={made['secret']}\n"
    )
