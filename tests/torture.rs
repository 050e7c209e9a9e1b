//! The real program, with system calls that fail: strace makes one call fail, or that one and all that follow, with each
//! error that its man page lists. Whatever fails, nothing panics, spins or hangs, and no byte is wrong.
//!
//! The simulation does the same to every call of the server's loop, by the thousand. This is for what it cannot see: the
//! start, signals, threads, standard streams and files.

mod common;

use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything that is allowed to take its time: two seconds for a close, and the drain timeout of the commands below.
const BOUND: Duration = Duration::from_secs(20);

/// How many runs at a time: they mostly wait.
const WORKERS: usize = 4;

/// How many of the calls of one kind are made to fail, one a run: the first ones, for they are the most different.
const ORDINALS: [usize; 7] = [1, 2, 3, 4, 6, 9, 14];

/// System calls, and what their man pages say that they can fail with. EAGAIN is missing where it would be a lie: a socket that
/// says it although bytes wait raises no new edge.
const CALLS: &[(&str, &[&str])] = &[
    ("accept4", &["EINTR", "ECONNABORTED", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EPERM", "EPROTO", "EINVAL"]),
    ("bind", &["EACCES", "EADDRINUSE", "EADDRNOTAVAIL", "EINVAL"]),
    ("clone3", &["EAGAIN", "ENOMEM"]),
    // Files are synchronised before they are closed, so this is not the place to hear of a full disk.
    ("close", &["EINTR"]),
    ("connect", &["ECONNREFUSED", "ENETUNREACH", "EADDRNOTAVAIL", "EINTR", "ETIMEDOUT"]),
    ("epoll_create1", &["EMFILE", "ENOMEM"]),
    ("epoll_ctl", &["ENOMEM", "ENOSPC", "EPERM"]),
    ("epoll_wait", &["EINTR", "EBADF"]),
    ("fcntl", &["EINVAL", "EINTR"]),
    ("getsockname", &["ENOBUFS"]),
    ("getsockopt", &["ENOPROTOOPT"]),
    ("ioctl", &["EIO", "ENOTTY"]),
    ("listen", &["EADDRINUSE", "EOPNOTSUPP"]),
    ("openat", &["EACCES", "EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EINTR"]),
    ("poll", &["EINTR", "ENOMEM"]),
    ("prlimit64", &["EPERM", "EINVAL"]),
    ("read", &["EINTR", "EIO", "ECONNRESET"]),
    ("recvfrom", &["EINTR", "ECONNREFUSED", "ECONNRESET", "ENOMEM", "ETIMEDOUT"]),
    ("recvmsg", &["EINTR", "ENOMEM", "EACCES"]),
    ("rename", &["EACCES", "ENOSPC", "EXDEV"]),
    ("renameat2", &["EACCES", "ENOSPC", "EXDEV"]),
    ("sendmsg", &["EINTR", "EPERM", "ENOBUFS", "EMSGSIZE"]),
    ("sendto", &["EINTR", "ECONNRESET", "EPIPE", "ENOBUFS", "ENOMEM", "EPERM"]),
    ("setsockopt", &["ENOPROTOOPT", "EPERM", "ENOMEM"]),
    ("shutdown", &["ENOTCONN", "ENOBUFS"]),
    ("socket", &["EACCES", "EAFNOSUPPORT", "EMFILE", "ENFILE", "ENOBUFS"]),
    ("socketpair", &["EMFILE", "ENFILE"]),
    ("statx", &["EACCES", "ENOMEM"]),
    ("unlink", &["EACCES", "EBUSY", "EROFS"]),
    ("write", &["EINTR", "EIO", "ENOSPC", "EPIPE", "EFBIG"]),
    ("writev", &["EINTR", "EIO", "ENOSPC"]),
];

/// One run's failure: the `ordinal`th call of each thread, alone or with all that follow.
#[derive(Clone, Copy)]
struct Injection {
    call: &'static str,
    errno: &'static str,
    ordinal: usize,
    for_ever: bool,
}

impl Injection {
    /// Those that meet a call that is made, given the trace of a run in which all went well.
    fn all(trace: &str) -> Vec<Injection> {
        let mut all = Vec::new();
        for &(call, errnos) in CALLS {
            let made = trace.matches(&format!(" {call}(")).count();
            for &errno in errnos {
                for ordinal in ORDINALS.into_iter().filter(|&ordinal| ordinal <= made) {
                    // An interruption that never ends leaves nothing to do but to be interrupted.
                    let modes: &[bool] = if errno == "EINTR" { &[false] } else { &[false, true] };
                    all.extend(modes.iter().map(|&for_ever| Injection { call, errno, ordinal, for_ever }));
                }
            }
        }
        all
    }

    /// None: all goes well, and the calls are written to the trace in the run's room.
    const NONE: Injection = Injection { call: "all", errno: "", ordinal: 0, for_ever: false };

    /// Runs `echoloop` with it. The process is the child itself: strace steps aside.
    fn command(self, room: &Path, args: &[&str]) -> Command {
        let mut command = Command::new("strace");
        let Injection { call, errno, ordinal, for_ever } = self;
        command.args(["-D", "-f", "-qqq", "-e", &format!("trace={call}"), "-e", "signal=none", "-o"]);
        if ordinal == 0 {
            command.arg(room.join("trace"));
        } else {
            let plus = if for_ever { "+" } else { "" };
            command.args(["/dev/null", "-e", &format!("inject={call}:error={errno}:when={ordinal}{plus}")]);
        }
        command.args(["--", ECHOLOOP]).args(args);
        command
    }
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Injection { call, errno, ordinal, for_ever } = self;
        write!(f, "{call} {ordinal}{} {errno}", if *for_ever { "+" } else { "" })
    }
}

/// What a client saw of its exchange.
#[derive(Debug, PartialEq)]
enum Seen {
    /// All of it came back.
    Whole,
    /// An end or an error, after nothing or a beginning of it.
    Ended,
    /// Nothing more within the time.
    Silence,
    /// Other bytes than were sent.
    Wrong,
}

/// Sends `bytes` and looks at what comes back, until the peer's end.
fn exchange(mut peer: impl Read + Write, bytes: &[u8], finish: impl FnOnce(&mut dyn Write)) -> Seen {
    if peer.write_all(bytes).is_err() {
        return Seen::Ended;
    }
    finish(&mut peer);
    let (mut echo, mut piece) = (Vec::new(), [0; 4096]);
    let seen = loop {
        match peer.read(&mut piece) {
            Ok(0) => break Seen::Ended,
            Ok(count) => echo.extend_from_slice(&piece[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break Seen::Silence,
            Err(_) => break Seen::Ended,
        }
        if echo.len() >= bytes.len() {
            break Seen::Whole;
        }
    };
    if bytes.starts_with(&echo) { seen } else { Seen::Wrong }
}

const ENOUGH: Duration = Duration::from_secs(3);

fn over_tcp(addr: &str, bytes: &[u8]) -> Seen {
    let Ok(peer) = TcpStream::connect(addr) else { return Seen::Ended };
    peer.set_read_timeout(Some(ENOUGH)).unwrap();
    exchange(&peer, bytes, |_| {})
}

fn over_unix(path: &Path, bytes: &[u8]) -> Seen {
    let Ok(peer) = UnixStream::connect(path) else { return Seen::Ended };
    peer.set_read_timeout(Some(ENOUGH)).unwrap();
    exchange(&peer, bytes, |_| {})
}

/// A datagram may be lost: it is sent three times.
fn over_udp(addr: &str, bytes: &[u8]) -> Seen {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut echo = [0; 4096];
    for _ in 0..3 {
        if socket.connect(addr).is_ok() && socket.send(bytes).is_ok() {
            match socket.recv(&mut echo) {
                Ok(count) if &echo[..count] == bytes => return Seen::Whole,
                Ok(_) => return Seen::Wrong,
                Err(_) => {}
            }
        }
    }
    Seen::Ended
}

/// A child that is killed when the run is over, whatever it found.
struct Traced(Child);

impl Traced {
    fn end_within(&mut self, bound: Duration) -> Option<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status);
            }
            if began.elapsed() > bound {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Processor time of its main thread, while it lives.
    fn processor_time(&self) -> Option<Duration> {
        let status = fs::read_to_string(format!("/proc/{}/schedstat", self.0.id())).ok()?;
        Some(Duration::from_nanos(status.split(' ').next()?.parse().ok()?))
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.0), signal); // it may have ended
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is wrong with how a process ended, if anything. 127 is the dynamic loader's, which was here first.
fn judge(status: Option<ExitStatus>, errors: &str, allowed: &[i32]) -> Result<(), String> {
    let Some(status) = status else { return Err("it hangs".to_owned()) };
    if errors.contains("panicked") || errors.contains("fatal runtime") {
        return Err("it panicked".to_owned());
    }
    match status.code() {
        Some(127) => Ok(()),
        Some(code) if allowed.contains(&code) => Ok(()),
        Some(code) => Err(format!("exit code {code}")),
        None => Err(format!("killed by signal {:?}", status.signal())),
    }
}

/// Serves on every kind of socket, is spoken to, and is stopped.
fn serve(injection: Injection, room: &Path) -> Result<(), String> {
    let socket = room.join("socket");
    let (output, errors) = (room.join("output"), room.join("errors"));
    let unix = format!("unix:{}", socket.display());
    let args =
        ["serve", "127.0.0.1:0", "udp:127.0.0.1:0", &unix, "--http", "127.0.0.1:0", "--print", "--drain-timeout", "1s"];
    let mut command = injection.command(room, &args);
    command.stdin(Stdio::null()).stdout(File::create(&output).unwrap()).stderr(File::create(&errors).unwrap());
    let mut server = Traced(command.spawn().unwrap());
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    // It serves when the lines are out, or would have been: they may have failed themselves.
    let began = Instant::now();
    let address = |prefix: &str| {
        let said = read(&output);
        said.lines().find_map(|line| Some(line.strip_prefix(prefix)?.trim_end_matches('/').to_owned()))
    };
    while address("inside: http://").is_none() && server.0.try_wait().unwrap().is_none() && began.elapsed() < ENOUGH {
        thread::sleep(Duration::from_millis(5));
    }
    let mut seen = Vec::new();
    let bytes = noise(injection.ordinal as u64, 3000);
    if let Some(addr) = address("listening on 1").map(|rest| format!("1{rest}")) {
        seen.extend((0..3).map(|_| over_tcp(&addr, &bytes)));
    }
    seen.extend(socket.exists().then(|| over_unix(&socket, &bytes)));
    if let Some(addr) = address("listening on udp:") {
        seen.push(over_udp(&addr, &bytes));
    }
    if let Some(addr) = address("inside: http://") {
        let request = format!("GET /livez HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
        if let Ok(mut peer) = TcpStream::connect(&addr) {
            peer.set_read_timeout(Some(ENOUGH)).unwrap();
            let mut answer = Vec::new();
            let end = peer.write_all(request.as_bytes()).and_then(|()| peer.read_to_end(&mut answer));
            seen.push(match end {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Seen::Silence,
                Ok(_) if answer.starts_with(b"HTTP/1.1 200 OK") => Seen::Whole,
                Ok(0) | Err(_) => Seen::Ended,
                Ok(_) => Seen::Wrong,
            });
        }
    }
    let used = server.processor_time();
    server.signal(Signal::TERM);
    // If the loop cannot be woken, ever, then the second signal still ends it.
    if injection.for_ever && server.end_within(ENOUGH).is_none() {
        server.signal(Signal::TERM);
    }
    let status = server.end_within(BOUND);
    let said = read(&errors);
    let tell = |why: String| {
        format!("{injection}: {why}; seen {seen:?}; log:\n{}", said.lines().take(8).collect::<Vec<_>>().join("\n"))
    };
    // Stopped before it had taken the signal over, it is ended by the signal.
    let early = seen.is_empty() && status.is_some_and(|status| status.signal() == Some(Signal::TERM.as_raw()));
    if !early {
        judge(status, &said, &[0, 1, 143]).map_err(&tell)?;
    }
    if used.is_some_and(|used| used > Duration::from_millis(1500)) {
        return Err(tell(format!("it spins: {used:?} of processor time")));
    }
    if seen.contains(&Seen::Wrong) {
        return Err(tell("wrong bytes".to_owned()));
    }
    // One call that failed is one client's, at most; and one that was interrupted is nobody's.
    let hurt = seen.iter().filter(|&seen| *seen != Seen::Whole).count();
    let allowed = if injection.errno == "EINTR" { 0 } else { 1 };
    if !injection.for_ever && status.is_some_and(|status| status.code() == Some(0)) && hurt > allowed {
        return Err(tell(format!("{hurt} clients were hurt")));
    }
    if !injection.for_ever && seen.contains(&Seen::Silence) {
        return Err(tell("a client was forgotten".to_owned()));
    }
    Ok(())
}

/// The line client, to a server that is well: it says that all came back only if it did.
fn connect(injection: Injection, room: &Path, addr: &str) -> Result<(), String> {
    let (input, output, errors) = (room.join("input"), room.join("output"), room.join("errors"));
    let text: String = (0..200).map(|line| format!("line {line}\n")).collect();
    fs::write(&input, &text).unwrap();
    if injection.call == "write" && injection.for_ever {
        return Ok(()); // it would hit the eventfd that wakes the loop, which never fails (eventfd(2)); tests/connect.rs fills disks
    }
    let mut command = injection.command(room, &["connect", addr, "--timeout", "3s"]);
    command
        .stdin(File::open(&input).unwrap())
        .stdout(File::create(&output).unwrap())
        .stderr(File::create(&errors).unwrap());
    let mut client = Traced(command.spawn().unwrap());
    let status = client.end_within(BOUND);
    let (back, said) = (fs::read(&output).unwrap(), String::from_utf8_lossy(&fs::read(&errors).unwrap()).into_owned());
    let tell =
        |why: String| format!("{injection}: {why}; {} bytes of {} came back; it said:\n{said}", back.len(), text.len());
    judge(status, &said, &[0, 1]).map_err(&tell)?;
    if !text.as_bytes().starts_with(&back) {
        return Err(tell("wrong bytes".to_owned()));
    }
    match status.unwrap().code() {
        Some(0) if injection.errno == "EPIPE" && injection.call == "write" => Ok(()), // the reader has seen enough
        Some(0) if back.len() < text.len() => Err(tell("it says that all is well".to_owned())),
        Some(1) if said.trim().is_empty() && !matches!(injection.call, "write" | "writev") => {
            Err(tell("it fails without a word".to_owned()))
        }
        _ => Ok(()),
    }
}

/// A short run of the load generator, to a server that is well: its account balances or it says why there is none.
fn bench(injection: Injection, room: &Path, addr: &str) -> Result<(), String> {
    let (output, errors, json) = (room.join("output"), room.join("errors"), room.join("run.json"));
    let _ = fs::remove_file(&json);
    let path = json.display().to_string();
    let args = ["bench", addr, "-c", "4", "-n", "200", "-t", "2s", "--timeout", "1s", "--json", &path];
    let mut command = injection.command(room, &args);
    command.stdin(Stdio::null()).stdout(File::create(&output).unwrap()).stderr(File::create(&errors).unwrap());
    let mut generator = Traced(command.spawn().unwrap());
    let status = generator.end_within(BOUND);
    let said = String::from_utf8_lossy(&fs::read(&errors).unwrap()).into_owned();
    let tell = |why: String| format!("{injection}: {why}; it said:\n{said}");
    judge(status, &said, &[0, 1, 3]).map_err(&tell)?;
    match fs::read(&json) {
        Ok(bytes) => {
            let run: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| tell(error.to_string()))?;
            if status.unwrap().code() == Some(0)
                && run["outcomes"]["answered"].as_u64() != run["outcomes"]["due"].as_u64()
            {
                return Err(tell(format!("all is well, it says: {}", run["outcomes"])));
            }
            Ok(())
        }
        Err(_) if status.unwrap().code() == Some(0) => {
            Err(tell("all is well, it says, and there is no result".to_owned()))
        }
        Err(_) => Ok(()),
    }
}

/// Tortures with every injection, a few at a time, and tells all that went wrong.
fn torture(run: impl Fn(Injection, &Path) -> Result<(), String> + Sync) {
    let room = tempfile::tempdir().unwrap();
    run(Injection::NONE, room.path()).unwrap();
    let all = Injection::all(&fs::read_to_string(room.path().join("trace")).unwrap());
    let next = AtomicUsize::new(0);
    let failures: Vec<String> = thread::scope(|scope| {
        let worker = || {
            let room = tempfile::tempdir().unwrap();
            let mut failures = Vec::new();
            while let Some(&injection) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                failures.extend(run(injection, room.path()).err());
                let _ = fs::remove_file(room.path().join("socket"));
            }
            failures
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    println!("{} runs", all.len());
    assert!(failures.is_empty(), "{} of {} went wrong:\n\n{}", failures.len(), all.len(), failures.join("\n\n"));
}

#[test]
#[ignore = "needs strace, and minutes"]
fn server_survives_every_failing_call() {
    torture(serve);
}

#[test]
#[ignore = "needs strace, and minutes"]
fn client_tells_the_truth_with_failing_calls() {
    let server = Server::start(&[]);
    torture(|injection, room| connect(injection, room, &server.addr().to_string()));
}

#[test]
#[ignore = "needs strace, and minutes"]
fn generator_tells_the_truth_with_failing_calls() {
    let server = Server::start(&[]);
    torture(|injection, room| bench(injection, room, &server.addr().to_string()));
}
