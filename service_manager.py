"""Start, watch, change and stop the model server and its web workers.

    python service_manager.py --workers 3 --port 5000
    python service_manager.py status | logs | restart | scale | swap | stop | doctor | keys

The first runs until Ctrl-C, which stops every process. The others reach it over a local channel that only its
user can use.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "src"))

import psutil  # noqa: E402
from loguru import logger  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from embeddingClient import EmbeddingClient  # noqa: E402
from embedshare import logs, platforms  # noqa: E402
from embedshare.errors import EmbedshareError, SupervisorError, SupervisorUnavailable, missing_database  # noqa: E402
from embedshare.ipc import authkey, control  # noqa: E402
from embedshare.jobs import place  # noqa: E402
from embedshare.operate import cache, doctor, following, jobs, keys, models, probes, status, tail  # noqa: E402
from embedshare.operate.autoscaler import Autoscaler  # noqa: E402
from embedshare.operate.processes import MODEL_SERVER, Place, Services  # noqa: E402
from embedshare.settings import Settings  # noqa: E402
from embedshare.settings_store.current import CurrentSettings  # noqa: E402
from embedshare.supervise import rotation  # noqa: E402
from embedshare.supervise.scaling import Scaling  # noqa: E402
from embedshare.supervise.supervisor import Supervisor, Watched  # noqa: E402

if TYPE_CHECKING:
    from embedshare.settings_store.sync import SettingsSync

#: The first worker's default port.
FIRST_PORT = 5000
#: Seconds between two lines on a command's progress.
SAY_EVERY_S = 2.0
#: Seconds without a word from the supervisor after which a command gives up.
SILENCE_S = 30.0
#: Seconds over which `models list` counts calls.
RATE_S = 1.0
#: Seconds that a swap of the model may take, loading and converting included.
SWAP_S = 1800.0


def main(arguments: list[str] | None = None) -> int:
    """Carry out one command; 0 on success, 1 with one line on what is wrong."""
    options = _parser().parse_args(_with_command(sys.argv[1:] if arguments is None else arguments))
    logs.begin("service-manager", prints=True)
    try:
        settings = Settings.load()
        logs.configure(_log_settings(settings, options.run is start), "service-manager", prints=True)
        return int(options.run(options, settings) or 0)
    except EmbedshareError as error:
        if getattr(options, "json", False):
            _print_json({"error": error.message, "type": type(error).__name__})
        else:
            logger.error("{}", error.message)
        return 1
    except KeyboardInterrupt:
        return 130


def _log_settings(settings: Settings, starts: bool) -> Settings:
    """The settings for a command's log: its answer is its only output, unless it starts the services."""
    if starts or settings.operation.log_level != "info":
        return settings
    return dataclasses.replace(
        settings, operation=dataclasses.replace(settings.operation, log_level="warning")
    )


def start(options: argparse.Namespace, settings: Settings) -> None:
    """Run until a stop signal or the command `stop`."""
    least, most = options.workers
    where = _Where(settings, options.port)
    services = Services(
        settings,
        where.now(),
        _source_folder(options.src_dir),
        lambda: _why_no_answer(settings) is None,
        probes.ServerProbe(settings),
        probes.WorkerProbe,
        probes.sessions_serve(settings) if options.sessions else None,
    )
    supervisor = Supervisor(
        services.stages(least),
        on_ready=_log if settings.operation.log_format == "json" else _show,
        drain_s=settings.server.drain_s,
        stuck_s=settings.server.stuck_s,
        more=services.worker,
        check=services.check,
        rotate=rotation.Logs(settings.operation.log_max_bytes, settings.operation.log_keep),
    )
    file = _control_file(settings)
    _refuse_a_second(file)
    for number in platforms.STOP_SIGNALS:
        signal.signal(number, lambda *_: supervisor.stop())
    channel = control.ControlServer(file, _Commands(supervisor, services, least, most))
    try:
        where.watch(services, supervisor)
        if most > least:
            Autoscaler(
                supervisor,
                Scaling(least, most, settings.operation.scale_up_s, settings.operation.scale_down_s),
                settings,
            ).start()
        supervisor.run()
    finally:
        channel.close()
    logger.info("Stopped everything")


