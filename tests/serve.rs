//! `echoloop serve`, as its users see it: the real program, real sockets.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use rustix::process::Signal;

const MIB: usize = 1024 * 1024;

/// Sends `bytes` from a thread of its own, and closes the sending side.
fn send_all(peer: &TcpStream, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    let mut peer = peer.try_clone().unwrap();
    thread::spawn(move || {
        peer.write_all(&bytes).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
    })
}

/// Sends until neither side's kernel takes more, as a peer does that sends and does not read. Returns how many bytes
/// were sent.
fn send_until_blocked(server: &Server, peer: &mut TcpStream, bytes: &[u8]) -> usize {
    peer.set_nonblocking(true).unwrap();
    let mut sent = 0;
    // The server has bytes that wait: from here on it does not read, and the peer's kernel fills up.
    let mut blocked_since = None;
    wait_until("the peer is blocked", || match peer.write(&bytes[sent..]) {
        Ok(count) => {
            sent += count;
            blocked_since = None;
            sent == bytes.len()
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            server.log().contains("wait for WRITABLE")
                && blocked_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(100)
        }
    });
    peer.set_nonblocking(false).unwrap();
    assert!(sent < bytes.len(), "not enough bytes to fill the kernel's buffers");
    sent
}

#[test]
fn unread_64_mib_take_no_memory_lose_nothing() {
    let mut server = Server::start(&["-vv"]);
    let mut peer = server.connect();
    ping(&mut peer, b"first");
    let before = server.resident();
    let bytes = noise(1, 64 * MIB);
    let sent = send_until_blocked(&server, &mut peer, &bytes);
    let grown = server.resident().saturating_sub(before);
    assert!(grown < MIB as u64, "{grown} bytes more than before");
    let writer = send_all(&peer, bytes[sent..].to_vec());
    assert!(receive_rest(&mut peer) == bytes);
    writer.join().unwrap();
    assert!(server.stop().contains("64.0 MiB in, 64.0 MiB out"));
}

#[test]
fn single_bytes_come_back() {
    let server = Server::start(&[]);
    let mut peer = server.connect();
    for byte in noise(2, 2000) {
        ping(&mut peer, &[byte]);
    }
}

#[test]
fn half_close_gets_100_mib_in_flight() {
    let mut server = Server::start(&[]);
    let mut peer = server.connect();
    let bytes = noise(3, 100 * MIB);
    let writer = send_all(&peer, bytes.clone());
    assert!(receive_rest(&mut peer) == bytes);
    writer.join().unwrap();
    assert!(server.stop().contains("100.0 MiB in, 100.0 MiB out"));
}

#[test]
fn reset_in_mid_write_ends_that_connection_alone() {
    let mut server = Server::start(&["-vv"]);
    let mut other = server.connect();
    let mut peer = server.connect();
    send_until_blocked(&server, &mut peer, &noise(4, 64 * MIB));
    reset(peer);
    server.wait_for_log("closed: Connection reset");
    ping(&mut other, b"still there?");
    drop(other);
    assert!(server.stop().contains(" 1 failed"));
}

#[test]
fn two_thousand_connections_each_get_their_own_bytes() {
    echoloop::limits::raise_open_files();
    let mut server = Server::start(&[]);
    let mut peers: Vec<_> = (0..2000).map(|_| server.connect()).collect();
    let bytes: Vec<_> = (0..2000).map(|seed| noise(seed + 10, 3000)).collect();
    for part in 0..3 {
        let part = part * 1000..(part + 1) * 1000;
        for (peer, bytes) in peers.iter_mut().zip(&bytes) {
            peer.write_all(&bytes[part.clone()]).unwrap();
        }
        for (peer, bytes) in peers.iter_mut().zip(&bytes) {
            receive(peer, &bytes[part.clone()]);
        }
    }
    drop(peers);
    assert!(server.stop().contains("served 2,000 connections, 2,000 at the peak"));
}

