//! What an operator expects of a network service: all kinds of sockets, who may come in, systemd, and seeing inside.

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

/// A datagram socket that is connected to `server`.
fn port(server: SocketAddr) -> UdpSocket {
    port_from("127.0.0.1:0", server)
}

fn port_from(local: &str, server: SocketAddr) -> UdpSocket {
    let port = UdpSocket::bind(local).unwrap();
    port.connect(server).unwrap();
    port.set_read_timeout(Some(PATIENCE)).unwrap();
    port
}

/// Sends a datagram and receives its echo.
#[track_caller]
fn ping_port(port: &UdpSocket, bytes: &[u8]) {
    port.send(bytes).unwrap();
    let mut echo = vec![0; 65_536];
    let length = port.recv(&mut echo).unwrap();
    assert!(&echo[..length] == bytes, "the echo is not what was sent");
}

/// A connection from this address of the loopback.
fn dial_from(source: &str, addr: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(source.parse().unwrap(), 0).into()).unwrap();
    socket.connect(&addr.into()).unwrap();
    let peer = TcpStream::from(socket);
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer
}

/// Whether the server has closed this connection, without having sent anything.
#[track_caller]
fn is_turned_away(peer: &mut TcpStream) -> bool {
    match peer.read(&mut [0; 100]) {
        Ok(0) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            true
        }
        Ok(_) => false,
    }
}

#[test]
fn admin_answers_when_connections_have_no_descriptor() {
    let mut server = Server::start_limited(64, "--max-connections 1000 --http 0");
    let inside = server.inside();
    let peers: Vec<_> = (0..80).map(|_| server.connect()).collect();
    server.wait_for_log("accepting pauses");
    let lookers: Vec<_> = (0..3).map(|_| dial(inside)).collect(); // who only look are no reason either
    let (head, state) = get(inside, "/state");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let (open, most) = (state["connections"].as_u64().unwrap(), state["max_connections"].as_u64().unwrap());
    assert!(open == most && (20..60).contains(&open), "{open} of {most}");
    drop((peers, lookers));
    ping(&mut server.connect(), b"there is room again");
    let log = server.stop();
    assert!(log.contains("raise it (ulimit -n); --http has its share of it"), "{log}");
}

#[test]
fn a_unix_socket_is_served_like_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    let endpoint = format!("unix:{}", path.display());
    let mut server = Server::start_on(&[&endpoint, "127.0.0.1:0"], &["--terminator", "bye"]);
    assert_eq!(server.endpoints[0], endpoint);
    let mut peer = UnixStream::connect(&path).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let bytes = noise(1, 8 << 20);
    let mut writer = peer.try_clone().unwrap();
    let sent = bytes.clone();
    let thread = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut echo = Vec::new();
    peer.read_to_end(&mut echo).unwrap();
    thread.join().unwrap();
    assert!(echo == bytes);
    ping(&mut dial(server.addr()), b"TCP beside it");
    let output = echoloop(&["connect", &endpoint], b"hello\nbye\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\nbye\n");
    let output = echoloop(&["bench", &endpoint, "-q", "-c", "300", "-n", "20000", "--warm-up", "0s"], b"");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && report.contains("300 of 300 opened"), "{report}");

    // Nobody takes it over while it is in use; the file goes with the server, and a killed server's is replaced.
    let second = echoloop(&["serve", &endpoint], b"");
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(error.contains(&endpoint) && error.contains("somebody listens on it"), "{error}");
    server.stop();
    assert!(!path.exists());
    let killed = Server::start_on(&[&endpoint], &[]);
    killed.signal(Signal::KILL);
    drop(killed);
    assert!(path.exists());
    let server = Server::start_on(&[&endpoint], &[]);
    UnixStream::connect(&path).unwrap();
    drop(server);
}

#[test]
fn a_second_server_does_not_disturb_a_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    let endpoint = format!("unix:{}", path.display());
    let server = Server::start_on(&[&endpoint], &["--once"]);
    let second = echoloop(&["serve", &endpoint], b"");
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    let output = echoloop(&["connect", &endpoint], b"the first\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "the first\n", "nobody else has used the one connection up");
    drop(server);
}

#[cfg(target_os = "linux")]
#[test]
fn an_abstract_name_is_served_dialled_and_loaded() {
    let endpoint = format!("unix:@echoloop-operator-{}", std::process::id());
    let _server = Server::start_on(&[&endpoint], &[]);
    let output = echoloop(&["connect", &endpoint], b"hello\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    let output = echoloop(&["bench", &endpoint, "-q", "-c", "5", "-n", "100", "--warm-up", "0s"], b"");
    assert!(output.status.success(), "{output:?}");
    assert!(!std::path::Path::new(endpoint.trim_start_matches("unix:")).exists());
}

#[test]
fn full_unix_backlog_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = format!("unix:{}", directory.path().join("echo.sock").display());
    let _server = Server::start_on(&[&endpoint], &["--backlog", "1"]);
    // Unlike TCP, the kernel does not try again: it says at once that there is no room.
    let output = echoloop(&["bench", &endpoint, "-q", "-c", "500", "-n", "5000", "--warm-up", "0s"], b"");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && report.contains("500 of 500 opened"), "{report}");
}