class _Where:
    """The workers' address: the one in the database, if settings are kept there; the command line's port
    overrides it."""

    def __init__(self, settings: Settings, port: int | None) -> None:
        self._settings = settings
        self._port = port
        self._kept = _kept(settings) if settings.operation.use_db_settings else None

    def now(self) -> Place:
        """The place by the stored settings."""
        return _place(self._settings, self._port, self._kept.live.now.stored if self._kept else {})

    def watch(self, services: Services, supervisor: Supervisor) -> None:
        """Restart the workers one after another at each new address from the settings."""

        def look(*_: object) -> None:
            place = self.now()
            if place == services.place:
                return
            services.place = place
            logger.info("Restarting the workers at {}, from port {} on (the settings changed)", *place)
            try:
                supervisor.restart().result()
            except EmbedshareError as error:
                logger.error("Could not move every worker; retry with `restart`: {}", error.message)

        if self._kept is not None:
            self._kept.watcher.start(look)


def _kept(settings: Settings) -> SettingsSync:
    try:
        from embedshare.settings_store.sync import SettingsSync
    except ImportError as error:
        raise missing_database(error) from None
    return SettingsSync(CurrentSettings(settings), authkey.key_file(settings).parent)


def _place(settings: Settings, port: int | None, stored: Mapping[str, Any]) -> Place:
    return Place(stored.get("host") or settings.web.host, port or stored.get("port") or FIRST_PORT)


class _Commands:
    """The supervisor's answers to commands over its channel."""

    def __init__(self, supervisor: Supervisor, services: Services, least: int, most: int) -> None:
        self._supervisor = supervisor
        self._services = services
        self._least, self._most = least, most
        self._by_name: dict[str, Callable[[dict[str, Any], Callable[[str], None]], Any]] = {
            "status": lambda given, say: [report._asdict() for report in supervisor.report().result()],
            "restart": lambda given, say: self._wait(supervisor.restart(given["names"]), say),
            "scale": self._scale,
            "follows": lambda given, say: self._services.workers_follow,
            "follow": self._follow,
            "stop": lambda given, say: supervisor.stop(),
        }

    def __call__(self, do: str, given: dict[str, Any], say: Callable[[str], None]) -> Any:
        try:
            command = self._by_name[do]
        except KeyError:
            raise SupervisorError(
                f"unknown command {do!r}; the supervisor knows {', '.join(self._by_name)}"
            ) from None
        return command(given, say)

    def _scale(self, given: dict[str, Any], say: Callable[[str], None]) -> None:
        count = int(given["workers"])
        if self._most > self._least and not self._least <= count <= self._most:
            raise SupervisorError(
                f"the number of workers follows the load, from {self._least} to {self._most}; it "
                f"cannot be set to {count}"
            )
        self._wait(self._supervisor.scale(count), say)

    def _follow(self, given: dict[str, Any], say: Callable[[str], None]) -> None:
        """Restart the workers such that they follow every change of the server's model."""
        if not self._services.workers_follow:
            self._services.workers_follow = True
            self._wait(self._supervisor.restart(), say)
            logger.info("Restarted the workers to follow changes of the model (swap --follow)")

    def _wait(self, operation: futures.Future[None], say: Callable[[str], None]) -> None:
        while not futures.wait([operation], SAY_EVERY_S).done:
            reports = self._supervisor.report().result()
            under_way = [f"{report.name} is {report.state}" for report in reports if report.state != "ready"]
            say(", ".join(under_way) or "all are ready")
        operation.result()


