//! `echoloop connect`, as its users see it.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use common::*;

#[track_caller]
fn converse(server: &Server, flags: &[&str], input: &str, output: &str) {
    let address = server.addr().to_string();
    let outcome = echoloop(&[&["connect", &address], flags].concat(), input.as_bytes());
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), output);
    assert_eq!(String::from_utf8_lossy(&outcome.stderr), "");
    assert_eq!(outcome.status.code(), Some(0));
}

#[test]
fn lines_come_back_as_they_were() {
    let server = Server::start(&[]);
    for input in ["hello\nworld\n", "no newline at the end", "", "\n\n", "one\r\ntwo\r\n"] {
        converse(&server, &[], input, input);
    }
}

#[test]
fn a_file_of_any_bytes_is_copied() {
    let server = Server::start(&[]);
    let bytes = noise(20, 20 * 1024 * 1024 + 7);
    let outcome = echoloop(&["connect", &server.addr().to_string()], &bytes);
    assert!(outcome.stdout == bytes);
    assert_eq!(outcome.status.code(), Some(0));
}

/// What a program shows on a terminal of its own, which changes nothing of it.
#[cfg(target_os = "linux")]
fn shown(mut command: Command) -> Vec<u8> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{OptionalActions, OutputModes, tcgetattr, tcsetattr};
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let path = ptsname(&screen, Vec::new()).unwrap().into_string().unwrap();
    let flags = rustix::fs::OFlags::NOCTTY.bits() as i32;
    let mut options = std::fs::File::options();
    let terminal =
        std::os::unix::fs::OpenOptionsExt::custom_flags(options.read(true).write(true), flags).open(path).unwrap();
    let mut attributes = tcgetattr(&terminal).unwrap();
    attributes.output_modes.remove(OutputModes::OPOST);
    tcsetattr(&terminal, OptionalActions::Now, &attributes).unwrap();
    let mut child =
        command.stdout(terminal.try_clone().unwrap()).stderr(terminal).stdin(Stdio::null()).spawn().unwrap();
    drop(command);
    let (mut screen, mut bytes) = (std::fs::File::from(screen), Vec::new());
    let _ = screen.read_to_end(&mut bytes); // EIO: nobody has the terminal any more
    child.wait().unwrap();
    bytes
}

#[cfg(target_os = "linux")]
#[test]
fn terminal_is_shown_escapes_file_gets_bytes() {
    let said = b"\x1b[31mred \x07 \xe2\x80\xae caf\xc3\xa9 \xff tab\there\r\nover\rwritten\n\xf0\x9f\x98";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let mut listening = listener.incoming();
    let mut say = |pieces: &[&[u8]]| {
        let mut peer = listening.next().unwrap().unwrap();
        pieces.iter().for_each(|piece| peer.write_all(piece).unwrap());
    };
    let command = |arg: &str| {
        let mut command = Command::new(ECHOLOOP);
        command.args(["connect", arg]);
        command
    };
    thread::scope(|scope| {
        let terminal = scope.spawn(|| shown(command(&addr)));
        say(&[&said[..30], &said[30..]]);
        let text = "\\u{1b}[31mred \\u{7} \\u{202e} caf\u{e9} \\xff tab\there\r\nover\\rwritten\n\\xf0\\x9f\\x98";
        assert_eq!(String::from_utf8(terminal.join().unwrap()).unwrap(), text);
        let file = scope.spawn(|| echoloop(&["connect", &addr], b""));
        say(&[said]);
        assert_eq!(file.join().unwrap().stdout, said);
    });
    let refused = String::from_utf8(shown(command("\x1b[35mname"))).unwrap();
    assert!(refused.contains("\\u{1b}[35mname") && !refused.contains("\x1b[35m"), "{refused:?}");
}

#[test]
fn thread_that_cannot_start_is_told_with_limits() {
    for args in [&["serve", "127.0.0.1:0"][..], &["connect", "1"], &["bench", "1"], &["check", "1"]] {
        // A stack that no address space has room for.
        let mut command = Command::new(ECHOLOOP);
        let output = command.args(args).env("RUST_MIN_STACK", (1u64 << 47).to_string()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("cannot start a thread") && error.contains("ulimit -u, -v"), "{args:?}: {error}");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
    }
}