#[test]
fn datagrams_go_back_whole_to_whoever_sent_them() {
    let mut server = Server::start_on(&["udp:127.0.0.1:0", "udp:[::1]:0"], &[]);
    let (v4, v6) = (server.addrs[0], server.addrs[1]);
    let ports: Vec<_> = (0..10).map(|_| port(v4)).chain([port_from("[::1]:0", v6)]).collect();
    for (number, port) in ports.iter().enumerate() {
        for length in [0, 1, 1473, 65_507] {
            ping_port(port, &noise(number as u64, length));
        }
    }
    let log = server.stop();
    assert!(log.contains("44 datagrams") && log.contains("44 sent back") && !log.contains("dropped"), "{log}");
}

#[test]
fn datagrams_are_printed() {
    let mut server = Server::start_on(&["udp:127.0.0.1:0"], &["--print"]);
    let port = port(server.addr());
    ping_port(&port, b"hello\n");
    assert_eq!(server.read_line(), format!("{} hello\\n\n", port.local_addr().unwrap()));
}

#[test]
fn answer_comes_from_the_address_asked() {
    let server = Server::start_on(&["udp:0.0.0.0:0", "udp:[::]:0"], &[]);
    for asked in ["127.0.0.1", "127.0.0.77", "127.1.2.3"] {
        // A connected socket takes nothing from anybody else.
        ping_port(&port(SocketAddr::new(asked.parse().unwrap(), server.addrs[0].port())), b"is it you?");
    }
    ping_port(&port_from("[::1]:0", SocketAddr::new([0, 0, 0, 0, 0, 0, 0, 1].into(), server.addrs[1].port())), b"v6");
}

#[test]
fn services_that_answer_everything_are_not_answered() {
    let mut server = Server::start_on(&["udp:127.0.0.1:0"], &[]);
    let addr = server.addr();
    let silent = |port: &UdpSocket| {
        port.send(b"to be answered?").unwrap();
        // What is sent after it is answered, and it is not.
        ping_port(&self::port(addr), b"next");
        port.set_nonblocking(true).unwrap();
        assert_eq!(port.recv(&mut [0; 100]).unwrap_err().kind(), ErrorKind::WouldBlock);
    };
    // Another server on the same port, as of another machine.
    silent(&port_from(&format!("127.0.0.2:{}", addr.port()), addr));
    let mut refused = 1;
    // Ports below 1024 are the superuser's; without that the rule is tested where datagrams are.
    if let Ok(echo) = UdpSocket::bind("127.0.0.3:7") {
        echo.connect(addr).unwrap();
        silent(&echo);
        refused += 1;
    }
    let log = server.stop();
    assert!(log.contains(&format!("{refused} not answered ({refused} loop)")), "{log}");
}

#[test]
fn datagrams_have_a_rate_for_each_source() {
    let mut server = Server::start_on(&["udp:127.0.0.1:0"], &["--datagram-rate", "5", "--deny", "127.0.0.9"]);
    let addr = server.addr();
    let port = |source: &str| port_from(&format!("{source}:0"), addr);
    let began = Instant::now();
    let (greedy, modest, denied) = (port("127.0.0.1"), port("127.0.0.2"), port("127.0.0.9"));
    for _ in 0..50 {
        greedy.send(b"more").unwrap();
        denied.send(b"me too").unwrap();
    }
    ping_port(&modest, b"one will do");
    let mut answered = 0;
    greedy.set_nonblocking(true).unwrap();
    while greedy.recv(&mut [0; 100]).is_ok() {
        answered += 1;
    }
    let most = 5.0 * (1.0 + began.elapsed().as_secs_f64()) + 1.0;
    assert!(answered >= 5 && f64::from(answered) <= most, "{answered} of 50 were answered, at most {most}");
    let log = server.stop();
    assert!(log.contains("50 denied") && log.contains(" rate)"), "{log}");
}

#[test]
fn refused_client_is_closed_and_counted_by_reason() {
    let flags = ["--allow", "127.0.0.0/29", "--allow", "::1", "--deny", "127.0.0.2", "--max-per-source", "2"];
    let mut server = Server::start_on(&["127.0.0.1:0"], &flags);
    let addr = server.addr();
    assert!(is_turned_away(&mut dial_from("127.0.0.2", addr)));
    assert!(is_turned_away(&mut dial_from("127.0.0.99", addr)));
    let mut first = dial_from("127.0.0.3", addr);
    let mut second = dial_from("127.0.0.3", addr);
    ping(&mut first, b"first");
    ping(&mut second, b"second");
    assert!(is_turned_away(&mut dial_from("127.0.0.3", addr)));
    ping(&mut dial_from("127.0.0.4", addr), b"another source");
    drop(first);
    // There is room again as soon as the server has seen it.
    wait_until("there is room for another", || {
        let mut peer = dial_from("127.0.0.3", addr);
        peer.write_all(b"x").is_ok() && peer.read(&mut [0; 1]).is_ok_and(|count| count == 1)
    });
    ping(&mut second, b"still there");
    drop(second);
    let log = server.stop();
    assert!(log.contains("1 not_allowed, 1 denied") && log.contains("per_source"), "{log}");
}