def show_status(options: argparse.Namespace, settings: Settings) -> None:
    """Show the state of every process, and the shared model."""
    processes = control.ask(_control_file(settings), "status")
    with _client(settings) as client:
        report = status.gather(processes, settings, client.stats)
        report["models"] = _models_of(client)
    if options.json:
        _print_json(report)
        return
    _console().print(status.render(report))
    if len(report["models"]) > 1:
        _console().print(models.render(report["models"], [], 0.0))


def _models_of(client: EmbeddingClient) -> list[dict[str, Any]]:
    """The server's models, none while it does not answer."""
    try:
        return client.models()
    except EmbedshareError:
        return []


def show_logs(options: argparse.Namespace, settings: Settings) -> None:
    """Print the last lines of the logs, and with -f new ones as they come."""
    folder = Path(settings.operation.log_dir)
    found = {log.stem: log for log in sorted(folder.glob("*.log"))}
    if options.name is not None and options.name not in found:
        raise SupervisorError(
            f"there is no log of {options.name!r} in {folder}; there are {', '.join(found)}"
        )
    chosen = found if options.name is None else {options.name: found[options.name]}
    console = Console(highlight=False, soft_wrap=True)  # a line stays one line

    def show(name: str, line: str) -> None:
        console.print(line if len(chosen) == 1 else f"{name}: {line}", markup=False)

    for name, line in tail.last(chosen, options.lines):
        show(name, line)
    if options.follow:
        for name, line in tail.follow(chosen):
            show(name, line)


def restart(options: argparse.Namespace, settings: Settings) -> None:
    """Restart the workers one after another, or the named process."""
    names = None if options.name is None else [options.name]
    _command(options, settings, "restart", {"names": names})


def scale(options: argparse.Namespace, settings: Settings) -> None:
    """Run this number of workers."""
    _command(options, settings, "scale", {"workers": options.workers})


def swap(options: argparse.Namespace, settings: Settings) -> None:
    """Make the model server change its model while it serves."""
    file = _control_file(settings)
    if options.follow:
        control.ask(file, "follow", timeout_s=SILENCE_S, on_said=_progress(options))
    else:
        _warn_of_workers_that_will_refuse(file)
    with (
        _client(settings, options.of) as client,
        Console(stderr=True).status(f"loading {options.model} next to the old model"),
    ):
        described = client.swap_model(options.model, timeout=SWAP_S)
    described["refusing"] = _refusing(file, settings)
    if options.json:
        _print_json(described)
    else:
        _console().print(f"{described['model_name']} ({described['identity'][:12]}) serves now")


def _warn_of_workers_that_will_refuse(file: Path) -> None:
    try:
        follows = control.ask(file, "follows")
    except EmbedshareError:
        return  # without a supervisor the workers are unknown
    if not follows:
        logger.warning(
            "Swapping to a model that the workers refuse with 503 (EMBEDDING_ON_MODEL_CHANGE is "
            "refuse); swap --follow lets them follow"
        )


def _refusing(file: Path, settings: Settings) -> list[str]:
    """The workers that refuse the served model; the log names each."""
    try:
        refusing = following.refusing(control.ask(file, "status"), settings)
    except EmbedshareError:
        return []
    if refusing:
        logger.warning(
            "Got refusals of the model from {} workers, which answer 503: {}. Restart them with: "
            "python service_manager.py restart",
            len(refusing),
            ", ".join(refusing),
        )
    return refusing


def stop(options: argparse.Namespace, settings: Settings) -> None:
    """Stop everything, then return."""
    file = _control_file(settings)
    where = control.whereabouts(file)
    control.ask(file, "stop")
    while _runs(where.pid):
        time.sleep(0.1)
    _done(options, "everything is stopped")


def examine(options: argparse.Namespace, settings: Settings) -> int:
    """Print the faults of this machine; exit with 1 if there is one."""
    findings = doctor.examine(settings, _ports(options, settings), lambda: _why_no_answer(settings))
    if options.json:
        _print_json([finding._asdict() for finding in findings])
    else:
        _console().print(doctor.render(findings))
    return int(any(finding.state == doctor.BAD for finding in findings))


