"""Starting a server and ending it: nothing listens beyond the machine, and nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.support import fake_server
from tests.support.imports import ROOT
from tests.support.nvml import FakeGpu, fake_nvml
from tests.support.processes import PATIENCE_S, gone, runs, written
from vlmeter.backends.endpoint import server
from vlmeter.backends.endpoint.cards import cards_of
from vlmeter.backends.endpoint.engine import Launch, Setup, cards_in, visible_cards
from vlmeter.backends.endpoint.engines import ENGINES, get_engine
from vlmeter.backends.endpoint.request import Address
from vlmeter.backends.endpoint.server import NotReady, Server, ServerEnded, reason_in, serving, start
from vlmeter.common.errors import UserError

PROGRAM = fake_server.__file__


def launch(*options: str, optional: tuple[str, ...] = ()) -> Callable[[int], Launch]:
    return lambda port: Launch((sys.executable, "-P", PROGRAM, "--port", str(port), *options), optional=optional)


def started(tmp_path: Path, *options: str, limit_s: float = 30.0, told: list[str] | None = None) -> Server:
    return start(
        launch(*options),
        ready_paths=("/ready", "/health"),
        log=tmp_path / "logs" / "server.log",
        limit_s=limit_s,
        tell=(told if told is not None else []).append,
        what="the toy",
    )


def test_a_server_is_ready_when_its_path_is_found_and_listens_on_loopback_alone(tmp_path: Path) -> None:
    with started(tmp_path) as running:
        assert running.is_running()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", running.url)
        assert running.processes() == [running.pid]
        assert running.listens_beyond() == []
        assert "loading" in running.log.read_text()
    assert gone(running.pid)
    assert not running.is_running()


def test_a_server_that_loads_slowly_is_waited_for_and_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TELL_S", 0.1)
    told: list[str] = []
    with started(tmp_path, "--load-s", "0.8", told=told) as running:
        assert running.loading_s > 0
    assert any(re.fullmatch(r"the toy is loading, for \d+ s now: loading", line) for line in told), told


def test_a_server_that_is_never_ready_is_given_up_and_ended(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"the toy was not ready within 1 s; its log is .*server\.log$") as caught:
        started(tmp_path, "--load-s", "600", "--child", str(tmp_path / "child"), limit_s=1.0)
    assert isinstance(caught.value, UserError)
    assert gone(int(written(tmp_path / "child")))


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerEnded, match=r"ended before it was ready: ValueError: no such model; its log is"):
        started(tmp_path, "--fail", "a line\nValueError: no such model\n")


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServerEnded, match="python: /no/such/python could not be started"):
        start(
            lambda port: Launch(("/no/such/python",)),
            ready_paths=("/health",),
            log=tmp_path / "log",
            limit_s=5,
            tell=print,
        )


def test_an_option_that_a_version_does_not_know_is_left_out_and_remembered(tmp_path: Path) -> None:
    with start(
        launch("--no-such-thing", optional=("--no-such-thing",)),
        ready_paths=("/health",),
        log=tmp_path / "log",
        limit_s=30,
        tell=print,
    ) as running:
        assert running.dropped == ("--no-such-thing",)
        assert "--no-such-thing" not in running.argv
    with pytest.raises(ServerEnded, match="unrecognized arguments: --other"):
        started(tmp_path, "--other")


def test_a_port_that_somebody_was_quicker_to_take_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = iter([other.getsockname()[1], server.free_port()])
        monkeypatch.setattr(server, "free_port", lambda: next(ports))
        with started(tmp_path) as running:
            assert not running.url.startswith(f"http://127.0.0.1:{other.getsockname()[1]}/")


def test_another_server_on_the_port_is_not_taken_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers, and it is somebody else's: ours is still loading on another."""
    with fake_server.FakeServer() as other:
        taken = int(other.url.rpartition(":")[2].removesuffix("/v1"))
        monkeypatch.setattr(server, "free_port", lambda: taken)
        elsewhere = lambda port: Launch((sys.executable, "-P", PROGRAM, "--port", str(_free()), "--load-s", "600"))  # noqa: E731
        with pytest.raises(ServerEnded, match="found each of 3 ports taken"):
            start(elsewhere, ready_paths=("/health",), log=tmp_path / "log", limit_s=30, tell=print, what="the toy")


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_what_listens_beyond_the_loopback_address_is_seen(tmp_path: Path) -> None:
    with started(tmp_path, "--host", "0.0.0.0") as running:
        assert running.listens_beyond() == [f"0.0.0.0:{running.url.rpartition(':')[2].removesuffix('/v1')}"]