#[test]
fn so_many_come_in_a_second() {
    let mut server = Server::start(&["--accept-rate", "20"]);
    let began = Instant::now();
    let mut served = 0;
    for _ in 0..200 {
        let mut peer = server.connect();
        let _ = peer.write_all(b"x");
        served += u32::from(peer.read(&mut [0; 1]).is_ok_and(|count| count == 1));
    }
    let most = 20.0 * (1.0 + began.elapsed().as_secs_f64()) + 1.0;
    assert!(served >= 20 && f64::from(served) <= most, "{served} of 200 were served, at most {most}");
    let log = server.stop();
    assert!(log.contains(&format!("{} refused ({} rate)", 200 - served, 200 - served)), "{log}");
}

/// A header of version 2 for this client (the PROXY protocol, section 2.2).
fn proxy_v2(client: [u8; 4], port: u16) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(client);
    header.extend([127, 0, 0, 1]);
    header.extend(port.to_be_bytes());
    header.extend([0, 7]);
    header
}

#[test]
fn a_proxy_tells_for_whom_it_speaks() {
    let flags = ["--proxy-protocol", "--print", "--deny", "203.0.113.0/24", "--max-per-source", "1"];
    let mut server = Server::start(&flags);
    let mut text = server.connect();
    text.write_all(b"PROXY TCP4 198.51.100.7 127.0.0.1 4711 7\r\nhello").unwrap();
    receive(&mut text, b"hello");
    assert_eq!(server.read_line(), "198.51.100.7:4711 hello\n");
    let mut binary = server.connect();
    for byte in proxy_v2([198, 51, 100, 8], 4712) {
        binary.write_all(&[byte]).unwrap(); // it may come in any pieces
    }
    ping(&mut binary, b"hi");
    assert_eq!(server.read_line(), "198.51.100.8:4712 hi\n");
    let mut health_check = server.connect();
    health_check.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    ping(&mut health_check, b"well?");
    assert_eq!(server.read_line(), format!("{} well?\n", health_check.local_addr().unwrap()));

    // The limits are for clients, and not for the proxy.
    let mut denied = server.connect();
    denied.write_all(b"PROXY TCP4 203.0.113.1 127.0.0.1 1 7\r\nhello").unwrap();
    assert!(is_turned_away(&mut denied));
    let mut again = server.connect();
    again.write_all(&proxy_v2([198, 51, 100, 8], 4713)).unwrap();
    assert!(is_turned_away(&mut again), "198.51.100.8 has its connection");
    drop(binary);
    wait_until("there is room for another", || {
        let mut peer = server.connect();
        let hello = [&proxy_v2([198, 51, 100, 8], 4714)[..], b"x"].concat();
        peer.write_all(&hello).is_ok() && peer.read(&mut [0; 1]).is_ok_and(|count| count == 1)
    });

    // Without a header nothing is echoed, nothing of a header is, and one that does not come is not waited for.
    let mut other = server.connect();
    other.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(is_turned_away(&mut other));
    let mut unfinished = server.connect();
    unfinished.write_all(b"PROXY TCP4 198.51").unwrap();
    unfinished.shutdown(Shutdown::Write).unwrap();
    assert!(is_turned_away(&mut unfinished));
    // A balancer's check connects, and leaves: it gets an end, and no reset.
    let mut bare_check = server.connect();
    bare_check.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bare_check.read(&mut [0; 1]).unwrap(), 0);
    let began = Instant::now();
    assert!(is_turned_away(&mut server.connect()));
    assert!(began.elapsed() >= Duration::from_secs(4), "it had time");
    ping(&mut text, b"not disturbed");
    drop((text, health_check));
    let log = server.stop();
    assert!(log.contains("1 denied") && log.contains("3 header"), "{log}");
}

#[test]
fn processes_share_a_port() {
    let mut first = Server::start(&["--reuse-port", "--http", "0"]);
    let addr = first.addr().to_string();
    let inside = first.inside().to_string();
    let refused = echoloop(&["serve", &addr, "--reuse-port", "--http", &inside], b"");
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && error.contains(&inside), "who looks must know at whom: {error}");
    let second = Server::start_on(&[&addr], &["--reuse-port"]);
    let refused = echoloop(&["serve", &addr], b"");
    assert_eq!(refused.status.code(), Some(1), "without the option the address is in use");
    let peers = first.connect_many(200);
    assert_eq!(first.connections() + second.connections(), 200);
    // The chance that one of them gets fewer by hashing is less than 1 in 10^20.
    assert!(first.connections() >= 30 && second.connections() >= 30);
    drop(peers);
}

