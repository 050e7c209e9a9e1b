//! The server behind those that operators put in front of it: HAProxy, nginx, systemd. They are used as they are installed.
//!
//! `cargo test --test counterparts -- --ignored` runs all of it.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Socket, Type};

/// Counterparts listen at addresses that no other test uses, so that a port which is free stays so until they take it.
const FRONT: [&str; 4] = ["127.0.7.1", "127.0.7.2", "127.0.7.3", "127.0.7.4"];

fn free_port(host: &str) -> SocketAddr {
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap()
}

/// A connection from this address of the loopback.
fn dial_from(source: &str, addr: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&format!("{source}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.connect(&addr.into()).unwrap();
    let peer = TcpStream::from(socket);
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer
}

/// What has come back of these bytes, or nothing if the connection was closed instead.
fn answer(mut peer: TcpStream, bytes: &[u8]) -> Option<Vec<u8>> {
    peer.write_all(bytes).ok()?;
    let mut echo = vec![0; bytes.len()];
    peer.read_exact(&mut echo).ok().map(|()| echo)
}

/// A counterpart, killed when it is dropped.
struct Counterpart(Child);

impl Counterpart {
    fn start(command: &mut Command) -> Counterpart {
        let child = command.stdin(Stdio::null()).spawn();
        Counterpart(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Counterpart {
    fn drop(&mut self) {
        // Not the strongest one at first: nginx has children, which it ends.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let began = Instant::now();
        while began.elapsed() < PATIENCE && matches!(self.0.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(2));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// HAProxy with these sections, and a socket to ask it at.
struct Haproxy {
    directory: tempfile::TempDir,
    running: Vec<Counterpart>,
}

impl Haproxy {
    fn start(sections: &str) -> Haproxy {
        let directory = tempfile::tempdir().unwrap();
        let stats = directory.path().join("stats");
        let config = format!(
            "global\n  stats socket {} mode 600 level admin expose-fd listeners\n  hard-stop-after 30s\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n{sections}\n",
            stats.display()
        );
        fs::write(directory.path().join("haproxy.cfg"), config).unwrap();
        let mut haproxy = Haproxy { directory, running: Vec::new() };
        haproxy.run(&[]);
        haproxy
    }

    /// Starts a process of it, which takes over from the one before, if there is one (management.txt, 4).
    fn run(&mut self, args: &[&str]) {
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-q").arg("-f").arg(self.directory.path().join("haproxy.cfg")).args(args);
        self.running.push(Counterpart::start(&mut command));
        wait_until("HAProxy answers", || self.ask("show info").contains(&format!("Pid: {}\n", self.pid())));
    }

    fn pid(&self) -> u32 {
        self.running.last().unwrap().0.id()
    }

    fn stats(&self) -> PathBuf {
        self.directory.path().join("stats")
    }

    fn ask(&self, question: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut socket) = UnixStream::connect(self.stats()) {
            let _ = writeln!(socket, "{question}");
            let _ = socket.read_to_string(&mut answer);
        }
        answer
    }

    /// What it says of a server of its own: UP, DOWN or the like.
    fn status(&self, server: &str) -> String {
        let stat = self.ask("show stat");
        let columns = stat.lines().next().unwrap_or_default().trim_start_matches("# ").split(',');
        let status = columns.take_while(|column| *column != "status").count();
        let line = stat.lines().find(|line| line.split(',').nth(1) == Some(server));
        line.and_then(|line| line.split(',').nth(status)).unwrap_or_default().to_owned()
    }

    fn reload(&mut self) {
        let (stats, old) = (self.stats(), self.pid().to_string());
        self.run(&["-x", stats.to_str().unwrap(), "-sf", &old]);
    }
}

#[test]
#[ignore = "needs haproxy"]
fn haproxy_tells_clients_in_both_versions() {
    for (version, keyword) in [(1, "send-proxy"), (2, "send-proxy-v2")] {
        let mut server = Server::start(&["-v", "--proxy-from", "127.0.0.1", "--deny", "127.0.0.66"]);
        let (front, back) = (free_port(FRONT[0]), server.addr());
        // Its checks open connections too: LOCAL in version 2, and in version 1 they speak for themselves.
        let haproxy = Haproxy::start(&format!(
            "listen echo\n  bind {front}\n  server one {back} {keyword} check check-send-proxy inter 50ms fastinter 50ms"
        ));
        wait_until("its checks pass", || haproxy.status("one").starts_with("UP"));
        wait_until("there are several", || server.log().matches("closed").count() >= 3);
        for client in ["127.0.0.7", "127.0.0.8"] {
            let mut peer = dial_from(client, front);
            ping(&mut peer, format!("from {client}").as_bytes());
            server.wait_for_log(client);
        }
        assert_eq!(answer(dial_from("127.0.0.66", front), b"let me in"), None, "version {version}: it is denied");
        assert!(haproxy.status("one").starts_with("UP"));
        drop(haproxy);
        let log = server.stop();
        assert!(!log.contains("header"), "version {version}: none is malformed or late\n{log}");
    }
}

#[test]
#[ignore = "needs haproxy"]
fn haproxy_moves_clients_away_during_stop_delay() {
    let mut servers = [(); 2].map(|()| Server::start(&["--http", "0", "--stop-delay", "1h"]));
    let front = free_port(FRONT[1]);
    let mut sections = format!("listen echo\n  bind {front}\n  balance roundrobin\n  option httpchk GET /readyz\n");
    for (name, server) in ["one", "two"].iter().zip(&mut servers) {
        let (echo, admin) = (server.addr(), server.inside());
        sections += &format!("  server {name} {echo} check port {} inter 50ms fall 1 rise 1\n", admin.port());
    }
    let haproxy = Haproxy::start(&sections);
    let status = |name: &str, status: &str| {
        wait_until(&format!("{name} is {status}"), || haproxy.status(name).starts_with(status));
    };
    status("one", "UP");
    status("two", "UP");
    let mut before: Vec<_> = (0..10).map(|_| dial(front)).collect();
    before.iter_mut().for_each(|peer| ping(peer, b"before"));
    assert!(servers.iter().all(|server| server.connections() >= 5));
    servers[0].signal(Signal::TERM);
    status("one", "DOWN");
    assert!(haproxy.status("two").starts_with("UP"));
    let there = servers[1].connections();
    let mut after: Vec<_> = (0..10).map(|_| dial(front)).collect();
    after.iter_mut().for_each(|peer| ping(peer, b"after"));
    before.iter_mut().for_each(|peer| ping(peer, b"nobody who was there has lost a byte"));
    assert!(servers[1].connections() >= there + 10, "all who come later are with the other one");
    let mut directly = servers[0].connect();
    ping(&mut directly, b"and who comes all the same is served");
}

#[test]
#[ignore = "needs haproxy"]
fn haproxy_reloads_without_losing_connections() {
    let server = Server::start(&["--proxy-protocol"]);
    let front = free_port(FRONT[2]);
    let mut haproxy =
        Haproxy::start(&format!("listen echo\n  bind {front}\n  server one {} send-proxy-v2", server.addr()));
    let mut peers: Vec<_> = (0..20).map(|_| dial(front)).collect();
    for round in 0..3 {
        for (number, peer) in peers.iter_mut().enumerate() {
            ping(peer, format!("{number} before reload {round}").as_bytes());
        }
        haproxy.reload();
        for (number, peer) in peers.iter_mut().enumerate() {
            ping(peer, format!("{number} after reload {round}").as_bytes());
        }
        peers.extend((0..5).map(|_| dial(front)));
    }
    peers.iter_mut().for_each(|peer| ping(peer, b"with all of them"));
    drop(peers);
    wait_until("the old processes end", || haproxy.running.iter_mut().rev().skip(1).all(Counterpart::has_ended));
    server.wait_until_alone();
}

/// nginx with these servers over TCP and UDP, in the foreground.
fn nginx(directory: &Path, servers: &str) -> Counterpart {
    let told = Command::new("nginx").arg("-V").output().expect("nginx is installed").stderr;
    let told = String::from_utf8_lossy(&told).into_owned();
    let modules = told.split_whitespace().find_map(|word| word.strip_prefix("--modules-path=")).unwrap_or("modules");
    let load = match told.contains("--with-stream=dynamic") {
        true => format!("load_module {modules}/ngx_stream_module.so;\n"),
        false => String::new(),
    };
    let at = directory.display();
    let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    let config = format!(
        "{load}{user}daemon off;\npid {at}/pid;\nerror_log {at}/error.log;\nworker_processes 1;\n\
         events {{ worker_connections 200; }}\nstream {{\n{servers}\n}}\n"
    );
    fs::write(directory.join("nginx.conf"), config).unwrap();
    let mut command = Command::new("nginx");
    command
        .arg("-p")
        .arg(directory)
        .arg("-c")
        .arg(directory.join("nginx.conf"))
        .arg("-e")
        .arg(directory.join("error.log"));
    Counterpart::start(&mut command)
}

#[test]
#[ignore = "needs nginx with its stream module"]
fn nginx_proxies_streams_and_datagrams_through_reload() {
    let mut server = Server::start_on(&["127.0.0.1:0", "udp:127.0.0.1:0"], &["-v", "--proxy-from", "127.0.0.1"]);
    let (front, directory) = (free_port(FRONT[3]), tempfile::tempdir().unwrap());
    let (tcp, udp) = (server.addrs[0], server.addrs[1]);
    let nginx = nginx(
        directory.path(),
        &format!(
            "server {{ listen {front}; proxy_pass {tcp}; proxy_protocol on; }}\n\
             server {{ listen {front} udp; proxy_pass {udp}; proxy_timeout 10s; }}"
        ),
    );
    wait_until("nginx listens", || TcpStream::connect(front).is_ok());
    let mut peer = dial_from("127.0.0.7", front);
    ping(&mut peer, b"over nginx");
    server.wait_for_log("127.0.0.7");
    let port = UdpSocket::bind("127.0.0.1:0").unwrap();
    port.connect(front).unwrap();
    port.set_read_timeout(Some(PATIENCE)).unwrap();
    let datagram = |bytes: &[u8]| {
        port.send(bytes).unwrap();
        let mut echo = [0; 2000];
        let length = port.recv(&mut echo).unwrap();
        assert_eq!(&echo[..length], bytes);
    };
    (0..10).for_each(|number: u8| datagram(&[number; 1400]));
    nginx.signal(Signal::HUP);
    let log = directory.path().join("error.log");
    wait_until("nginx has read its configuration again", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("exiting") || log.contains("gracefully shutting down"))
            || TcpStream::connect(front).is_ok()
    });
    ping(&mut peer, &noise(1, 1 << 20));
    ping(&mut dial_from("127.0.0.8", front), b"after a reload");
    server.wait_for_log("127.0.0.8");
    datagram(b"after a reload");
    drop((peer, nginx));
    server.wait_until_alone();
    server.stop();
}

/// The server, once systemd's tool has seen somebody come to its socket of the file system.
fn activated(args: &[&str], trigger: &Path, lines: usize) -> (Counterpart, Vec<String>, UnixStream) {
    let mut command = Command::new("systemd-socket-activate");
    command.arg("-l").arg(trigger).args(args).args([ECHOLOOP, "serve"]).stdout(Stdio::piped());
    let mut started = Counterpart::start(&mut command);
    wait_until("it listens", || trigger.exists());
    let mut peer = UnixStream::connect(trigger).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    ping(&mut peer, b"who came first starts it, and is served");
    let mut stdout = BufReader::new(started.0.stdout.take().unwrap());
    let read = (0..lines).map(|_| {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line:?}")).to_owned()
    });
    let endpoints = read.collect();
    (started, endpoints, peer)
}

#[test]
#[ignore = "needs systemd-socket-activate"]
fn systemd_hands_over_several_named_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("first"), directory.path().join("second"));
    let [v4, v6] = ["127.0.7.5", "::1"].map(|host| free_port(host).to_string());
    let args = ["-l", &v4, "-l", &v6, "-l", second.to_str().unwrap(), "--fdname=a:tcp4:tcp6:b"];
    let (mut started, endpoints, peer) = activated(&args, &first, 4);
    assert_eq!(endpoints[0], format!("unix:{}", first.display()));
    assert_eq!(endpoints[3], format!("unix:{}", second.display()));
    for endpoint in &endpoints[1..3] {
        ping(&mut dial(endpoint.parse().unwrap()), b"over TCP");
    }
    ping(&mut UnixStream::connect(&second).unwrap(), b"over the second file");
    drop(peer);
    started.signal(Signal::TERM);
    wait_until("it ends", || started.has_ended());
    assert_eq!(started.0.wait().unwrap().code(), Some(0));
    assert!(first.exists() && second.exists(), "the files are systemd's, which may start it again");
}