def test_the_processes_of_a_server_that_others_started_are_found_by_its_port(tmp_path: Path) -> None:
    child = tmp_path / "child"
    with started(tmp_path, "--child", str(child)) as running:
        address = Address.parse(running.url)
        assert serving(address) == sorted([running.pid, int(written(child))])
        assert serving(replace(address, host="localhost")) == serving(address)
        assert serving(replace(address, host="192.0.2.1")) == [], "another machine's ports are not ours"
    assert serving(address) == []


def test_a_server_in_this_very_process_is_none_of_anothers() -> None:
    with fake_server.FakeServer() as fake:
        assert serving(Address.parse(fake.url)) == []


def test_the_cards_of_a_server_are_those_that_its_processes_compute_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [FakeGpu(uuid=f"GPU-{n}", compute_pids=pids) for n, pids in enumerate([(7,), (8, 9), ()])]
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(*gpus))
    assert cards_of([9, 7, 1]) == ["NVIDIA Fake 100", "NVIDIA Fake 100"]
    assert cards_of([1]) == cards_of([]) == []


def test_a_machine_without_nvml_has_no_cards_to_tell_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert cards_of([7]) == []


def test_ending_a_server_ends_its_children_wherever_they_went(tmp_path: Path) -> None:
    running = started(tmp_path, "--child", str(tmp_path / "child"))
    child = int(written(tmp_path / "child"))
    assert psutil.Process(child).is_running()
    assert os.getpgid(child) != os.getpgid(running.pid), "in a session of its own, and deaf to SIGTERM"
    running.stop()
    assert gone(running.pid, child)


def test_a_server_that_does_not_end_when_asked_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "GRACE_S", 0.2)
    running = started(tmp_path, "--stubborn")
    running.stop()
    assert gone(running.pid)


def test_a_server_that_is_killed_takes_its_children_along(tmp_path: Path) -> None:
    running = started(tmp_path, "--child", str(tmp_path / "child"))
    child = int(written(tmp_path / "child"))
    os.kill(running.pid, signal.SIGKILL)
    assert gone(running.pid, child)
    assert not running.is_running()
    running.stop()


def test_a_keeper_that_is_killed_takes_the_server_along(tmp_path: Path) -> None:
    running = started(tmp_path, "--child", str(tmp_path / "child"), "--near")
    child = int(written(tmp_path / "child"))
    os.kill(running._keeper.pid, signal.SIGKILL)
    assert gone(running.pid, child, running._guard)
    running.stop()


def test_a_server_does_not_outlive_its_keeper_even_without_a_guard(tmp_path: Path) -> None:
    running = started(tmp_path)
    os.kill(running._guard, signal.SIGKILL)
    assert gone(running._guard)
    os.kill(running._keeper.pid, signal.SIGKILL)
    assert gone(running.pid)
    running.stop()


def test_a_guard_that_is_killed_is_not_missed(tmp_path: Path) -> None:
    with started(tmp_path) as running:
        os.kill(running._guard, signal.SIGKILL)
        assert gone(running._guard)
        assert running.is_running()
    assert gone(running.pid)


SESSION = """
import sys, time
from pathlib import Path
from tests.test_endpoint_server import started

running = started(Path(sys.argv[1]), "--child", sys.argv[1] + "/child", *sys.argv[2:])
Path(sys.argv[1], "server").write_text(str(running.pid))
time.sleep(600)
"""