#[test]
fn quiet_peer_is_served_beside_busy_one() {
    let server = Server::start(&[]);
    let mut busy = server.connect();
    let mut sink = busy.try_clone().unwrap();
    let flood = thread::spawn(move || {
        let bytes = noise(5, MIB);
        while busy.write_all(&bytes).is_ok() {}
    });
    let drain = thread::spawn(move || {
        let mut buffer = vec![0; MIB];
        let mut total = 0;
        while total < 300 * MIB {
            total += sink.read(&mut buffer).unwrap();
        }
        sink.shutdown(Shutdown::Both).unwrap();
    });
    let mut quiet = server.connect();
    let mut pings = 0;
    while !drain.is_finished() {
        ping(&mut quiet, b"me too");
        pings += 1;
    }
    drain.join().unwrap();
    flood.join().unwrap();
    assert!(pings >= 10, "{pings} while the other moved 300 MiB");
}

/// More peers than there is room for: all are served in the end, and meanwhile the server sleeps.
fn overload(mut server: Server, peers: usize) {
    let mut peers: Vec<_> = (0..peers).map(|_| server.connect()).collect();
    for peer in &mut peers {
        peer.write_all(b"all of us").unwrap();
    }
    server.wait_for_log("accepting pauses");
    let before = server.processor_time();
    thread::sleep(Duration::from_millis(500)); // long enough to see a spin: it would use all of it
    let used = server.processor_time() - before;
    assert!(used < Duration::from_millis(100), "{used:?} of 500 ms");
    for mut peer in peers {
        receive(&mut peer, b"all of us"); // and leave, which makes room for another
    }
    let mut late = server.connect();
    ping(&mut late, b"recovered");
    drop(late);
    let log = server.stop();
    assert_eq!(log.matches("accepting pauses").count(), 1, "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn open_files_limit_drops_nobody_and_recovers() {
    overload(Server::start_limited(40, ""), 100);
}

#[test]
fn accept_without_descriptors_drops_nobody_and_recovers() {
    let server = Server::start_limited(40, "--max-connections 1000");
    server.wait_for_log("leaves room for");
    overload(server, 100);
}

#[test]
fn at_max_connections_it_is_the_same() {
    overload(Server::start(&["--max-connections", "5"]), 50);
}

#[test]
fn a_full_backlog_of_none_waits_quietly_too() {
    // Exactly as many peers as descriptors: accept says EMFILE though nobody waits.
    let mut server = Server::start_limited(40, "--max-connections 1000");
    let mut peers = Vec::new();
    let taken = |number| std::fs::symlink_metadata(format!("/proc/{}/fd/{number}", server.pid())).is_ok();
    while !(0..40).all(taken) {
        let mut peer = server.connect();
        ping(&mut peer, b"in");
        peers.push(peer);
    }
    server.wait_for_log("accepting pauses");
    let before = server.processor_time();
    thread::sleep(Duration::from_millis(300));
    let used = server.processor_time() - before;
    assert!(used < Duration::from_millis(60), "{used:?} of 300 ms");
    // It waits when there is room again: who came later might find that accepting had gone on, and be the next pause.
    let mut late = server.connect();
    peers.pop();
    ping(&mut late, b"in, too");
    drop((late, peers));
    assert!(server.stop().contains("1 accept pause"));
}

#[test]
fn the_terminator_closes_even_in_two_segments() {
    let server = Server::start(&["--terminator", "bye"]);
    let mut peer = server.connect();
    for word in ["hello", "goodbye", "by"] {
        ping(&mut peer, word.as_bytes());
    }
    ping(&mut peer, b"x"); // "byx"
    ping(&mut peer, b"by");
    ping(&mut peer, b"e"); // the first half was a proper beginning
    assert_eq!(receive_rest(&mut peer), b"");
    let mut peer = server.connect();
    peer.write_all(b"one\r\nbye\r\nnot this").unwrap();
    assert_eq!(receive_rest(&mut peer), b"one\r\nbye\r\n");
}

#[test]
fn the_tutorials_servers_serve_its_clients() {
    // Its clients send a word without a newline and read up to 1024 bytes.
    fn converse(peer: &mut TcpStream, word: &[u8]) {
        peer.write_all(word).unwrap();
        let mut buffer = [0; 1024];
        let count = peer.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], word);
    }
    let mut once = Server::start(&["--once"]);
    let mut peer = once.connect();
    converse(&mut peer, b"Hello, world");
    assert_eq!(receive_rest(&mut peer), b"");
    drop(peer);
    assert_eq!(once.wait().0.code(), Some(0));

    let mut one_client = Server::start(&["--accept-limit", "1", "--terminator", "bye"]);
    let mut peer = one_client.connect();
    for word in ["Hello", "world", "bye"] {
        converse(&mut peer, word.as_bytes());
    }
    assert_eq!(receive_rest(&mut peer), b"");
    drop(peer);
    assert_eq!(one_client.wait().0.code(), Some(0));

    let many_clients = Server::start(&["--terminator", "bye"]);
    let mut peers: Vec<_> = (0..10).map(|_| many_clients.connect()).collect();
    for word in ["Hello", "world", "bye"] {
        peers.iter_mut().for_each(|peer| converse(peer, word.as_bytes()));
    }
    peers.iter_mut().for_each(|peer| assert_eq!(receive_rest(peer), b""));
    converse(&mut many_clients.connect(), b"the next, please");
}