def _ports(options: argparse.Namespace, settings: Settings) -> list[doctor.Finding]:
    """Findings on the ports of running workers, or on those where they could start."""
    try:
        return list(doctor.running_workers(control.ask(_control_file(settings), "status")))
    except EmbedshareError:  # none runs
        # Without reading the database, which would create its tables.
        place = _place(settings, options.port, {})
    return list(doctor.worker_ports(settings.server.port, options.workers[0], place))


def manage_keys(options: argparse.Namespace, settings: Settings) -> None:
    """Create, list and revoke API keys of the web workers."""
    answer = keys.carry_out(options, settings)
    _print_json(answer) if options.json else _console().print(answer)


def manage_models(options: argparse.Namespace, settings: Settings) -> None:
    """List, load, unload, pin and reload the model server's models."""
    with _client(settings, getattr(options, "name", "")) as client:
        answer = models.carry_out(options, client)
        if options.json:
            _print_json(answer)
            return
        entries, before, seconds = answer if isinstance(answer, list) else [answer], [], 0.0
        if options.action == "list":
            seconds = RATE_S
            time.sleep(seconds)
            before, entries = entries, client.models()
    _console().print(models.render(entries, before, seconds))


def manage_cache(options: argparse.Namespace, settings: Settings) -> None:
    """Show and clear the model server's cached vectors."""
    with _client(settings, getattr(options, "of", None) or "") as client:
        answer = cache.carry_out(options, client)
    _print_json(answer) if options.json else _console().print(cache.render(answer))


def manage_jobs(options: argparse.Namespace, settings: Settings) -> None:
    """List, show, cancel and delete jobs of the web workers' callers."""
    found = jobs.carry_out(options, place.store(settings))
    _print_json(found) if options.json else _console().print(jobs.render(found))


def _runs(pid: int) -> bool:
    """Whether a process runs; an ended process that its parent has not collected does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command(options: argparse.Namespace, settings: Settings, do: str, given: dict[str, Any]) -> None:
    control.ask(_control_file(settings), do, given, timeout_s=SILENCE_S, on_said=_progress(options))
    _done(options, f"{do}: done")


def _progress(options: argparse.Namespace) -> Callable[[str], None]:
    """A function that shows a command's progress to people."""
    return lambda line: None if options.json else _console().print(line)


def _done(options: argparse.Namespace, line: str) -> None:
    if options.json:
        _print_json({"status": "ok"})
    else:
        _console().print(line)


def _with_command(arguments: list[str]) -> list[str]:
    """`start` is the default command, as earlier releases had no other."""
    return arguments if arguments and arguments[0] in {*_COMMANDS, "-h", "--help"} else ["start", *arguments]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Start, watch, change and stop the model server and its web workers.",
        epilog="Default command: start. `start --help` and the like show more.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, (run, add_arguments) in _COMMANDS.items():
        summary = (run.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=run)
        add_arguments(command)
        if name not in ("start", "logs", "keys", "models", "cache", "jobs"):
            command.add_argument("--json", action="store_true", help="for scripts: JSON on standard output")
    return parser


def _services_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=_workers, default=(2, 2), metavar="N or LEAST-MOST",
        help="number of web workers (default: 2); 2-8: scales with the load",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=_port, default=None,
        help=f"the first worker's port; others follow (default: the database's, else {FIRST_PORT})",
    )  # fmt: skip
    parser.add_argument(
        "--sessions", action="store_true", help="run the session server too (sessions of documents, gRPC)"
    )
    parser.add_argument(
        "--src-dir", default="src", help="folder with modelServer.py and app.py (default: src)"
    )


def _logs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", help=f"one process, such as {MODEL_SERVER} or worker-1 (default: all)"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="print new lines as they come")
    parser.add_argument("-n", "--lines", type=int, default=20, help="number of last lines (default: 20)")