@pytest.mark.parametrize("options", [(), ("--stubborn",)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_session_that_is_killed_leaves_no_server(tmp_path: Path, number: int, options: tuple[str, ...]) -> None:
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION, str(tmp_path), *options], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    pids = [int(written(tmp_path / "server")), int(written(tmp_path / "child"))]
    assert all(runs(pid) for pid in pids)
    session.send_signal(number)
    session.wait(PATIENCE_S)
    assert gone(*pids)


def test_a_session_that_is_killed_while_its_server_loads_leaves_none(tmp_path: Path) -> None:
    session = subprocess.Popen([sys.executable, "-c", SESSION, str(tmp_path), "--load-s", "600"], cwd=ROOT)
    child = int(written(tmp_path / "child"))
    session.kill()
    session.wait(PATIENCE_S)
    assert gone(child)


# ------------------------------------------------------------------------------------------------------- engines


def setup(tmp_path: Path, **changes: object) -> Setup:
    for name in ("toy.gguf", "toy-mmproj.gguf"):
        (tmp_path / name).touch()
    return Setup(Path("/env/bin/python"), tmp_path, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_serves_one_port_of_the_loopback_address(name: str, tmp_path: Path) -> None:
    made = get_engine(name).launch(setup(tmp_path, options=("--max-model-len", "64")), 8123)
    assert made.argv[made.argv.index("--host") + 1] == "127.0.0.1"
    assert made.argv[made.argv.index("--port") + 1] == "8123"
    assert made.argv[-2:] == ("--max-model-len", "64"), "the study's own options come last"
    assert made.env["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("option", ["--host=0.0.0.0", "--host", "--port", "--api-key"])
def test_who_reaches_a_server_is_not_for_its_options_to_say(name: str, option: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"options: {option} is set by vlmeter"):
        get_engine(name).launch(setup(tmp_path, options=(option,)), 8123)


def test_caches_are_off_unless_they_are_asked_for(tmp_path: Path) -> None:
    off = {
        "vllm": ("--no-enable-prefix-caching", "--mm-processor-cache-gb"),
        "sglang": ("--disable-radix-cache", "--mm-preprocess-cache-size-mb"),
        "llama.cpp": ("--cache-ram",),
    }
    for name, options in off.items():
        made = get_engine(name).launch(setup(tmp_path), 1).argv
        assert set(options) <= set(made), name
        assert not set(options) & set(get_engine(name).launch(setup(tmp_path, caches=True), 1).argv), name
    assert get_engine("sglang").launch(setup(tmp_path), 1).env["SGLANG_VLM_CACHE_SIZE_MB"] == "0"


def test_the_way_into_vllm_is_open_only_for_marks(tmp_path: Path) -> None:
    engine = get_engine("vllm")
    assert "VLLM_SERVER_DEV_MODE" not in engine.launch(setup(tmp_path), 1).env
    assert "vlmeter_vllm_loopback.OnLoopback" in engine.launch(setup(tmp_path), 1).argv, "which has no method to call"
    made = engine.launch(setup(tmp_path, marks=True), 1)
    assert made.env["VLLM_SERVER_DEV_MODE"] == "1"
    module, _, name = made.argv[made.argv.index("--worker-extension-cls") + 1].rpartition(".")
    script = (
        f"import {module}, sys; {module}.{name}; print([n for n in sys.modules if n.startswith(('vlmeter.', 'torch'))])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-S", "-c", script], env=dict(made.env), capture_output=True, text=True, cwd="/"
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", ""), "without vlmeter, torch or any package installed"


@pytest.mark.parametrize("name", ["sglang", "transformers", "llama.cpp"])
def test_an_engine_without_a_way_in_says_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"engine: {name} has no way in for marks"):
        get_engine(name).launch(setup(tmp_path, marks=True), 1)


def test_made_up_weights_are_left_to_engines_that_make_them(tmp_path: Path) -> None:
    for name in ("vllm", "sglang"):
        assert "dummy" in get_engine(name).launch(setup(tmp_path, made_up_weights=True), 1).argv
    for name in ("transformers", "llama.cpp"):
        with pytest.raises(UserError, match="makes up no weights"):
            get_engine(name).launch(setup(tmp_path, made_up_weights=True), 1)


@pytest.mark.parametrize(
    ("name", "options", "cards"),
    [
        ("vllm", [], 1),
        ("vllm", ["--tensor-parallel-size", "2", "--max-model-len", "4096"], 2),
        ("vllm", ["-tp=2", "--pipeline-parallel-size=3"], 6),
        ("sglang", ["--tp", "4"], 4),
        ("transformers", ["--tp", "4"], 1),
    ],
)
def test_options_say_how_many_cards_a_server_takes(name: str, options: list[str], cards: int) -> None:
    assert cards_in(options, get_engine(name).card_options) == cards


@pytest.mark.parametrize("options", [["-tp", "two"], ["-tp"], ["-tp=0"]])
def test_a_number_of_cards_that_is_none_is_refused(options: list[str]) -> None:
    with pytest.raises(UserError, match="options: -tp wants a number of cards"):
        cards_in(options, get_engine("vllm").card_options)


def test_a_server_sees_the_cards_that_its_session_holds_and_no_others() -> None:
    assert visible_cards(None, {}) == {}
    assert visible_cards((1,), {}) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert visible_cards((0, 1), {"CUDA_VISIBLE_DEVICES": "3, 5,7"}) == {"CUDA_VISIBLE_DEVICES": "3,5"}


def test_an_engine_that_is_none_is_told_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"engine: 'tgi' is not known; legal: vllm, sglang, transformers, llama\.cpp$"):
        get_engine("tgi")


def test_the_reason_for_an_end_is_the_error_itself_and_not_the_one_that_points_to_it() -> None:
    """As vLLM's log ends on a processor with a block of 16 tokens."""
    worker = "RuntimeError: Worker failed with error 'No common block size for 16'"
    engine = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    assert reason_in(["loading", worker, engine, "UserWarning: leaked"]) == worker
    assert reason_in(["loading", engine]) == engine
    assert reason_in(["loading"]) == "loading"