#[test]
fn message_limit_closes_without_echoing_the_rest() {
    let server = Server::start(&["--message-limit", "2"]);
    let mut peer = server.connect();
    peer.write_all(b"one\ntwo\nthree\n").unwrap();
    assert_eq!(receive_rest(&mut peer), b"one\ntwo\n");
}

#[test]
fn bytes_after_last_message_spare_its_echo() {
    // A server that closed with these bytes unread would reset the connection.
    let server = Server::start(&["--message-limit", "1"]);
    for _ in 0..20 {
        let mut peer = server.connect();
        let writer = send_all(&peer, [b"first\n".to_vec(), vec![b'x'; 4 * MIB]].concat());
        assert_eq!(receive_rest(&mut peer), b"first\n");
        writer.join().unwrap();
    }
}

#[test]
fn accept_limit_ends_with_the_last_connection() {
    let mut server = Server::start(&["--accept-limit", "2"]);
    let (mut first, mut second) = (server.connect(), server.connect());
    ping(&mut first, b"1");
    ping(&mut second, b"2");
    server.wait_for_log("listening ends");
    assert_eq!(TcpStream::connect(server.addr()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    drop(first);
    ping(&mut second, b"still served");
    drop(second);
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("served 2 connections"), "{log}");
}

#[test]
fn idle_peer_is_closed_and_active_one_kept() {
    let mut server = Server::start(&["--idle-timeout", "300ms"]);
    let (mut idle, mut active) = (server.connect(), server.connect());
    let began = Instant::now();
    let watcher = thread::spawn(move || {
        assert_eq!(receive_rest(&mut idle), b"");
        began.elapsed()
    });
    while began.elapsed() < Duration::from_millis(900) {
        ping(&mut active, b"alive");
        thread::sleep(Duration::from_millis(10));
    }
    let idled = watcher.join().unwrap();
    assert!(idled >= Duration::from_millis(295), "{idled:?}");
    drop(active);
    assert!(server.stop().contains("1 idle"));
}

#[test]
fn slow_reader_is_kept_and_stalled_one_closed() {
    let mut server = Server::start(&["-vv", "--idle-timeout", "400ms", "--send-buffer", "64KiB"]);
    let mut slow = server.connect();
    let bytes = noise(6, 8 * MIB);
    let sent = send_until_blocked(&server, &mut slow, &bytes);
    let mut at = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1200) {
        receive(&mut slow, &bytes[at..at + 64 * 1024]);
        at += 64 * 1024;
        thread::sleep(Duration::from_millis(20));
    }
    receive(&mut slow, &bytes[at..sent]);
    drop(slow);
    let mut stalled = server.connect();
    send_until_blocked(&server, &mut stalled, &bytes);
    server.wait_for_log("closed: stalled");
    let log = server.stop();
    assert!(log.contains(" 0 idle, 1 stalled"), "{log}");
}

#[test]
fn a_stop_sends_what_is_owed() {
    let mut server = Server::start(&["-vv"]);
    let mut idle = server.connect();
    ping(&mut idle, b"hello");
    let mut peer = server.connect();
    let bytes = noise(7, 64 * MIB);
    let sent = send_until_blocked(&server, &mut peer, &bytes);
    server.signal(Signal::INT);
    server.wait_for_log("SIGINT");
    wait_until("listening has ended", || TcpStream::connect(server.addr()).is_err());
    assert_eq!(receive_rest(&mut idle), b"");
    drop(idle);
    let echoed = receive_rest(&mut peer);
    assert!(bytes[..sent].starts_with(&echoed));
    drop(peer);
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0));
    let summary = format!("{} in", bytesize::ByteSize(echoed.len() as u64 + 5).display().iec());
    assert!(log.contains(&summary), "all that was read came back: {summary}: {}", log.lines().last().unwrap());
    assert!(log.contains(" 0 failed") && log.contains(" 0 aborted"), "{}", log.lines().last().unwrap());
}