/// A program that is started with this socket as descriptor 3, as systemd starts one.
fn activated(socket: impl Into<OwnedFd>, args: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec env LISTEN_PID=$$ LISTEN_FDS=1 {ECHOLOOP} {args} 3<&0 0</dev/null")]);
    command.stdin(Stdio::from(socket.into()));
    command
}

/// `Server::spawn` closes standard input, where the socket is passed.
fn start_activated(socket: impl Into<OwnedFd>, args: &str, listeners: usize) -> Server {
    Server::spawn_as_it_is(activated(socket, args), listeners)
}

#[test]
fn sockets_that_a_supervisor_hands_over_are_used() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = tcp.local_addr().unwrap();
    let mut early = dial(addr); // before there is a server
    early.write_all(b"early").unwrap();
    let mut server = start_activated(tcp, "serve", 1);
    assert_eq!(server.addrs, [addr], "and no default address beside it");
    receive(&mut early, b"early");
    drop(early);
    server.stop();

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handed.sock");
    let mut server = start_activated(UnixListener::bind(&path).unwrap(), "serve 127.0.0.1:0", 2);
    assert_eq!(server.endpoints[0], format!("unix:{}", path.display()));
    let mut peer = UnixStream::connect(&path).unwrap();
    peer.write_all(b"x").unwrap();
    peer.read_exact(&mut [0; 1]).unwrap();
    ping(&mut server.connect(), b"beside it");
    server.stop();
    assert!(path.exists(), "the file is its maker's");

    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = udp.local_addr().unwrap();
    let mut server = start_activated(udp, "serve", 1);
    ping_port(&port(addr), b"datagram");
    server.stop();
}

#[test]
fn descriptor_handed_over_by_mistake_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = dial(listener.local_addr().unwrap());
    let file = fs::File::open("/dev/null").unwrap();
    for (socket, cause) in [(OwnedFd::from(connection), "Accept=no"), (file.into(), "neither")] {
        let output = activated(socket, "serve").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("descriptor 3 of LISTEN_FDS") && error.contains(cause), "{error}");
    }
}

#[test]
fn systemd_activates_it_where_there_is_systemd() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("activated.sock");
    if Command::new("systemd-socket-activate").arg("--version").output().is_err() {
        eprintln!("systemd-socket-activate is not installed");
        return;
    }
    let mut command = Command::new("systemd-socket-activate");
    command.arg("-l").arg(&path).args([ECHOLOOP, "serve"]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    // It starts the server when the first connection comes.
    let mut peer = None;
    wait_until("it listens", || {
        peer = UnixStream::connect(&path).ok();
        peer.is_some()
    });
    let mut peer = peer.unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    ping(&mut peer, b"activated");
    drop(peer);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn supervisor_is_told_ready_alive_and_stopping() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(ECHOLOOP);
    command.args(["serve", "127.0.0.1:0"]).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut server = Server::spawn(command, 1);
    let next = || {
        let mut buffer = [0; 1000];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let ready = next();
    assert!(ready.contains("READY=1") && ready.contains(&format!("STATUS=serving on {}", server.addr())), "{ready}");
    // While it is idle, and while it is not.
    assert!(next().contains("WATCHDOG=1"));
    let mut peer = server.connect();
    ping(&mut peer, b"busy");
    let began = Instant::now();
    assert!(next().contains("WATCHDOG=1"));
    // Stopped, as a loop that hangs, it gives no sign of life.
    server.signal(Signal::STOP);
    let status = format!("/proc/{}/status", server.pid());
    wait_until("it is stopped", || fs::read_to_string(&status).unwrap().contains("State:\tT"));
    socket.set_nonblocking(true).unwrap();
    while socket.recv(&mut [0; 1000]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    assert!(socket.recv(&mut [0; 1000]).is_err(), "after {:?}", began.elapsed());
    server.signal(Signal::CONT);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(next().contains("WATCHDOG=1"));
    drop(peer);
    server.signal(Signal::TERM);
    let mut last = next();
    while last.contains("WATCHDOG=1") {
        last = next();
    }
    assert!(last.contains("STOPPING=1"), "{last}");
    assert_eq!(server.wait().0.code(), Some(0));
}

/// A server that would go on for an hour after the first signal, has been sent one, and has said so.
fn stopping(addresses: &[&str], flags: &[&str]) -> (Server, SocketAddr) {
    let mut server = Server::start_on(addresses, &[&["--http", "0", "--stop-delay", "1h"], flags].concat());
    let inside = server.inside();
    assert!(get(inside, "/readyz").0.starts_with("HTTP/1.1 200"));
    server.signal(Signal::TERM);
    server.wait_for_log("SIGTERM: stopping in 1h, and serving until then");
    (server, inside)
}

#[test]
fn delayed_stop_is_told_and_serves_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo");
    let unix = format!("unix:{}", path.display());
    let (mut server, inside) = stopping(&["127.0.0.1:0", "udp:127.0.0.1:0", &unix], &[]);
    let (head, said) = get(inside, "/readyz");
    assert!(head.starts_with("HTTP/1.1 503") && said == "stopping\n", "{head}{said}");
    assert!(get(inside, "/livez").0.starts_with("HTTP/1.1 200"), "it is alive");
    assert_eq!(metric(&get(inside, "/metrics").1, "echoloop_stopping"), 1.0);
    let state: serde_json::Value = serde_json::from_str(&get(inside, "/state").1).unwrap();
    assert_eq!((&state["stopping"], state["listening"].as_array().unwrap().len()), (&true.into(), 3), "{state}");
    for peer in [&mut server.connect(), &mut server.connect()] {
        ping(peer, b"over TCP");
    }
    ping(&mut UnixStream::connect(&path).unwrap(), b"over a Unix socket");
    ping_port(&port(server.addrs[1]), b"a datagram");
    // Another one, for the same one twice within 5 ms is taken for one.
    server.signal(Signal::INT);
    assert_eq!(server.wait().0.code(), Some(130), "a second signal ends at once");
    assert!(!path.exists());
}

#[test]
fn delayed_stop_ends_with_the_last_accepted_connection() {
    let (mut server, _) = stopping(&["127.0.0.1:0"], &["--once"]);
    let mut peer = server.connect();
    ping(&mut peer, b"once\n");
    assert_eq!(receive_rest(&mut peer), b"");
    drop(peer);
    assert_eq!(server.wait().0.code(), Some(0));
}

#[test]
fn passed_stop_delay_closes_in_good_order() {
    let mut server = Server::start_on(&["127.0.0.1:0", "udp:127.0.0.1:0"], &["--stop-delay", "50ms"]);
    let mut peer = server.connect();
    ping(&mut peer, b"before");
    server.signal(Signal::TERM);
    assert_eq!(receive_rest(&mut peer), b"");
    drop(peer);
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("the stop delay has passed: sending what is left to send, and closing"), "{log}");
}