#[test]
fn what_is_owed_is_shown_as_it_arrives() {
    let server = Server::start(&[]);
    let mut client = Command::new(ECHOLOOP)
        .args(["connect", &server.addr().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    for word in [&b"first\n"[..], b"second\n", b"without newline"] {
        stdin.write_all(word).unwrap();
        let mut echo = vec![0; word.len()];
        stdout.read_exact(&mut echo).unwrap(); // while the input is still open
        assert_eq!(echo, word);
    }
    drop(stdin);
    assert_eq!(client.wait().unwrap().code(), Some(0));
}

#[test]
fn bare_words_are_sent_one_by_one() {
    let mut server = Server::start(&["--print"]);
    converse(&server, &["--no-newline"], "one\ntwo\r\n\nthree", "one\ntwo\n\nthree\n");
    for word in ["one", "two", "three"] {
        let line = server.read_line();
        assert_eq!(line.trim_end().rsplit(' ').next(), Some(word), "a read of its own: {line:?}");
    }
}

#[test]
fn the_terminator_is_the_last_line() {
    let server = Server::start(&[]);
    converse(&server, &["--terminator", "bye"], "one\nbye\nnever sent\n", "one\nbye\n");
    converse(&server, &["--terminator", "bye", "--no-newline"], "one\nbye\nnever sent\n", "one\nbye\n");
    converse(&server, &["--terminator", "bye"], "goodbye\n", "goodbye\n");
}

#[test]
fn the_tutorials_servers_are_conversed_with() {
    let mut server = Server::start(&["--accept-limit", "1", "--terminator", "bye"]);
    converse(&server, &["--no-newline", "--terminator", "bye"], "hello\nbye\n", "hello\nbye\n");
    assert_eq!(server.wait().0.code(), Some(0));
    let mut server = Server::start(&["--once"]);
    converse(&server, &["--no-newline"], "hello\n", "hello\n");
    assert_eq!(server.wait().0.code(), Some(0));
}

#[track_caller]
fn fails(address: &str, input: &[u8], mentions: &[&str]) {
    let outcome = echoloop(&["connect", address], input);
    let errors = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(1), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    for text in mentions {
        assert!(errors.contains(text), "{text:?} is not in {errors:?}");
    }
}

#[test]
fn nobody_listening_is_one_line() {
    let address = nobody().to_string();
    fails(&address, b"hello\n", &["echoloop: cannot connect to ", &address, "refused"]);
    fails("no-such-host.invalid:1", b"", &["cannot resolve no-such-host.invalid:1"]);
}

#[test]
fn too_few_descriptors_are_told_with_the_remedy() {
    let server = Server::start(&[]);
    let outcomes = (5..13).map(|limit| {
        let script = format!("ulimit -n {limit}; exec {ECHOLOOP} connect {}", server.addr());
        let outcome = Command::new("sh").args(["-c", &script]).output().unwrap();
        let errors = String::from_utf8(outcome.stderr).unwrap();
        let told =
            errors.lines().count() == 1 && errors.contains("limit on open files") && errors.contains("ulimit -n");
        assert!(outcome.status.success() || told, "{limit}: {errors}");
        outcome.status.success()
    });
    let outcomes: Vec<bool> = outcomes.collect();
    assert!(!outcomes[0] && outcomes[7], "{outcomes:?}");
}

#[test]
fn a_file_that_takes_no_streams_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("datagrams");
    let _socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    fails(&format!("unix:{}", path.display()), b"", &["for datagrams or packets, and not a stream"]);
    fails(&format!("unix:{}", directory.path().display()), b"", &["the file there is no socket"]);
}

#[test]
fn what_does_not_come_back_is_an_error() {
    let server = Server::start(&["--message-limit", "1"]);
    fails(&server.addr().to_string(), &b"line\n".repeat(100_000), &["bytes not echoed"]);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let closes = thread::spawn(move || {
        let mut peer = listener.accept().unwrap().0;
        let mut buffer = [0; 6];
        peer.read_exact(&mut buffer).unwrap();
        peer.write_all(&buffer[..2]).unwrap();
    });
    fails(&address, b"hello\n", &["4 bytes not echoed", &address]);
    closes.join().unwrap();
}

#[test]
fn reader_that_has_seen_enough_is_no_error() {
    let server = Server::start(&[]);
    let script = format!("yes | head -c 10000000 | {ECHOLOOP} connect {} | head -1", server.addr());
    let outcome = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "y\n");
    assert_eq!(String::from_utf8_lossy(&outcome.stderr), "");
}

/// Runs echoloop with `input`, and fails if it does not end.
#[track_caller]
fn ends(args: &[&str], input: &[u8]) -> Output {
    let mut child = start(args);
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let writer = thread::spawn(move || _ = stdin.write_all(&input)); // it may have left before
    await_end(&mut child);
    writer.join().unwrap();
    child.wait_with_output().unwrap()
}