#[test]
fn stop_waits_no_longer_than_told() {
    let mut server = Server::start(&["-vv", "--drain-timeout", "300ms"]);
    let mut peer = server.connect();
    send_until_blocked(&server, &mut peer, &noise(8, 64 * MIB));
    let log = server.stop();
    assert!(log.contains("the drain timeout has passed: 1 connection is aborted"));
    assert!(log.contains(" 1 aborted"));
}

#[test]
fn a_second_signal_ends_at_once() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut server = Server::start(&["-vv", "--drain-timeout", "1h"]);
        let mut peer = server.connect();
        send_until_blocked(&server, &mut peer, &noise(9, 64 * MIB));
        server.signal(Signal::TERM);
        server.wait_for_log("SIGTERM");
        // A second signal right behind the first is taken for the same one.
        wait_until("the server ends", || {
            server.signal(signal);
            server.has_ended()
        });
        assert_eq!(server.wait().0.code(), Some(code));
    }
}

#[test]
fn signal_that_comes_twice_at_once_counts_once() {
    // GNU timeout signals its child, and then its process group, in which the child is too.
    for _ in 0..10 {
        let mut server = Server::start(&[]);
        let peers = server.connect_many(1);
        server.signal(Signal::TERM);
        server.signal(Signal::TERM);
        peers.into_iter().for_each(|mut peer| _ = receive_rest(&mut peer));
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("served 1 "), "{log}");
    }
}

#[test]
fn a_restart_gets_the_same_port_at_once() {
    let mut server = Server::start(&[]);
    let address = server.addr().to_string();
    let peers = server.connect_many(10);
    server.signal(Signal::TERM); // the server closes first, so TIME_WAIT is on its side
    for mut peer in peers {
        receive_rest(&mut peer);
    }
    assert_eq!(server.wait().0.code(), Some(0));
    let server = Server::start_on(&[&address], &[]);
    ping(&mut server.connect(), b"again");
}

#[test]
fn several_addresses_names_and_both_families_are_served() {
    let server = Server::start_on(&["127.0.0.1:0", "[::1]:0", "127.0.0.2:0"], &[]);
    assert_eq!(server.addrs.len(), 3);
    for &addr in &server.addrs {
        assert_ne!(addr.port(), 0);
        ping(&mut dial(addr), addr.to_string().as_bytes());
    }
    let named = Server::start_on(&["localhost:0"], &[]);
    assert!(named.addr().ip().is_loopback());
    ping(&mut named.connect(), b"by name");
}

#[test]
fn address_and_its_wildcard_can_be_bound_together() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start_on(&[&format!("0.0.0.0:{free}"), &format!("[::]:{free}")], &[]);
    for host in ["127.0.0.1", "[::1]"] {
        let addr: SocketAddr = format!("{host}:{free}").parse().unwrap();
        ping(&mut dial(addr), b"both");
    }
    drop(server);
}

#[track_caller]
fn fails(args: &[&str], code: i32, mentions: &[&str]) {
    let output = echoloop(args, b"");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    for text in mentions {
        assert!(errors.contains(text), "{text:?} is not in {errors:?}");
    }
    if code == 1 {
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}

#[test]
fn failed_start_says_why_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    fails(&["serve", &address], 1, &["echoloop: cannot listen on ", &address, "in use"]);
    fails(
        &["serve", "192.0.2.1:1"],
        1,
        &["cannot listen on 192.0.2.1:1", "assign", "this machine has no such address"],
    );
    fails(&["serve", "[::ffff:127.0.0.1]:0"], 1, &["cannot listen on", "as in 127.0.0.1:7777"]);
    fails(&["serve", "unix:/nowhere/echo.sock"], 1, &["cannot listen on", "its directory must be there"]);
    for group in ["224.0.0.1:0", "255.255.255.255:0"] {
        fails(&["serve", group], 1, &["cannot listen on", group, "nobody can connect to"]);
    }
    fails(&["serve", "no-such-host.invalid:1"], 1, &["cannot resolve no-such-host.invalid:1"]);
}

