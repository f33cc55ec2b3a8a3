"""Sessions on the Zenoh wire: who is the router, configuration files, and the ways in which processes end."""

import json
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

pytest.importorskip("zenoh", reason="the extra `zenoh` is not installed")
from wire_peer import SET_BOOL, STRING, Peer, environment, until

from semfield_ros.errors import WireError
from semfield_ros.wire.bus import LATCHED, QoS, ServiceUnavailable
from semfield_ros.wire.zenoh_bus import ZenohBus
from semfield_ros.wire.zenoh_session import configuration

REQUEST, RESPONSE = f"{SET_BOOL}_Request", f"{SET_BOOL}_Response"


@pytest.fixture(scope="module")
def bus():
    bus = ZenohBus("semfield", mode="test", domain=0)
    yield bus
    bus.close()


@pytest.fixture
def topic(request):
    """A name of the test's own."""
    return "/" + request.node.name


@pytest.fixture
def free_endpoint():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp/127.0.0.1:{probe.getsockname()[1]}"


def text(bus, data):
    return bus.new(STRING, data=data)


def test_a_second_embedded_bus_joins_the_first(topic, free_endpoint):
    first = ZenohBus("first", mode="embedded", endpoint=free_endpoint, domain=0)
    second = ZenohBus("second", mode="embedded", endpoint=free_endpoint, domain=0)
    heard = []
    second.subscribe(STRING, topic, lambda m: heard.append(m.data), QoS())
    publisher = first.publisher(STRING, topic)
    until(lambda: publisher.subscribers)
    publisher.publish(text(first, "x"))
    until(lambda: heard)
    assert first.connected and second.connected
    first.close()
    until(lambda: not second.connected)
    second.close()


def test_a_router_that_dies_and_comes_back(topic):
    """Topics, latched topics and services work again, without a word said to either side."""
    router = Peer("--mode", "test", "--name", "router")
    peer = Peer("--endpoint", router.endpoint)
    bus = ZenohBus("survivor", mode="join", endpoint=router.endpoint, domain=0)
    heard = []
    bus.subscribe(STRING, topic, lambda m: heard.append(m.data), QoS())
    peer.do("advertise", topic=topic)
    peer.do("serve", name=f"{topic}/set")
    client = bus.client(SET_BOOL, f"{topic}/set")
    peer.do("matched", topic=topic)
    router.kill()
    until(lambda: not bus.connected)

    router = Peer("--mode", "embedded", "--name", "router", "--endpoint", router.endpoint)
    until(lambda: bus.connected and peer.do("connected"), timeout_s=20)
    until(lambda: {"/peer", "/router"} <= set(bus.graph().nodes))
    peer.do("matched", topic=topic)
    peer.do("publish", topic=topic, texts=["again"])
    until(lambda: heard)
    assert client.wait(10) and client.call(bus.new(REQUEST)).success
    router.do("listen", topic=topic)
    peer.do("matched", topic=topic, exactly=2)
    peer.do("publish", topic=topic, texts=["to the router"])
    assert router.do("received", topic=topic, count=1) == ["to the router"]
    bus.close()
    assert peer.close() == 0 and router.close() == 0


def test_joining_before_there_is_a_router(topic, free_endpoint):
    bus = ZenohBus("early", mode="join", endpoint=free_endpoint, domain=0)
    assert not bus.connected
    heard = []
    bus.subscribe(STRING, topic, lambda m: heard.append(m.data), QoS())
    router = Peer("--mode", "embedded", "--endpoint", free_endpoint)
    router.do("advertise", topic=topic)
    router.do("matched", topic=topic)
    router.do("publish", topic=topic, texts=["x"])
    until(lambda: heard)
    assert bus.connected
    bus.close()
    assert router.close() == 0


def test_ours_only_fills_what_a_configuration_file_leaves_out(tmp_path):
    def value(config, key):
        return json.loads(config.get_json(key))

    wait = "transport/link/tx/queue/congestion_control/drop/wait_before_drop"
    ours = configuration("router", "tcp/127.0.0.1:1", None)
    assert value(ours, "mode") == "router" and value(ours, "listen/endpoints") == ["tcp/127.0.0.1:1"]
    assert value(ours, "connect/endpoints") == [] and value(ours, wait) == 50_000
    assert value(ours, "scouting/multicast/enabled") is False
    peer = configuration("peer", "tcp/127.0.0.1:1", None)
    assert value(peer, "listen/endpoints") == ["tcp/127.0.0.1:0"], "only this machine can come in"
    assert value(peer, "connect/endpoints") == ["tcp/127.0.0.1:1"]

    path = tmp_path / "zenoh.json5"
    path.write_text(
        "{ mode: 'client', listen: { endpoints: ['tcp/0.0.0.0:9'] }, scouting: { multicast: { enabled: true } },"
        " transport: { link: { tx: { queue: { congestion_control: { drop: { wait_before_drop: 7 } } } } } } }"
    )
    both = configuration("peer", "tcp/127.0.0.1:1", path)
    assert value(both, "mode") == "client" and value(both, "listen/endpoints") == ["tcp/0.0.0.0:9"]
    assert value(both, "scouting/multicast/enabled") is True and value(both, wait) == 7
    assert value(both, "connect/endpoints") == ["tcp/127.0.0.1:1"]