fn start(args: &[&str]) -> Child {
    pass_no_ignored_signals_on();
    let mut command = Command::new(ECHOLOOP);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits until `child` has ended, and returns its exit code.
#[track_caller]
fn await_end(child: &mut Child) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it does not end");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A TCP server, and one on a Unix socket, that do `act` with every connection, and then close it.
fn peers(act: fn(&mut dyn Peer)) -> (Vec<String>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (tcp, unix) = (TcpListener::bind("127.0.0.1:0").unwrap(), UnixListener::bind(&path).unwrap());
    let addresses = vec![tcp.local_addr().unwrap().to_string(), format!("unix:{}", path.display())];
    // They end with the test.
    thread::spawn(move || tcp.incoming().flatten().for_each(|mut peer| act(&mut peer)));
    thread::spawn(move || unix.incoming().flatten().for_each(|mut peer| act(&mut peer)));
    (addresses, directory)
}

trait Peer: Read + Write {}
impl<T: Read + Write> Peer for T {}

/// What is not echoed is an error, at each of `count` times.
#[track_caller]
fn loses(act: fn(&mut dyn Peer), output: &str, count: usize) {
    let (addresses, _directory) = peers(act);
    for address in &addresses {
        for flags in [
            &["connect", address][..],
            &["connect", "--no-newline", address],
            &["connect", "--terminator", "x", address],
        ] {
            for _ in 0..count {
                let outcome = ends(flags, b"hello\nworld\n");
                let errors = String::from_utf8_lossy(&outcome.stderr);
                assert_eq!(outcome.status.code(), Some(1), "{flags:?}: {errors}");
                assert_eq!(errors.lines().count(), 1, "{flags:?}: {errors}");
                // After what may be an echo, --no-newline ends the line.
                assert_eq!(String::from_utf8_lossy(&outcome.stdout).trim_end(), output, "{flags:?}: {errors}");
            }
        }
    }
}

#[test]
fn a_peer_that_closes_at_once_loses_input() {
    loses(|_| (), "", 10);
}

#[test]
fn a_peer_that_speaks_and_closes_loses_input() {
    // Longer than what is sent, so that counting bytes is not enough.
    loses(|peer| _ = peer.write_all(b"you may not come in here\n"), "you may not come in here", 10);
}

#[test]
fn peer_that_echoes_one_line_loses_other() {
    fn echo_one(peer: &mut dyn Peer) {
        let mut word = [0; 6];
        let _ = peer.read_exact(&mut word[..5]);
        let _ = peer.write_all(b"hello");
    }
    let (addresses, _directory) = peers(echo_one);
    for address in &addresses {
        let outcome = ends(&["connect", address], b"hello\nworld\n");
        assert_eq!(String::from_utf8_lossy(&outcome.stdout), "hello");
        assert_eq!(outcome.status.code(), Some(1));
    }
}

#[test]
fn servers_that_refuse_or_stop_lose_input() {
    for flags in [&["--deny", "127.0.0.1"][..], &["--message-limit", "1"], &["--terminator", "hello"]] {
        let server = Server::start(flags);
        for _ in 0..10 {
            fails(&server.addr().to_string(), b"hello\nworld\n", &["bytes not echoed"]);
        }
    }
}

#[test]
fn an_open_input_does_not_outlive_the_connection() {
    let (addresses, _directory) = peers(|_| ());
    let mut child = start(&["connect", &addresses[0]]);
    let open = child.stdin.take();
    assert_eq!(await_end(&mut child), Some(0), "there was no input, and the connection ended well");
    drop(open);
}

#[test]
fn signals_end_it_after_printing() {
    let server = Server::start(&[]);
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut child = start(&["connect", &server.addr().to_string()]);
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        ping_through(&mut stdin, &mut stdout);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(await_end(&mut child), Some(code));
    }
}

fn ping_through(stdin: &mut impl Write, stdout: &mut impl Read) {
    stdin.write_all(b"ping\n").unwrap();
    receive(stdout, b"ping\n");
}

#[test]
fn a_signal_ends_it_while_nobody_reads() {
    let server = Server::start(&[]);
    let mut child = start(&["connect", &server.addr().to_string()]);
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let writer = thread::spawn(move || while stdin.write_all(&[7; 65536]).is_ok() {});
    wait_until("its output is full", || rustix::io::ioctl_fionread(&stdout).unwrap() >= 65536);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(await_end(&mut child), Some(143));
    writer.join().unwrap();
}

#[cfg(target_os = "linux")] // it reads or writes what Linux alone has
#[test]
fn a_signal_ends_a_connect_that_takes_long() {
    let (listener, _filling) = full_backlog();
    let mut child = start(&["connect", &listener.local_addr().unwrap().to_string()]);
    wait_until("it takes signals", || takes_signals(child.id()));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(await_end(&mut child), Some(130));
}