#[test]
fn what_cannot_be_meant_says_so() {
    fails(&["serve", "127.0.0.1"], 2, &["'127.0.0.1'", "no port"]);
    fails(&["serve", "127.0.0.1:99999"], 2, &["99999"]);
    fails(&["serve", "::1:80"], 2, &["brackets"]);
    fails(&["serve", ":80"], 2, &["no host"]);
    for (client, group) in
        [("connect", "udp:255.255.255.255:7"), ("bench", "udp:224.0.0.1:7"), ("bench", "[ff02::1]:7")]
    {
        fails(&[client, group], 2, &[group, "nobody answers from a broadcast or multicast address"]);
    }
    fails(&["serve", "--once", "--accept-limit", "3"], 2, &["--once", "--accept-limit"]);
    fails(&["serve", "--idle-timeout", "soon"], 2, &["soon", "--idle-timeout"]);
    fails(&["serve", "-q", "-v"], 2, &["--quiet"]);
    fails(&["sevre"], 2, &["sevre", "serve"]);
    fails(&[], 2, &["Usage"]);
}

#[test]
fn messages_are_printed_with_their_peer_and_escaped() {
    let mut server = Server::start(&["--print"]);
    let mut peer = server.connect();
    let name = peer.local_addr().unwrap();
    ping(&mut peer, b"hello\r\n\x1b[31mred \xff\xc3\xa9\nbare");
    for line in ["hello", r"\x1b[31mred \xffé", "bare"] {
        assert_eq!(server.read_line(), format!("{name} {line}\n"));
    }
}

#[test]
fn a_hex_dump_names_the_peer_of_each_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let addresses = ["127.0.0.1:0", "udp:127.0.0.1:0", &format!("unix:{}", path.display())];
    let mut server = Server::start_on(&addresses, &["--print=hex"]);
    let mut peer = server.connect();
    let name = peer.local_addr().unwrap();
    ping(&mut peer, b"\x1b[31m\0one\r\n0123456789");
    assert_eq!(
        server.read_line(),
        format!("{name} < 00000000  1b 5b 33 31 6d 00 6f 6e  65 0d 0a 30 31 32 33 34  |.[31m.one..01234|\n")
    );
    let rest = "35 36 37 38 39                                    |56789|\n";
    assert_eq!(server.read_line(), format!("{name} < 00000010  {rest}"));
    ping(&mut peer, b"56789");
    assert_eq!(server.read_line(), format!("{name} < 00000015  {rest}"));
    ping(&mut std::os::unix::net::UnixStream::connect(&path).unwrap(), b"56789");
    assert_eq!(server.read_line(), format!("unix < 00000000  {rest}"));
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let name = port.local_addr().unwrap();
    for bytes in [&b""[..], b"56789"] {
        port.send_to(bytes, server.addrs[1]).unwrap();
    }
    assert_eq!(server.read_line(), format!("{name} < 00000000  {:50}||\n", ""));
    assert_eq!(server.read_line(), format!("{name} < 00000000  {rest}"));
}

#[test]
fn leaving_reader_of_messages_stops_only_the_printing() {
    let mut server = Server::start(&["--print"]);
    server.close_stdout();
    let mut peer = server.connect();
    for _ in 0..10 {
        ping(&mut peer, b"anybody?");
    }
    server.wait_for_log("cannot write to standard output");
    drop(peer);
    server.stop();
}

#[test]
fn leaving_reader_of_log_stops_only_the_log() {
    let mut command = Command::new("sh");
    // Nobody reads its standard error from the second line on.
    command.args(["-c", &format!("{{ {ECHOLOOP} serve -vv 127.0.0.1:0 2>&1 >&3 | head -1 >/dev/null; }} 3>&1")]);
    let server = Server::spawn(command, 1);
    let mut peer = server.connect();
    for _ in 0..100 {
        ping(&mut peer, b"unheard");
    }
    drop(peer);
    let mut last = server.connect();
    ping(&mut last, b"still there");
    // The shell's child is the one to stop.
    let children = format!("/proc/{}/task/{0}/children", server.pid());
    wait_until("the server is the shell's child", || {
        let listed = std::fs::read_to_string(&children).unwrap();
        let Some(pid) = listed.split_whitespace().next().and_then(|pid| pid.parse().ok()) else { return true };
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        false
    });
}