def test_a_configuration_file_stands(tmp_path, topic):
    """Its access control applies; what it leaves out is filled in, so the bus still works and stays on this machine."""
    path = tmp_path / "zenoh.json5"
    rule = {
        "id": "secret", "permission": "deny", "flows": ["ingress", "egress"], "key_exprs": ["0/secret/**"],
        "messages": ["put", "declare_subscriber", "delete"],
    }  # fmt: skip
    control = {
        "enabled": True, "default_permission": "allow", "rules": [rule], "subjects": [{"id": "all"}],
        "policies": [{"rules": ["secret"], "subjects": ["all"]}],
    }  # fmt: skip
    path.write_text("// a comment\n" + json.dumps({"access_control": control}))
    bus = ZenohBus("guarded", mode="test", config_file=path, domain=0)
    assert bus.endpoint.startswith("tcp/127.0.0.1:")
    peer = Peer("--endpoint", bus.endpoint)
    secret, public = [], []
    bus.subscribe(STRING, "/secret/a", secret.append, QoS())
    bus.subscribe(STRING, topic, public.append, QoS())
    for name in ("/secret/a", topic):
        peer.do("advertise", topic=name)
        peer.do("matched", topic=name)
        peer.do("publish", topic=name, texts=["x"])
    until(lambda: public)
    assert secret == []
    bus.close()
    assert peer.close() == 0

    path.write_text("{ mode: ")
    with pytest.raises(WireError, match="no Zenoh configuration"):
        ZenohBus("guarded", mode="test", config_file=path)


def test_closing_is_safe(bus, topic):
    """Twice, from a callback of its own, with callers waiting; afterwards nothing works and nothing breaks."""
    node = ZenohBus("short", mode="join", endpoint=bus.endpoint, domain=0)
    entered = threading.Event()

    def closes(message):
        entered.set()
        node.close()

    node.subscribe(STRING, topic, closes, QoS())
    node.serve(SET_BOOL, f"{topic}/set", lambda r: time.sleep(0.5) or bus.new(RESPONSE, success=True))
    publisher, client = node.publisher(STRING, topic), bus.client(SET_BOOL, f"{topic}/set")
    own = node.client(SET_BOOL, f"{topic}/set")
    assert client.wait(10)
    answers = []
    caller = threading.Thread(target=lambda: answers.append(client.call(bus.new(REQUEST)).success))
    caller.start()
    until(lambda: node._pool._running)
    publisher.publish(text(node, "x"))
    until(entered.is_set)
    caller.join(10)
    assert answers == [True]
    until(lambda: not node.connected)
    node.close()
    publisher.publish(text(node, "y"))
    with pytest.raises(ServiceUnavailable, match="closed"):
        own.call(bus.new(REQUEST))
    with pytest.raises(WireError, match="closed"):
        node.publisher(STRING, topic)
    until(lambda: "/short" not in bus.graph().nodes)


def test_abandoned_buses_do_not_abort_the_process(bus, topic):
    peer = Peer("--endpoint", bus.endpoint, "--name", "careless", "--abandon")
    peer.do("advertise", topic=topic)
    peer.do("serve", name=topic)
    peer.do("listen", topic=f"{topic}/in")
    publisher = bus.publisher(STRING, f"{topic}/in")
    until(lambda: publisher.subscribers)
    stop = threading.Event()

    def flood():
        while not stop.is_set():
            publisher.publish(text(bus, "x" * 1000))

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        assert peer.close() == 0
    finally:
        stop.set()
        flooding.join()