/// Whether a process handles SIGINT.
#[cfg(target_os = "linux")]
fn takes_signals(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 2 != 0
}

/// A listener that accepts nobody, and has no room in its backlog.
fn full_backlog() -> (TcpListener, Vec<socket2::Socket>) {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let fill = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address);
        socket
    };
    (listener.into(), (0..4).map(|_| fill()).collect())
}

#[test]
fn a_connect_without_answer_ends_by_its_timeout() {
    let (listener, _filling) = full_backlog();
    let address = listener.local_addr().unwrap().to_string();
    let outcome = ends(&["connect", "--connect-timeout", "100ms", &address], b"");
    let errors = String::from_utf8_lossy(&outcome.stderr);
    assert!(errors.starts_with(&format!("echoloop: cannot connect to {address}: no answer within 100ms")), "{errors}");
    assert_eq!(outcome.status.code(), Some(1));
}

#[test]
fn a_silent_peer_ends_by_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let outcome = ends(&["connect", "--timeout", "100ms", &address], b"hello\n");
    let errors = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(errors, format!("echoloop: no reply from {address} within 100ms: 6 bytes not echoed\n"));
    assert_eq!(outcome.status.code(), Some(1));
}

#[test]
fn an_expected_text_decides_the_outcome() {
    let server = Server::start_on(&["127.0.0.1:0", "udp:127.0.0.1:0"], &[]);
    for address in &server.endpoints {
        let outcome = ends(&["connect", "--expect", "lo wo", address], b"hello world\n");
        assert_eq!(outcome.status.code(), Some(0));
        let outcome = ends(&["connect", "--expect", "goodbye", "--timeout", "100ms", address], b"hello\n");
        let errors = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.status.code(), Some(1));
        assert_eq!(errors, format!("echoloop: \"goodbye\" did not come back from {address}\n"));
    }
    let (addresses, _directory) = peers(|peer| _ = peer.write_all(b"SSH-2.0-x\r\n"));
    let outcome = ends(&["connect", "--expect", "SSH-", &addresses[0]], b"");
    assert_eq!(outcome.status.code(), Some(0), "who speaks first is not asked");
}

#[test]
fn a_hex_dump_shows_every_byte() {
    let server = Server::start(&[]);
    let expected = "00000000  68 69 00 ff 0a                                    |hi...|\n";
    let outcome = ends(&["connect", "--hex", &server.addr().to_string()], b"hi\0\xff\n");
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), expected);
}

#[test]
fn a_name_whose_first_address_refuses_is_reached() {
    // Of localhost's two addresses only the second one is served.
    let server = Server::start_on(&["127.0.0.1:0", "udp:127.0.0.1:0"], &[]);
    for (kind, address) in [("", server.addrs[0]), ("udp:", server.addrs[1])] {
        let name = format!("{kind}localhost:{}", address.port());
        let outcome = ends(&["connect", &name], b"hello\nworld\n");
        assert_eq!(String::from_utf8_lossy(&outcome.stderr), "");
        assert_eq!(String::from_utf8_lossy(&outcome.stdout), "hello\nworld\n");
    }
}

#[cfg(target_os = "linux")] // it reads or writes what Linux alone has
#[test]
fn a_full_disk_is_an_error() {
    let server = Server::start(&[]);
    let full = std::fs::File::create("/dev/full").unwrap();
    let mut command = Command::new(ECHOLOOP);
    command.args(["connect", &server.addr().to_string()]).stdin(Stdio::piped()).stdout(full).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let outcome = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&outcome.stderr);
    assert!(errors.starts_with("echoloop: cannot write to standard output: No space left"), "{errors}");
    assert_eq!(outcome.status.code(), Some(1));
}

#[test]
fn nonblocking_standard_streams_are_waited_for() {
    let server = Server::start(&[]);
    let (theirs, mut ours) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut command = Command::new(ECHOLOOP);
    command.args(["connect", &server.addr().to_string()]);
    command.stdin(OwnedFd::from(theirs.try_clone().unwrap())).stdout(OwnedFd::from(theirs));
    let mut child = command.spawn().unwrap();
    drop(command);
    let bytes = noise(5, 3_000_000); // more than all the buffers on its way
    let (mut writer, sent) = (ours.try_clone().unwrap(), bytes.clone());
    let writer = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut echo = Vec::new();
    ours.read_to_end(&mut echo).unwrap();
    writer.join().unwrap();
    assert!(echo == bytes);
    assert_eq!(await_end(&mut child), Some(0));
}