def _restart_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="one process (default: all workers, one after another)")


def _swap_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a folder or a name")
    parser.add_argument("--of", default="", metavar="NAME", help="id or alias of the replaced model")
    parser.add_argument(
        "--follow", action="store_true",
        help="first restart the workers one after another, so that they follow the new model",
    )  # fmt: skip


_COMMANDS: dict[str, tuple[Callable[[Any, Settings], Any], Callable[[argparse.ArgumentParser], Any]]] = {
    "start": (start, _services_arguments),
    "status": (show_status, lambda parser: None),
    "logs": (show_logs, _logs_arguments),
    "restart": (restart, _restart_arguments),
    "scale": (scale, lambda parser: parser.add_argument("workers", type=lambda text: _workers(text)[0])),
    "swap": (swap, _swap_arguments),
    "stop": (stop, lambda parser: None),
    "doctor": (examine, _services_arguments),
    "keys": (manage_keys, keys.add_arguments),
    "models": (manage_models, models.add_arguments),
    "cache": (manage_cache, cache.add_arguments),
    "jobs": (manage_jobs, jobs.add_arguments),
}


def _workers(text: str) -> tuple[int, int]:
    given = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    least, most = (int(given[1]), int(given[2] or given[1])) if given else (0, 0)
    if not 1 <= least <= most <= 1000:
        raise argparse.ArgumentTypeError("a whole number from 1 to 1000, or two such as 2-8")
    return least, most


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError("a port, from 1 to 65535")
    return int(text)


def _source_folder(given: str) -> Path:
    """The folder, relative to the working directory or to this file's; both programs must be in it."""
    candidates = [Path(given).expanduser().resolve(), (HERE / given).resolve()]
    folder = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if folder is None:
        raise SupervisorError(f"--src-dir {given}: there is no such folder")
    for program in ("modelServer.py", "app.py"):
        if not (folder / program).is_file():
            raise SupervisorError(f"--src-dir {given}: there is no {program} in {folder}")
    return folder


def _control_file(settings: Settings) -> Path:
    return control.file_of(settings, authkey.key_file(settings))


def _refuse_a_second(file: Path) -> None:
    """Refuse a second supervisor for a model server's port: it would take over the first one's channel."""
    try:
        control.ask(file, "status")
    except SupervisorUnavailable:
        return
    raise SupervisorError(
        f"a supervisor already runs, process {control.whereabouts(file).pid}; stop it first"
    )


def _client(settings: Settings, model: str = "") -> EmbeddingClient:
    """A client of a model of the server, without a local model."""
    return EmbeddingClient(
        settings=dataclasses.replace(
            settings, client=dataclasses.replace(settings.client, fallback="none", timeout_s=5.0)
        ),
        max_retries=1,
        model=model,
    )


def _why_no_answer(settings: Settings) -> str | None:
    """None if the model server returns a real embedding, not only a connection; else the reason."""
    with _client(settings) as client:
        report = client.health()
    return None if report["embedding_server"] == "connected" else str(report.get("error"))


def _console() -> Console:
    """Standard output; wide enough that no line is cut if it is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))  # noqa: T201


def _log(watched: list[Watched]) -> None:
    """`_show` as one line of the log."""
    running = [
        f"{each.spec.name} on port {each.spec.port}" if each.spec.port else each.spec.name for each in watched
    ]
    logger.info("Running embedshare ({})", ", ".join(running))


def _show(watched: list[Watched]) -> None:
    table = Table(title="embedshare is running; Ctrl-C stops everything")
    for column in ("process", "pid", "port", "log"):
        table.add_column(column)
    for each in watched:
        pid = str(each.process.pid) if each.process else ""
        table.add_row(each.spec.name, pid, str(each.spec.port or "–"), str(each.spec.log))
    _console().print(table)


if __name__ == "__main__":
    sys.exit(main())