#[test]
#[ignore = "needs systemd-socket-activate"]
fn systemd_hands_over_datagram_sockets() {
    let sockets = ["127.0.7.6", "127.0.7.7"].map(|host| UdpSocket::bind((host, 0)).unwrap().local_addr().unwrap());
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--datagram").args(["--fdname=a:b"]);
    sockets.iter().for_each(|socket| _ = command.arg("-l").arg(socket.to_string()));
    command.args([ECHOLOOP, "serve"]).stdout(Stdio::piped());
    let mut started = Counterpart::start(&mut command);
    let port = UdpSocket::bind("127.0.0.1:0").unwrap();
    port.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    for socket in sockets {
        let mut echo = [0; 100];
        wait_until("a datagram is answered", || {
            let _ = port.send_to(b"anybody?", socket); // refused until it is bound
            port.recv_from(&mut echo).is_ok_and(|(length, from)| &echo[..length] == b"anybody?" && from == socket)
        });
    }
    let mut stdout = BufReader::new(started.0.stdout.take().unwrap());
    for socket in sockets {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, format!("listening on udp:{socket}\n"));
    }
    started.signal(Signal::TERM);
    wait_until("it ends", || started.has_ended());
    assert_eq!(started.0.wait().unwrap().code(), Some(0));
}