#[cfg(target_os = "linux")] // it reads or writes what Linux alone has
#[test]
fn memory_stays_constant_for_a_slow_reader() {
    let server = Server::start(&[]);
    let mut child = start(&["connect", &server.addr().to_string()]);
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let bytes = noise(6, 64 << 20);
    let sent = bytes.clone();
    let writer = thread::spawn(move || stdin.write_all(&sent).unwrap());
    wait_until("its output is full", || rustix::io::ioctl_fionread(&stdout).unwrap() >= 65536);
    let mut echo = vec![0; bytes.len()];
    stdout.read_exact(&mut echo[..1 << 20]).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    let peak: u64 = peak.strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(peak < 32 << 10, "{peak} kB");
    stdout.read_exact(&mut echo[1 << 20..]).unwrap();
    writer.join().unwrap();
    assert!(echo == bytes);
    assert_eq!(await_end(&mut child), Some(0));
}

#[test]
fn unanswered_datagrams_end_whatever_their_number() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = format!("udp:{}", silent.local_addr().unwrap());
    thread::scope(|scope| {
        for count in [1, 15, 16, 17, 33] {
            let address = &address;
            scope.spawn(move || {
                let outcome = ends(&["connect", address], &b"line\n".repeat(count));
                let errors = String::from_utf8_lossy(&outcome.stderr);
                let datagrams = if count == 1 { "datagram" } else { "datagrams" };
                assert_eq!(errors, format!("echoloop: {count} {datagrams} did not come back\n"));
                assert_eq!(outcome.status.code(), Some(1));
            });
        }
    });
}

#[test]
fn greetings_and_other_answers_are_no_echo() {
    let server = Server::start(&["--greeting", "welcome to a server that greets"]);
    for flags in [&["connect"][..], &["connect", "--terminator", "world"]] {
        let outcome = ends(&[flags, &[&server.addr().to_string()]].concat(), b"hello\nworld\n");
        let output = String::from_utf8_lossy(&outcome.stdout);
        assert_eq!(output, "welcome to a server that greets\nhello\nworld\n", "{flags:?}");
        assert_eq!(outcome.status.code(), Some(0), "{flags:?}");
    }
    let (addresses, _directory) = peers(|peer| {
        let mut sent = [0; 12];
        let _ = peer.read_exact(&mut sent);
        let _ = peer.write_all(&[b'z'; 12]);
    });
    for address in &addresses {
        fails(address, b"hello\nworld\n", &["12 bytes not echoed"]);
    }
}

#[test]
fn line_too_long_for_a_datagram_is_named() {
    let server = Server::start_on(&["udp:127.0.0.1:0"], &[]);
    for length in [65_507, 70_000] {
        let line = [vec![b'x'; length], b"\n".to_vec()].concat();
        fails(&format!("udp:{}", server.addr()), &line, &["a line is longer than a datagram can be"]);
    }
}

#[test]
fn a_datagram_that_comes_twice_is_one() {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = format!("udp:{}", peer.local_addr().unwrap());
    let twice = thread::spawn(move || {
        let mut buffer = [0; 100];
        let (length, from) = peer.recv_from(&mut buffer).unwrap();
        (0..2).for_each(|_| _ = peer.send_to(&buffer[..length], from).unwrap());
        peer
    });
    fails(&address, b"one\ntwo\n", &["1 datagram did not come back"]);
    twice.join().unwrap();
}

#[test]
fn an_urgent_byte_is_printed_in_its_place() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let speaks = thread::spawn(move || {
        let peer = socket2::Socket::from(listener.accept().unwrap().0);
        assert_eq!(peer.send(b"aaa").unwrap(), 3);
        assert_eq!(peer.send_out_of_band(b"!").unwrap(), 1);
        assert_eq!(peer.send(b"bbb").unwrap(), 3);
    });
    let outcome = ends(&["connect", &address], b"");
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "aaa!bbb");
    speaks.join().unwrap();
}

#[test]
#[ignore = "needs namespaces (unshare(1)): names are the machine's"]
fn name_whose_first_address_is_silent_is_reached() {
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 two.example\n127.0.0.2 two.example\n").unwrap();
    for (served, silent) in [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")] {
        let server = Server::start_on(&[&format!("udp:{served}:0")], &[]);
        let port = server.addr().port();
        let _silent = UdpSocket::bind((silent, port)).unwrap();
        let script = format!(
            "mount --bind {} /etc/hosts && seq 40 | {ECHOLOOP} connect udp:two.example:{port}",
            hosts.display()
        );
        let outcome = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&outcome.stderr), "");
        assert_eq!(String::from_utf8_lossy(&outcome.stdout).lines().count(), 40);
    }
}