/// The value of a metric.
#[track_caller]
fn metric(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().unwrap()
}

#[test]
fn metrics_count_what_happens() {
    let mut server = Server::start_on(
        &["127.0.0.1:0", "udp:127.0.0.1:0"],
        &["--http", "0", "--terminator", "never said", "--deny", "127.0.0.2", "--send-buffer", "4KiB"],
    );
    let inside = server.inside();
    let mut peers = server.connect_many(5);
    assert!(is_turned_away(&mut dial_from("127.0.0.2", server.addr())));
    ping_port(&port(server.addrs[1]), b"datagram");
    drop(peers.pop());
    // One that does not read: what it is owed waits.
    let mut stuck = peers.pop().unwrap();
    let sent = noise(1, 16 << 20);
    stuck.set_nonblocking(true).unwrap();
    let mut text = String::new();
    wait_until("bytes wait", || {
        let _ = stuck.write(&sent);
        let (head, body) = get(inside, "/metrics");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
        text = body;
        metric(&text, "echoloop_waiting_bytes") > 0.0 && metric(&text, "echoloop_connections") == 4.0
    });
    assert!(text.lines().all(|line| !line.starts_with("# UNIT") && line != "# EOF"), "{text}");
    let mut peer = dial(inside);
    peer.write_all(b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text;q=0.5,*/*;q=0.1\r\n\r\n").unwrap();
    let open_metrics = String::from_utf8(receive_rest(&mut peer)).unwrap();
    assert!(open_metrics.contains("application/openmetrics-text; version=1.0.0") && open_metrics.ends_with("# EOF\n"));
    assert_eq!(metric(&text, "echoloop_opened_total"), 5.0);
    assert_eq!(metric(&text, "echoloop_closed_total{reason=\"finished\"}"), 1.0);
    assert_eq!(metric(&text, "echoloop_refused_total{reason=\"denied\"}"), 1.0);
    assert_eq!(metric(&text, "echoloop_datagrams_sent_total"), 1.0);
    assert!(metric(&text, "echoloop_messages_total") >= 5.0);
    assert!(metric(&text, "echoloop_partial_sends_total") >= 1.0);
    assert!(metric(&text, "echoloop_received_bytes_total") > metric(&text, "echoloop_sent_bytes_total"));
    let events = metric(&text, "echoloop_events_total");
    assert!(events >= 11.0 && metric(&text, "echoloop_events_per_turn_sum") == events);
    let turns = metric(&text, "echoloop_turns_total");
    assert_eq!(metric(&text, "echoloop_events_per_turn_bucket{le=\"+Inf\"}"), turns);
    assert_eq!(metric(&text, "echoloop_connection_duration_seconds_count"), 1.0, "one has closed");
    assert_eq!(metric(&text, "echoloop_connection_duration_seconds_bucket{le=\"+Inf\"}"), 1.0);
    assert!(text.contains("echoloop_build_info{version=\"") && text.contains("commit=\""), "{text}");
    let up = metric(&text, "echoloop_up_seconds");
    let slept_and_worked =
        metric(&text, "echoloop_asleep_seconds_total") + metric(&text, "echoloop_awake_seconds_total");
    assert!((up - slept_and_worked).abs() < 1e-6);
    assert_eq!(metric(&text, "echoloop_connections_by_state{state=\"waiting\"}"), 1.0);
    assert_eq!(metric(&text, &format!("echoloop_listening{{listener=\"{}\"}}", server.endpoints[0])), 1.0);
    assert_eq!(metric(&text, "echoloop_stopping"), 0.0);
    assert!(metric(&text, "process_cpu_seconds_total") > 0.0);
    #[cfg(target_os = "linux")]
    assert_eq!(
        metric(&text, &format!("echoloop_datagrams_kernel_drops_total{{listener=\"{}\"}}", server.endpoints[1])),
        0.0
    );
    let resident = metric(&text, "process_resident_memory_bytes");
    assert!(resident > 1e6 && resident < 1e8, "{resident}");

    let (_, state) = get(inside, "/state");
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["connections"], 4);
    assert_eq!(state["cells"].as_str().unwrap().matches('w').count(), 1, "{state}");
    assert_eq!(state["datagrams"]["received"], 1);
    assert_eq!((&state["states"]["waiting"], &state["states_exact"]), (&1.into(), &true.into()), "{state}");
    assert_eq!(state["refusals"]["denied"], 1);
    assert_eq!(state["listening"][0], server.endpoints[0].as_str());

    // While it drains it says that it is not to be sent anybody.
    assert_eq!(get(inside, "/healthz").1, "ok\n");
    server.signal(Signal::TERM);
    server.wait_for_log("SIGTERM");
    let (head, body) = get(inside, "/healthz");
    assert!(head.starts_with("HTTP/1.1 503 ") && body == "stopping\n", "{head}");
    assert!(get(inside, "/readyz").0.starts_with("HTTP/1.1 503 "));
    assert_eq!(get(inside, "/livez").1, "ok\n", "it is alive nevertheless");
    drop((stuck, peers));
    assert_eq!(server.wait().0.code(), Some(0));
}

#[test]
fn state_and_metrics_agree_on_every_counter() {
    let directory = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}", directory.path().join("echo.sock").display());
    let mut server = Server::start_on(
        &["127.0.0.1:0", "[::1]:0", &unix, "udp:127.0.0.1:0"],
        &["--http", "0", "--terminator", "never said", "--deny", "127.0.0.2", "--fault", "chunk=3"],
    );
    let inside = server.inside();
    let mut peers = server.connect_many(5);
    let mut over_unix = std::os::unix::net::UnixStream::connect(directory.path().join("echo.sock")).unwrap();
    peers.push(dial(server.addrs[1]));
    for peer in &mut peers {
        ping(peer, b"hello");
    }
    ping(&mut over_unix, b"hello");
    assert!(is_turned_away(&mut dial_from("127.0.0.2", server.addr())));
    ping_port(&port(server.addrs[2]), b"datagram");
    drop(peers.pop());
    wait_until("that one is closed", || metric(&get(inside, "/metrics").1, "echoloop_connections") == 6.0);

    let (state, text) = (get(inside, "/state").1, get(inside, "/metrics").1);
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let mut compared = 0;
    let mut agree = |name: &str, value: &serde_json::Value| {
        assert_eq!(Some(metric(&text, name)), value.as_f64(), "{name}: {text}\n{state}");
        compared += 1;
    };
    for (prefix, table) in [("", "counters"), ("datagrams_", "datagrams"), ("faults_", "faults")] {
        for (name, value) in state[table].as_object().unwrap() {
            // Each look is a turn.
            if name != "turns" {
                let plain = format!("echoloop_{prefix}{name}");
                let total = format!("{plain}_total");
                agree(if text.contains(&format!("\n{total} ")) { &total } else { &plain }, value);
            }
        }
    }
    for (metric, label, table) in [
        ("closed_total", "reason", "closed"),
        ("refused_total", "reason", "refusals"),
        ("connections_by_state", "state", "states"),
    ] {
        for (name, value) in state[table].as_object().unwrap() {
            agree(&format!("echoloop_{metric}{{{label}=\"{name}\"}}"), value);
        }
    }
    let listeners = state["listeners"].as_array().unwrap();
    for listener in listeners {
        let name = listener["name"].as_str().unwrap();
        for (metric, field) in
            [("accepted_total", "accepted"), ("refused_total", "refused"), ("connections", "connections")]
        {
            agree(&format!("echoloop_listener_{metric}{{listener=\"{name}\"}}"), &listener[field]);
        }
    }
    let told: Vec<_> = listeners
        .iter()
        .map(|it| ["accepted", "refused", "connections"].map(|field| it[field].as_u64().unwrap()))
        .collect();
    assert_eq!(told, [[5, 1, 5], [1, 0, 0], [1, 0, 1]]);
    for (name, value) in [("connections", &state["connections"]), ("messages_total", &state["messages"])] {
        agree(&format!("echoloop_{name}"), value);
    }
    assert!(compared > 40, "{compared}");
}

/// Runs a program with `input`. Returns whether it succeeded, and what it said.
fn feed(program: &str, args: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), said)
}

#[test]
#[ignore = "needs promtool"]
fn promtool_has_nothing_to_say_of_metrics() {
    let addresses = ["127.0.0.1:0", "udp:127.0.0.1:0"];
    let flags = ["--http", "0", "--terminator", "bye", "--print", "--fault", "delay=1ms"];
    let mut server = Server::start_on(&addresses, &flags);
    let (_, text) = get(server.inside(), "/metrics");
    for name in ["echoloop_messages_unprinted_total", "echoloop_faults_", "echoloop_connection_duration_seconds_sum"] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
    assert_eq!(feed("promtool", &["check", "metrics"], &text), (true, String::new()));
}

#[test]
#[ignore = "needs Python with prometheus_client"]
fn prometheus_own_parsers_take_the_metrics() {
    let mut server = Server::start_on(&["127.0.0.1:0", "udp:127.0.0.1:0"], &["--http", "0", "--terminator", "bye"]);
    let inside = server.inside();
    let (_, text) = get(inside, "/metrics");
    let mut peer = dial(inside);
    peer.write_all(b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text\r\n\r\n").unwrap();
    let open_metrics = String::from_utf8(receive_rest(&mut peer)).unwrap();
    let (_, open_metrics) = open_metrics.split_once("\r\n\r\n").unwrap();
    let parse = |module: &str| {
        format!(
            "import sys; from prometheus_client.{module} import text_string_to_metric_families as parse; \
            print(len(list(parse(sys.stdin.read()))) > 30)"
        )
    };
    let parsed = (true, "True\n".to_owned());
    assert_eq!(feed("python3", &["-c", &parse("parser")], &text), parsed);
    assert_eq!(feed("python3", &["-c", &parse("openmetrics.parser")], open_metrics), parsed);
}

#[test]
fn http_keeps_the_rules_and_the_connections() {
    let mut server = Server::start(&["--http", "127.0.0.1:0"]);
    let inside = server.inside();
    let mut peer = dial(inside);
    for _ in 0..3 {
        peer.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        while !answer.ends_with("ok\n") {
            let mut buffer = [0; 1000];
            let length = peer.read(&mut buffer).unwrap();
            assert!(length > 0, "it is closed after {answer}");
            answer.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        assert!(answer.contains("Connection: keep-alive"));
    }
    for (request, status) in [
        ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405 "),
        ("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n", "200 "),
        ("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", "200 "),
        ("GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", "200 "),
        ("GET / HTTP/1.1\r\n\r\n", "400 "),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421 "),
        ("GET /secret HTTP/1.1\r\nHost: localhost\r\n\r\n", "404 "),
        ("\r\n\r\nnonsense\0\r\n", "400 "),
        (&format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(20_000)), "431 "),
    ] {
        let mut peer = dial(inside);
        peer.write_all(request.as_bytes()).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        let answer = String::from_utf8_lossy(&receive_rest(&mut peer)).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:.40}: {answer}");
    }
    let (head, page) = get(inside, "/");
    assert!(head.contains("text/html") && head.contains("Content-Security-Policy: default-src 'none'"), "{head}");
    assert!(!page.contains("://"), "the page needs nothing from elsewhere");
    // HTTP clients are not connections of the echo.
    assert!(server.stop().contains("served 0 connections"));
}

#[test]
fn hostile_http_clients_hold_nobody_up_for_long() {
    let mut server = Server::start(&["--http", "0"]);
    let inside = server.inside();
    // As many as may be at once, and more: silent, half a request, and readers that do not read.
    let mut hostile: Vec<_> = (0..100).map(|_| dial(inside)).collect();
    for (number, peer) in hostile.iter_mut().enumerate() {
        match number % 3 {
            0 => {}
            1 => peer.write_all(b"GET / HTTP/1.1\r\nHost").unwrap(),
            _ => peer.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap(),
        }
    }
    let mut peer = server.connect();
    let began = Instant::now();
    (0..1000).for_each(|number: u32| ping(&mut peer, &number.to_be_bytes()));
    assert!(began.elapsed() < Duration::from_secs(10), "the echo goes on: {:?}", began.elapsed());
    // They are let go in time, though one of them trickles.
    let mut trickling = hostile.remove(1);
    trickling.set_nonblocking(true).unwrap();
    let mut gone = false;
    wait_until("the slow are closed", || {
        std::thread::sleep(Duration::from_millis(200));
        gone |= trickling.write(b"x").is_err();
        gone
    });
    assert_eq!(get(inside, "/healthz").1, "ok\n", "there is room again");
}

#[test]
fn datagrams_are_benched_and_sent_by_the_line() {
    let server = Server::start_on(&["udp:127.0.0.1:0"], &[]);
    let endpoint = server.endpoints[0].as_str();
    let output = echoloop(&["connect", endpoint], b"hello\n\nworld");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).as_ref()), (Some(0), "hello\n\nworld"));
    let output = echoloop(&["connect", endpoint, "--no-newline", "--terminator", "bye"], b"hello\nbye\nunsent\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\nbye\n");

    let run = |flags: &[&str]| {
        let flags = [&["bench", "-q", "--warm-up", "0s", "--json", "-"], flags].concat();
        let output = echoloop(&flags, b"");
        let run = echoloop::bench::Run::parse(&String::from_utf8_lossy(&output.stdout));
        (output.status.code(), run, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, sound, text) = run(&[endpoint, "-c", "20", "-d", "4", "-n", "5000", "-s", "8..2000", "--timeout", "1s"]);
    let sound = sound.unwrap();
    assert_eq!((code, sound.messages.sent), (Some(0), 5000), "{text}");
    assert_eq!(sound.messages.replies + sound.datagrams.unwrap().lost, 5000);

    // Somebody who takes datagrams and answers every other one, late and twice.
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = format!("udp:{}", sink.local_addr().unwrap());
    let answering = std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        for number in 0..20 {
            let (length, from) = sink.recv_from(&mut buffer).unwrap();
            if number % 2 == 0 {
                sink.send_to(&buffer[..length], from).unwrap();
                sink.send_to(&buffer[..length], from).unwrap();
            }
        }
        sink
    });
    let flags = [&address, "-c", "1", "-n", "20", "--timeout", "200ms", "--fail-if", "lost>9"];
    let (code, lossy, text) = run(&flags);
    drop(answering.join().unwrap());
    let lossy = lossy.unwrap();
    assert_eq!((lossy.messages.replies, lossy.datagrams.unwrap().lost), (10, 10), "{text}");
    assert_eq!(lossy.datagrams.unwrap().duplicates, 10);
    assert_eq!((code, lossy.error_count()), (Some(3), 0), "loss is no error, unless it is said to be");

    for (flags, cause) in [
        (&[endpoint, "-s", "7"][..], "a datagram has 8 bytes"),
        (&[endpoint, "-s", "64KiB"], "65507"),
        (&[endpoint, "-d", "65"], "at most 64"),
        (&[endpoint, "--reconnect", "1"], "--reconnect"),
        (&["unix:/nowhere", "--source", "127.0.0.1"], "--source"),
    ] {
        let (code, _, error) = run(flags);
        assert!(code == Some(1) && error.contains(cause), "{error}");
    }
    // Nobody there.
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = format!("udp:{}", closed.local_addr().unwrap());
    drop(closed);
    let output = echoloop(&["connect", &address], b"anybody?\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&address));
    let (code, _, error) = run(&[&address, "-t", "1s"]);
    assert!(code == Some(1) && error.contains("refused") && !error.contains("warning"), "{error}");
    let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
    let output = echoloop(&["connect", &format!("udp:{}", deaf.local_addr().unwrap())], b"anybody?\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 datagram did not come back"));
}

#[test]
fn the_shell_is_told_what_there_is() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = echoloop(&["completions", shell], b"");
        assert!(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("max-per-source"),
            "{shell}"
        );
    }
    let mut bash = Command::new("bash");
    let check = format!(
        "source <({ECHOLOOP} completions bash) && COMP_WORDS=(echoloop serve --reu) COMP_CWORD=2 && \
         _echoloop echoloop --reu serve && echo ${{COMPREPLY[@]}}"
    );
    assert_eq!(String::from_utf8_lossy(&bash.args(["-c", &check]).output().unwrap().stdout), "--reuse-port\n");
    let page = echoloop(&["man", "bench"], b"");
    assert!(String::from_utf8_lossy(&page.stdout).contains(".TH ECHOLOOP\\-BENCH 1"));
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    assert!(echoloop(&["man", "--dir", pages.to_str().unwrap()], b"").status.success());
    for page in ["echoloop.1", "echoloop-serve.1", "echoloop-connect.1", "echoloop-bench.1", "echoloop-report.1"] {
        assert!(pages.join(page).exists(), "{page}");
    }
    assert_eq!(echoloop(&["man", "nothing"], b"").status.code(), Some(2));
}

#[test]
fn options_come_from_environment_and_flags_win() {
    let start = |variables: &[(&str, &str)], args: &[&str]| {
        let mut command = Command::new(ECHOLOOP);
        command.args(["serve", "127.0.0.1:0"]).args(args).envs(variables.iter().copied());
        Server::spawn(command, 1)
    };
    let mut server = start(&[("ECHOLOOP_MAX_CONNECTIONS", "7"), ("ECHOLOOP_ONCE", "1")], &[]);
    server.wait_for_log("room for 7 connections");
    let mut peer = server.connect();
    ping(&mut peer, b"once");
    drop(peer);
    assert_eq!(server.wait().0.code(), Some(0));
    let server = start(&[("ECHOLOOP_MAX_CONNECTIONS", "7"), ("ECHOLOOP_ONCE", "no")], &["--max-connections", "8"]);
    server.wait_for_log("room for 8 connections");
    assert!(!server.log().contains('\x1b'), "colours are for terminals");
    let mut command = Command::new(ECHOLOOP);
    let output = command.arg("serve").env("ECHOLOOP_BACKLOG", "many").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("'many'") && error.contains("--backlog"), "{error}");
}
