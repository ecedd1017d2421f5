"""The forward proxy leads names that do not exist to servers on loopback."""

from __future__ import annotations

import pytest
import requests

from tests.support.servers.ca import Ca
from tests.support.servers.client import push_image, session
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.forward_proxy import ForwardProxy, Proxied


def test_http(docker_registry: DockerRegistry) -> None:
    with ForwardProxy({"registry.test": docker_registry.host}) as proxy:
        http = session(proxies={"http": f"http://me:secret@{proxy.host}"})
        push_image(http, "http://registry.test/v2/forward", "latest", b"layer")
        asked = proxy.log[-1]
        assert asked.method == "PUT"
        assert asked.target == "http://registry.test/v2/forward/manifests/latest"
        assert asked.authorization is not None
        assert proxy.connections == 1
        assert http.get("http://elsewhere.test/v2/").status_code == 502


def test_https(docker_registry_tls: DockerRegistry, ca: Ca) -> None:
    with ForwardProxy({"registry.test": docker_registry_tls.host}) as proxy:
        http = session(proxies={"https": proxy.url}, verify=str(ca.cert))
        push_image(http, "https://registry.test/v2/forward", "latest", b"layer" * 1_000_000)
        assert proxy.log == [Proxied("CONNECT", "registry.test:443", None)]
        with pytest.raises(requests.exceptions.ProxyError):
            http.get("https://elsewhere.test/v2/")


def test_environment(docker_registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    with ForwardProxy({"registry.test": docker_registry.host}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert requests.get("http://registry.test/v2/").status_code == 200
        assert requests.get(f"{docker_registry.url}/v2/").status_code == 200
        assert len(proxy.log) == 1
