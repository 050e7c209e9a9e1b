//! `echoloop serve` as a process: its standard streams, signals, supervisor and limits, as others make them.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::*;
use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Socket, Type};

/// A server whose standard error is what the test makes it, killed when it is dropped.
struct Running(Child);

impl Running {
    /// Starts a server; returns it with where it listens, and what else it will print.
    fn start(command: &mut Command) -> (Running, SocketAddr, BufReader<std::process::ChildStdout>) {
        pass_no_ignored_signals_on();
        let mut running = Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
        let mut stdout = BufReader::new(running.0.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}"));
        (running, address.parse().unwrap(), stdout)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the server ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    /// Sends the signal until it has ended, as somebody does who is in a hurry.
    fn signal_until_ended(&mut self, signal: Signal) -> Option<i32> {
        wait_until("the server ends", || {
            let ended = self.0.try_wait().unwrap().is_some();
            if !ended {
                self.signal(signal);
                thread::sleep(Duration::from_millis(10));
            }
            ended
        });
        self.exit_code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(args: &[&str]) -> Command {
    let mut command = Command::new(ECHOLOOP);
    command.args(["serve", "127.0.0.1:0"]).args(args);
    command
}

/// A server whose standard error is a pipe that nobody reads until the test does.
fn start_with_unread_log(args: &[&str]) -> (Running, SocketAddr, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    // The command holds the writing end, and goes with this function.
    let (running, addr, _) = Running::start(serve(args).stderr(writer));
    (running, addr, reader)
}

#[test]
fn stopped_log_reader_delays_neither_serving_nor_stop() {
    let (mut server, addr, mut log) = start_with_unread_log(&["-vv", "--drain-timeout", "300ms"]);
    let mut peer = dial(addr);
    // Some lines for each: more than the pipe and the queue take.
    for _ in 0..4000 {
        ping(&mut peer, b"nobody reads of this");
    }
    // The reader goes on, and is told what it has missed.
    let mut text = Vec::new();
    wait_until("told what is missing", || {
        let mut piece = [0; 65_536];
        let length = log.read(&mut piece).unwrap();
        text.extend_from_slice(&piece[..length]);
        let tail = &text[text.len().saturating_sub(100_000)..];
        String::from_utf8_lossy(tail).contains("lines were not logged")
    });
    for _ in 0..4000 {
        ping(&mut peer, b"nor of this");
    }
    drop(peer);
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn second_signal_ends_what_waits_for_a_reader() {
    let (mut server, addr, _log) = start_with_unread_log(&["-vv", "--drain-timeout", "1h"]);
    let mut peer = dial(addr);
    for _ in 0..4000 {
        ping(&mut peer, b"nobody reads of this");
    }
    drop(peer);
    assert_eq!(server.signal_until_ended(Signal::TERM), Some(143));

    let mut command = serve(&["--print", "--drain-timeout", "1h"]);
    let (mut server, addr, _stdout) = Running::start(command.stderr(Stdio::null()));
    let mut peer = dial(addr);
    for _ in 0..200 {
        ping(&mut peer, &[[b'x'; 999].as_slice(), b"\n"].concat());
    }
    drop(peer);
    assert_eq!(server.signal_until_ended(Signal::INT), Some(130));
}

#[test]
fn two_signals_ten_milliseconds_apart_are_two() {
    let mut command = serve(&["--drain-timeout", "1h"]);
    let (mut server, addr, _stdout) = Running::start(command.stderr(Stdio::null()));
    let mut peer = dial(addr);
    ping(&mut peer, b"stays, and holds the drain up");
    assert_eq!(server.signal_until_ended(Signal::TERM), Some(143));
}

#[cfg(target_os = "linux")] // elsewhere it is not known what is ignored
#[test]
fn these_tests_pass_in_the_background() {
    let this = std::env::current_exe().unwrap();
    let test = "sighup_stops_like_sigterm_unless_inherited_as_ignored";
    let script = format!("trap '' HUP INT QUIT; exec {} --exact {test}", this.display());
    let outcome = Command::new("sh").args(["-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn sighup_stops_like_sigterm_unless_inherited_as_ignored() {
    let (mut server, _, _stdout) = Running::start(serve(&[]).stderr(Stdio::null()));
    server.signal(Signal::HUP);
    assert_eq!(server.exit_code(), Some(0));

    let mut command = Command::new("sh");
    command.args(["-c", &format!("trap '' HUP INT; exec {ECHOLOOP} serve 127.0.0.1:0")]);
    let (mut server, addr, _stdout) = Running::start(command.stderr(Stdio::null()));
    server.signal(Signal::HUP);
    server.signal(Signal::INT);
    ping(&mut dial(addr), b"still here");
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn blocked_sigterm_is_unblocked() {
    use nix::sys::signal::{SigSet, Signal as Blocked};
    // A child inherits the mask of the thread that starts it.
    let starter = thread::spawn(|| {
        SigSet::from(Blocked::SIGTERM).thread_block().unwrap();
        Running::start(serve(&[]).stderr(Stdio::null()))
    });
    let (mut server, _, _stdout) = starter.join().unwrap();
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn non_blocking_streams_lose_nothing() {
    let (mut printed, stdout) = std::io::pipe().unwrap();
    let (mut log, stderr) = std::io::pipe().unwrap();
    for writer in [&stdout, &stderr] {
        rustix::io::ioctl_fionbio(writer, true).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let mut command = Command::new(ECHOLOOP);
    command.args(["serve", "--print", "-v", &format!("unix:{}", socket.display())]);
    let mut server = Running(command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap());
    drop(command);
    let mut peer = None;
    wait_until("it listens", || {
        peer = std::os::unix::net::UnixStream::connect(&socket).ok();
        peer.is_some()
    });
    let mut peer = peer.unwrap();
    // Twice what a pipe takes.
    for number in 0..1300 {
        ping(&mut peer, format!("{number:099}\n").as_bytes());
    }
    drop(peer);
    server.signal(Signal::TERM);
    let reader = thread::spawn(move || {
        let mut text = String::new();
        printed.read_to_string(&mut text).unwrap();
        text
    });
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(server.exit_code(), Some(0), "{text}");
    assert!(text.contains("served 1 connection,"), "{text}");
    let printed = reader.join().unwrap();
    let numbers: Vec<_> = printed.lines().skip(1).map(|line| line[line.len() - 99..].parse::<u32>().unwrap()).collect();
    assert_eq!(numbers, (0..1300).collect::<Vec<_>>());
}

#[test]
fn file_size_limit_is_a_full_disk() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, out) = (directory.path().join("socket"), directory.path().join("out"));
    let mut command = Command::new("sh");
    let (listen, file) = (socket.display(), out.display());
    command.args(["-c", &format!("ulimit -f 4; exec {ECHOLOOP} serve --print unix:{listen} >{file} 2>/dev/null")]);
    let mut server = Running(command.spawn().unwrap());
    let mut peer = None;
    wait_until("it listens", || {
        peer = std::os::unix::net::UnixStream::connect(&socket).ok();
        peer.is_some()
    });
    let mut peer = peer.unwrap();
    for _ in 0..100 {
        ping(&mut peer, &[[b'x'; 99].as_slice(), b"\n"].concat());
    }
    wait_until("the file is full", || fs::metadata(&out).unwrap().len() >= 2048); // four blocks of 512 or 1024 bytes
    ping(&mut peer, b"goes on\n");
    drop(peer);
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn each_log_line_is_one_write() {
    // Of a datagram socket each write is a datagram.
    let (log, stderr) = UnixDatagram::pair().unwrap();
    let (mut server, addr, _stdout) = Running::start(serve(&["-vv"]).stderr(OwnedFd::from(stderr)));
    ping(&mut dial(addr), b"something to tell");
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), Some(0));
    log.set_nonblocking(true).unwrap();
    let (mut buffer, mut lines) = ([0; 4096], 0);
    while let Ok(length) = log.recv(&mut buffer) {
        if length == 0 {
            break; // the other end is gone
        }
        let line = std::str::from_utf8(&buffer[..length]).unwrap();
        assert!(line.ends_with('\n') && line.matches('\n').count() == 1, "{line:?}");
        lines += 1;
    }
    assert!(lines > 5, "{lines} lines");
}

#[test]
fn json_log_format_makes_each_line_an_object() {
    let mut server = Server::start(&["--log-format", "json", "-v"]);
    let peer = server.connect_many(1).remove(0).local_addr().unwrap();
    server.wait_for_log("closed: finished");
    let log = server.stop();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let message = |line: &serde_json::Value| line["message"].as_str().unwrap().to_owned();
    assert!(message(&lines[0]).starts_with(&format!(
        "echoloop {}, process {}",
        env!("CARGO_PKG_VERSION"),
        server.pid()
    )));
    let closed = lines.iter().find(|line| message(line).contains("closed: finished")).unwrap();
    assert_eq!((&closed["level"], &closed["target"]), (&"DEBUG".into(), &"echoloop::serve::echo".into()));
    assert!(message(closed).contains(&format!("{peer}, 0.")), "{closed}");
    assert!(message(closed).ends_with("5 B received, 5 B sent"), "{closed}");
}

#[test]
fn journal_gets_levels_and_no_time() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let file = fs::File::create(&path).unwrap();
    let metadata = file.metadata().unwrap();
    let stream = |inode: u64| format!("{}:{inode}", metadata.dev());
    let run = |stream: String| {
        let mut command = serve(&[]);
        command.env("JOURNAL_STREAM", stream).stderr(file.try_clone().unwrap());
        let (mut server, _, _stdout) = Running::start(&mut command);
        server.signal(Signal::TERM);
        assert_eq!(server.exit_code(), Some(0));
        fs::read_to_string(&path).unwrap()
    };
    let log = run(stream(metadata.ino()));
    assert!(log.lines().all(|line| line.starts_with("<6>[echoloop")), "{log}");
    for elsewhere in [&stream(metadata.ino() + 1), "", "1", ":", "1:x", &format!("{}:", metadata.dev())] {
        let log = run(elsewhere.to_owned());
        assert!(log.lines().last().unwrap().starts_with("20"), "standard error leads elsewhere: {elsewhere}: {log}");
    }
}

#[test]
fn a_closed_connection_is_told_whatever_its_kind() {
    let directory = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}", directory.path().join("s").display());
    let flags = ["-v", "--http", "0", "--idle-timeout", "300ms"];
    let mut server = Server::start_on(&["127.0.0.1:0", &unix], &flags);
    let inside = server.inside();
    let mut peer = server.connect();
    ping(&mut peer, b"tcp");
    let name = peer.local_addr().unwrap();
    drop(peer);
    server.wait_for_log(&format!("token 0: closed: finished; {name}, 0."));
    server.wait_for_log(" s, 3 B received, 3 B sent");
    ping(&mut std::os::unix::net::UnixStream::connect(directory.path().join("s")).unwrap(), b"unix!");
    server.wait_for_log("token 0: closed: finished; unix, 0.");
    server.wait_for_log(" s, 5 B received, 5 B sent");
    get(inside, "/livez");
    server.wait_for_log("http token 0: GET /livez: 200 OK");
    server.wait_for_log("http token 0: closed: finished; 127.0.0.1:");
    // It sends until nothing more is taken, and reads nothing.
    let deaf = server.connect();
    deaf.set_nonblocking(true).unwrap();
    wait_until("the deaf peer is dropped", || {
        while std::io::Write::write(&mut &deaf, &[7; 65_536]).is_ok() {}
        server.log().contains("closed: stalled")
    });
    let log = server.log();
    let line = log.lines().find(|line| line.contains("closed: stalled; 127.0.0.1:")).unwrap();
    assert!(line.ends_with(" KiB unsent"), "what was not sent is not told as sent: {line}");
}

#[test]
fn proxied_client_is_told_with_its_end() {
    let server = Server::start(&["-v", "--proxy-protocol", "--deny", "203.0.113.0/24"]);
    let mut peer = server.connect();
    std::io::Write::write_all(&mut peer, b"PROXY TCP4 198.51.100.7 127.0.0.1 4711 7\r\nhello").unwrap();
    receive(&mut peer, b"hello");
    let balancer = peer.local_addr().unwrap();
    drop(peer);
    server.wait_for_log(&format!("token 0: {balancer} speaks for 198.51.100.7:4711"));
    server.wait_for_log("token 0: closed: finished; 198.51.100.7:4711, 0.");
    let mut denied = server.connect();
    std::io::Write::write_all(&mut denied, b"PROXY TCP4 203.0.113.1 127.0.0.1 1 7\r\nhello").unwrap();
    server.wait_for_log("token 0: refused 203.0.113.1:1: in a denied network");
    server.wait_for_log("token 0: closed: aborted; 203.0.113.1:1, 0.");
    let mut other = server.connect();
    std::io::Write::write_all(&mut other, b"\x1b]0;GET / HTTP/1.1\r\n\r\n").unwrap();
    server.wait_for_log("token 0: no PROXY header: ");
    assert!(!server.log().contains('\u{1b}'));
}

#[test]
fn refusals_are_told_at_the_default_level() {
    let server = Server::start(&["--deny", "127.0.0.0/8"]);
    drop(server.connect());
    server.wait_for_log("connections refused: 1 (in all: 1 denied)");
}

/// Runs a server to which `sockets` are handed over, and `variables`, until it ends.
fn handed_over(descriptor: Option<OwnedFd>, variables: &[(&str, &str)]) -> std::process::Output {
    // The shell gives standard input the number that the first descriptor must have.
    let redirect = if descriptor.is_some() { "3<&0" } else { "3<&-" };
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {ECHOLOOP} serve {redirect} </dev/null")]).envs(variables.iter().copied());
    command.stdin(descriptor.map_or(Stdio::null(), Stdio::from)).output().unwrap()
}

#[test]
fn handed_over_sockets_that_are_none_are_named() {
    let refused = |descriptor: Option<OwnedFd>, variables: &[(&str, &str)], cause: &str| {
        let output = handed_over(descriptor, variables);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && error.contains(cause) && error.lines().count() == 1, "{error}");
    };
    refused(None, &[("LISTEN_FDS", "2147483647")], "LISTEN_FDS=2147483647, but descriptor 3 is not open");
    refused(None, &[("LISTEN_FDS", "-1")], "LISTEN_FDS=-1 is not a number");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    refused(Some(listener.into()), &[("LISTEN_FDS", "2")], "descriptor 4 is not open");
    let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    bound.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    refused(Some(bound.into()), &[("LISTEN_FDS", "1")], "descriptor 3 of LISTEN_FDS does not listen");
    let without_port = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    refused(Some(without_port.into()), &[("LISTEN_FDS", "1")], "descriptor 3 of LISTEN_FDS has no port");
}

#[test]
fn handed_over_dual_stack_socket_answers_both_families() {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    // Everything that may come beside a datagram, as far as there is a safe way to ask for it.
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).unwrap();
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true).unwrap();
    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true).unwrap();
    setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true).unwrap();
    setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true).unwrap();
    setsockopt(&socket, sockopt::RxqOvfl, &1).unwrap();
    socket.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {ECHOLOOP} serve 3<&0 </dev/null")]).env("LISTEN_FDS", "1");
    let _server = Server::spawn_as_it_is(
        {
            command.stdin(OwnedFd::from(socket));
            command
        },
        1,
    );
    for (from, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
        let peer = UdpSocket::bind(from).unwrap();
        peer.connect((to, port)).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.send(b"both").unwrap();
        let mut echo = [0; 10];
        assert_eq!(peer.recv(&mut echo).unwrap(), 4);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn supervisor_is_told_at_an_abstract_name() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("echoloop-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let supervisor = UnixDatagram::bind_addr(&address).unwrap();
    supervisor.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = serve(&[]);
    // Zero asks for no sign of life, and must not be taken for a short time.
    command.env("NOTIFY_SOCKET", format!("@{name}")).env("WATCHDOG_USEC", "0");
    let mut server = Server::spawn(command, 1);
    let told = || {
        let mut buffer = [0; 500];
        let length = supervisor.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(told(), format!("READY=1\nSTATUS=serving on {}\n", server.endpoints[0]));
    server.stop();
    // The drain timeout of 5 s, and 5 s to end.
    assert_eq!(told(), "STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC=10000000\n");
}

#[test]
fn supervisor_that_does_not_read_holds_nothing_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let _supervisor = UnixDatagram::bind(&path).unwrap();
    let mut command = serve(&[]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "2000");
    let mut server = Server::spawn(command, 1);
    server.wait_for_log("cannot tell the supervisor, and will try again");
    ping(&mut server.connect(), b"served all the same");
    server.stop();
}

#[test]
fn few_descriptors_are_shared_or_refused_with_remedy() {
    for (limit, flags) in [(8, ""), (10, "--http 0")] {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {limit}; exec {ECHOLOOP} serve 127.0.0.1:0 {flags}");
        let output = command.args(["-c", &script]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(&format!("the limit on open files, {limit},")), "{error}");
        assert!(error.contains("raise it (ulimit -n)") && error.lines().count() == 1, "{error}");
    }
    let mut server = Server::start_limited(80, "--http 0");
    let inside = server.inside();
    let mut peers = server.connect_many(40);
    assert!(get(inside, "/healthz").0.starts_with("HTTP/1.1 200"));
    ping(&mut peers[0], b"still");
}

#[test]
#[ignore = "needs namespaces (unshare(1)): the resolver's configuration is the machine's"]
fn signal_ends_process_one_that_waits_for_names() {
    for command in ["serve", "connect", "bench"] {
        waits_for_names_until_signalled(command);
    }
}

fn waits_for_names_until_signalled(command: &str) {
    let directory = tempfile::tempdir().unwrap();
    let resolver = directory.path().join("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.1\n").unwrap();
    // A name server that never answers. It listens before it is asked.
    let ready = directory.path().join("ready");
    let script = format!(
        "mount --bind {resolver} /etc/resolv.conf && ip link set lo up && mkfifo {ready} && \
         {{ {ECHOLOOP} serve udp:127.0.0.1:53 --deny 127.0.0.0/8 > {ready} & }} && read line < {ready} && \
         exec {ECHOLOOP} {command} name.example:7",
        resolver = resolver.display(),
        ready = ready.display()
    );
    ends_as_process_one(&script);
}

/// Runs a script as process 1 of a namespace, and signals it when it has taken signals over.
#[track_caller]
fn ends_as_process_one(script: &str) {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]);
    let mut outer = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let pid = outer.0.id();
    let mut inner = None;
    wait_until("it has taken over the signals, and waits", || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        inner = children.trim().parse::<i32>().ok();
        inner.is_some_and(|inner| {
            let tasks = fs::read_dir(format!("/proc/{inner}/task")).into_iter().flatten().flatten();
            let named = |name: &str| {
                tasks
                    .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
                    .any(|comm| comm.trim() == name)
            };
            named("signals")
        })
    });
    kill_process(Pid::from_raw(inner.unwrap()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(outer.exit_code(), Some(143));
}

#[test]
#[ignore = "needs namespaces (unshare(1)): only process 1 is spared by the kernel"]
fn signal_ends_process_one_waiting_for_a_fifo() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for command in ["report", "bench 127.0.0.1:9 --json"] {
        ends_as_process_one(&format!("exec {ECHOLOOP} {command} {}", pipe.display()));
    }
}