#[test]
fn a_tiny_send_buffer_makes_partial_sends_visible() {
    let mut server = Server::start(&["-vv", "--send-buffer", "4KiB", "--recv-buffer", "256KiB"]);
    let mut peer = server.connect();
    let bytes = noise(11, 2 * MIB);
    let writer = send_all(&peer, bytes.clone());
    assert!(receive_rest(&mut peer) == bytes);
    writer.join().unwrap();
    let log = server.stop();
    for narration in ["wait for WRITABLE", "the buffer is given back"] {
        assert!(log.contains(narration), "{narration:?}");
    }
    assert!(log.contains(" partial sends"));
}

#[test]
fn the_loop_narrates_what_it_does() {
    let server = Server::start(&["-vv"]);
    let mut peer = server.connect();
    ping(&mut peer, b"hello");
    let flood = send_all(&peer, noise(12, 16 * MIB));
    server.wait_for_log("reading paused until WRITABLE: "); // for nobody receives yet
    receive_rest(&mut peer);
    flood.join().unwrap();
    for narration in [
        "listener 0: ready",
        "turn 1: slept ",
        ", 1 event, 1 ready",
        "reads grow from 65536 to 131072 bytes",
        "queue: 1 ready, so the next turn comes without a sleep",
        "token 0: accepted 127.0.0.1:",
        "token 0: ready: READABLE",
        "token 0: read 5 of 65536 (short: drained)",
        "token 0: sent 5 of 5",
        "budget spent: back to the ready queue",
        "token 0: read 0: the peer has closed its side",
        "token 0: closed: finished",
    ] {
        server.wait_for_log(narration);
    }
}

#[test]
fn close_is_narrated_until_the_peer_has_gone() {
    let server = Server::start(&["-vv", "--terminator", "bye"]);
    let mut peer = server.connect();
    ping(&mut peer, b"bye\n");
    server.wait_for_log("token 0: shut down; lingering for up to 2s until the peer's end");
    drop(peer);
    server.wait_for_log("token 0: closed: finished");
}

#[test]
fn line_names_its_source_place_on_request() {
    let server = Server::start(&["-vvv"]);
    ping(&mut server.connect(), b"hello");
    server.wait_for_log(" TRACE token 0: sent 5 of 5 (src/reactor/transport.rs:");
    let log = server.log();
    assert!(log.lines().all(|line| line.starts_with('+') && line.ends_with(')')), "{log}");
}

#[test]
fn the_log_is_as_quiet_as_asked() {
    let mut quiet = Server::start(&["-q"]);
    ping(&mut quiet.connect(), b"psst");
    assert_eq!(quiet.stop(), "");
    let mut usual = Server::start(&[]);
    ping(&mut usual.connect(), b"hello");
    let log = usual.stop();
    assert!(log.contains("room for") && log.contains("served 1 connection,"), "{log}");
    assert!(!log.contains("DEBUG") && !log.contains("TRACE"), "{log}");
}

#[test]
fn spinning_before_sleeping_serves_all_the_same() {
    let mut server = Server::start(&["--busy-poll", "20ms"]);
    let mut peer = server.connect();
    let before = server.processor_time();
    for _ in 0..20 {
        ping(&mut peer, b"hot");
        thread::sleep(Duration::from_millis(10));
    }
    let used = server.processor_time() - before;
    assert!(used > Duration::from_millis(20), "it has spun: {used:?}");
    drop(peer);
    server.stop();
}

#[test]
fn counters_are_logged_as_often_as_asked() {
    let server = Server::start(&["--stats-interval", "50ms"]);
    let _peers = server.connect_many(3);
    server.wait_for_log("3 connections open");
}

#[test]
fn a_backlog_that_the_kernel_cuts_is_said() {
    let server = Server::start(&["--backlog", "2000000000"]);
    if std::path::Path::new("/proc/sys/net/core/somaxconn").exists() {
        server.wait_for_log("the kernel limits the backlog of 2000000000 to");
    }
    ping(&mut server.connect(), b"hello");
}

#[test]
fn a_flood_of_connects_fits_the_backlog() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let floods: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(move || {
                let mut peers: Vec<_> = (0..200).map(|_| dial(addr)).collect();
                peers.iter_mut().for_each(|peer| ping(peer, b"in the flood"));
            })
        })
        .collect();
    floods.into_iter().for_each(|flood| flood.join().unwrap());
}
