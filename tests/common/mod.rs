//! What the tests of the program share: servers as child processes, and peers for them.
#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub const ECHOLOOP: &str = env!("CARGO_BIN_EXE_echoloop");

/// How long a test waits for what must come. Only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running `echoloop serve`, killed when it is dropped.
pub struct Server {
    child: Child,
    /// Where it says that it listens.
    pub endpoints: Vec<String>,
    /// Those of them that are numbers.
    pub addrs: Vec<SocketAddr>,
    stdout: Option<BufReader<ChildStdout>>,
    log: Arc<Mutex<String>>,
    /// Descriptors that it had open before the first connection.
    descriptors: usize,
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Has processes that are started from here on obey SIGINT, SIGHUP and SIGQUIT, though these tests may have been started to
/// ignore them (`nohup cargo test &`): what is ignored is inherited, and what is handled is not (execve(2)). A handler that
/// does nothing ignores them still.
pub fn pass_no_ignored_signals_on() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
        for signal in [Signal::INT, Signal::HUP, Signal::QUIT].map(Signal::as_raw) {
            if ignored & (1 << (signal - 1)) != 0 {
                signal_hook::flag::register(signal, Arc::default()).unwrap();
            }
        }
    });
}

impl Server {
    /// Starts a server on a free port of 127.0.0.1.
    pub fn start(flags: &[&str]) -> Server {
        Server::start_on(&["127.0.0.1:0"], flags)
    }

    pub fn start_on(addresses: &[&str], flags: &[&str]) -> Server {
        let mut command = Command::new(ECHOLOOP);
        command.arg("serve").args(flags).args(addresses);
        Server::spawn(command, addresses.len())
    }

    /// Starts a server with room for so many open files.
    pub fn start_limited(open_files: u32, flags: &str) -> Server {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {open_files}; exec {ECHOLOOP} serve 127.0.0.1:0 {flags}")]);
        Server::spawn(command, 1)
    }

    pub fn spawn(mut command: Command, listeners: usize) -> Server {
        command.stdin(Stdio::null());
        Server::spawn_as_it_is(command, listeners)
    }

    /// The same, with the standard input that the command has.
    pub fn spawn_as_it_is(mut command: Command, listeners: usize) -> Server {
        pass_no_ignored_signals_on();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (errors, sink) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                let mut log = sink.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut endpoints = Vec::new();
        for _ in 0..listeners {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            let endpoint = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}: {log:?}"));
            endpoints.push(endpoint.trim().to_owned());
        }
        let number = |endpoint: &String| endpoint.strip_prefix("udp:").unwrap_or(endpoint).parse().ok();
        let addrs = endpoints.iter().filter_map(number).collect();
        let descriptors = descriptors(child.id());
        Server { child, endpoints, addrs, stdout: Some(stdout), log, descriptors }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    pub fn connect(&self) -> TcpStream {
        dial(self.addr())
    }

    /// Connections, each verified to be served.
    pub fn connect_many(&self, count: usize) -> Vec<TcpStream> {
        let mut peers: Vec<_> = (0..count).map(|_| self.connect()).collect();
        for peer in &mut peers {
            ping(peer, b"here?");
        }
        peers
    }

    /// The number of its connections.
    pub fn connections(&self) -> usize {
        descriptors(self.pid()).saturating_sub(self.descriptors)
    }

    /// Waits until it has so many connections.
    pub fn wait_for_connections(&self, count: usize) {
        wait_until("connections", || self.connections() >= count);
    }

    /// Waits until it has no connection left.
    pub fn wait_until_alone(&self) {
        wait_until("the server has no connection left", || self.connections() == 0);
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn wait_for_log(&self, text: &str) {
        wait_until(&format!("{text:?} in the log"), || self.log().contains(text));
    }

    /// The next line it prints.
    pub fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }

    /// Where it shows what goes on inside. To be asked for once, right after the start.
    pub fn inside(&mut self) -> SocketAddr {
        let line = self.read_line();
        let url = line.trim().strip_prefix("inside: http://").unwrap_or_else(|| panic!("{line:?}"));
        url.trim_end_matches('/').parse().unwrap()
    }

    /// What it prints from here on.
    pub fn take_stdout(&mut self) -> BufReader<ChildStdout> {
        self.stdout.take().unwrap()
    }

    /// Closes the reading end of its standard output.
    pub fn close_stdout(&mut self) {
        self.stdout = None;
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it has ended, and returns how, with its last log.
    pub fn wait(&mut self) -> (ExitStatus, String) {
        let mut status = None;
        wait_until("the server ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        // The thread that reads the log holds the other reference until the pipe has ended.
        wait_until("the log ends", || Arc::strong_count(&self.log) == 1);
        (status.unwrap(), self.log())
    }

    /// Asks it to stop, and returns its last log.
    pub fn stop(&mut self) -> String {
        self.signal(Signal::TERM);
        let (status, log) = self.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        log
    }

    /// Bytes of memory that it has resident.
    pub fn resident(&self) -> u64 {
        resident(self.pid())
    }

    /// Processor time that it has used.
    pub fn processor_time(&self) -> Duration {
        let status = fs::read_to_string(format!("/proc/{}/schedstat", self.pid())).unwrap();
        Duration::from_nanos(status.split(' ').next().unwrap().parse().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = self.log();
            let from = log.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
            eprintln!("the server's log:\n{}", &log[from..]);
        }
    }
}

/// Bytes of memory that a process has resident.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

pub fn dial(addr: SocketAddr) -> TcpStream {
    let peer = TcpStream::connect(addr).unwrap();
    peer.set_nodelay(true).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.set_write_timeout(Some(PATIENCE)).unwrap();
    peer
}

/// Sends `bytes` and receives their echo.
#[track_caller]
pub fn ping(peer: &mut (impl Read + Write), bytes: &[u8]) {
    peer.write_all(bytes).unwrap();
    receive(peer, bytes);
}

/// An address at which nobody listens, nor will: the other tests are at others.
pub fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.99:0").unwrap().local_addr().unwrap()
}

/// Gets a page over HTTP: the head of the answer, and its body.
pub fn get(addr: SocketAddr, path: &str) -> (String, String) {
    let mut peer = dial(addr);
    write!(peer, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = BufReader::new(peer);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        answer.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the answer ends with {head:?}");
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    answer.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// Closes with a reset.
pub fn reset(peer: TcpStream) {
    socket2::Socket::from(peer).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Receives `bytes`.
#[track_caller]
pub fn receive(peer: &mut impl Read, bytes: &[u8]) {
    let mut echo = vec![0; bytes.len()];
    peer.read_exact(&mut echo).unwrap();
    assert!(echo == bytes, "the echo is not what was sent");
}

/// Receives what is left until the peer closes its side.
pub fn receive_rest(peer: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).unwrap();
    rest
}

/// Bytes in which a lost, repeated or swapped piece shows, different for each seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Runs echoloop with `input` on its standard input.
pub fn echoloop(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(ECHOLOOP)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || _ = stdin.write_all(&input)); // it may have left before
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}