def test_an_exception_in_main_does_not_abort_the_process():
    code = """
        from semfield_ros.wire.zenoh_bus import ZenohBus
        bus = ZenohBus("raises", mode="test")
        bus.timer(0.001, lambda: bus.graph())
        raise SystemExit(3)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment(), timeout=30)
    assert done.returncode == 3


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
def test_a_configuration_file_encrypts(tmp_path, topic, free_endpoint):
    """TLS both ways; who does not trust the router's certificate stays outside."""
    endpoint = free_endpoint.replace("tcp/127.0.0.1", "tls/localhost")
    server, client, stranger = (tmp_path / f"{name}.json5" for name in ("server", "client", "stranger"))
    pairs = [_certificate(tmp_path, name) for name in ("router", "other")]
    (key, certificate), (_, other) = pairs
    _write_tls(server, {"listen_private_key": str(key), "listen_certificate": str(certificate)})
    _write_tls(client, {"root_ca_certificate": str(certificate)})
    _write_tls(stranger, {"root_ca_certificate": str(other)})

    bus = ZenohBus("guarded", mode="embedded", endpoint=endpoint, config_file=server, domain=0)
    outside = ZenohBus("stranger", mode="join", endpoint=endpoint, config_file=stranger, domain=0)
    peer = Peer("--endpoint", endpoint, "--config", str(client))
    heard = []
    bus.subscribe(STRING, topic, lambda m: heard.append(m.data), QoS())
    peer.do("advertise", topic=topic)
    peer.do("matched", topic=topic)
    peer.do("publish", topic=topic, texts=["secret"])
    until(lambda: heard)
    assert not outside.connected and outside.graph().nodes == ("/stranger",)
    outside.close()
    bus.close()
    assert peer.close() == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
def test_only_who_has_the_right_certificate_is_let_in(tmp_path, topic, free_endpoint):
    """As in docs/robot.md: both sides show certificates of one authority, and access goes by the name in them."""
    endpoint = free_endpoint.replace("tcp/127.0.0.1", "tls/localhost")
    authority = _certificate(tmp_path, "authority", authority=True)
    files = {}
    for name in ("workstation", "robot", "visitor"):
        key, certificate = _certificate(tmp_path, name, signed_by=authority)
        side = "listen" if name == "workstation" else "connect"
        tls = {f"{side}_private_key": str(key), f"{side}_certificate": str(certificate), "enable_mtls": True}
        files[name] = tmp_path / f"{name}.json5"
        _write_tls(files[name], {"root_ca_certificate": str(authority[1]), **tls})
    everything = ["put", "delete", "declare_subscriber", "query", "reply", "declare_queryable", "liveliness_token",
                  "liveliness_query", "declare_liveliness_subscriber"]  # fmt: skip
    rule = {"id": "all", "permission": "allow", "flows": ["ingress", "egress"], "messages": everything,
            "key_exprs": ["**", "@ros2_lv/**", "**/@adv/**"]}  # fmt: skip
    control = {
        "enabled": True, "default_permission": "deny", "rules": [rule],
        "subjects": [{"id": "robot", "cert_common_names": ["robot"]}],
        "policies": [{"rules": ["all"], "subjects": ["robot"]}],
    }  # fmt: skip
    for name, more in (
        ("workstation", {"access_control": control}),
        # Processes of one machine would else meet without the router.
        ("robot", {"listen": {"endpoints": []}}), ("visitor", {"listen": {"endpoints": []}}),
    ):  # fmt: skip
        files[name].write_text(json.dumps({**json.loads(files[name].read_text()), **more}))

    bus = ZenohBus("guarded", mode="embedded", endpoint=endpoint, config_file=files["workstation"], domain=0)
    visitor = ZenohBus("visitor", mode="join", endpoint=endpoint, config_file=files["visitor"], domain=0)
    robot = Peer("--endpoint", endpoint, "--config", str(files["robot"]), "--name", "robot")
    until(lambda: visitor.connected, 30.0)  # of the same authority, but of no policy
    served = bus.serve(SET_BOOL, topic, lambda request: bus.new(RESPONSE, success=request.data))
    bus.publisher(STRING, f"{topic}/latched", LATCHED).publish(text(bus, "last"))
    robot.do("listen", topic=f"{topic}/latched", transient_local=True)
    assert robot.do("received", topic=f"{topic}/latched", count=1) == ["last"]
    heard = []
    bus.subscribe(STRING, f"{topic}/in", lambda m: heard.append(m.data), QoS())
    robot.do("advertise", topic=f"{topic}/in")
    robot.do("matched", topic=f"{topic}/in")
    robot.do("publish", topic=f"{topic}/in", texts=["secret"])
    until(lambda: heard)
    assert robot.do("call", name=topic, data=True)[0] is True
    assert visitor.graph().nodes == ("/visitor",)
    with pytest.raises(ServiceUnavailable):
        visitor.client(SET_BOOL, topic).call(visitor.new(REQUEST))
    served.close()
    visitor.close()
    assert robot.close() == 0
    bus.close()


def _certificate(folder, name, *, signed_by=None, authority=False):
    """Paths of a key and its certificate, made out to this machine."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    issuer = [] if signed_by is None else ["-CAkey", signed_by[0], "-CA", signed_by[1]]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=" + ("localhost" if signed_by is None else name),
         "-addext", "subjectAltName=DNS:localhost", "-addext", f"basicConstraints=critical,CA:{str(authority).upper()}",
         *issuer],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


def _write_tls(path, keys):
    path.write_text(json.dumps({"transport": {"link": {"tls": keys}}}))
