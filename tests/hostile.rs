//! The server under fire: peers that flood, stall, trickle, reset, vanish and talk nonsense, over real sockets.

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use fastrand::Rng;
use rustix::process::Signal;

const MIB: usize = 1024 * 1024;

/// What a peer can have waiting at the server that has never taken whole what it was sent: one read.
const READ: u64 = 64 * 1024;

/// The server's processor time of half a second in which nothing happens.
fn idle_time(server: &Server) -> Duration {
    let before = server.processor_time();
    thread::sleep(Duration::from_millis(500)); // long enough to see a spin: it would use all of it
    server.processor_time() - before
}

/// A peer whose kernel keeps little of what it sends, for the kernel's memory for all sockets is limited (tcp(7), on
/// `tcp_mem`), and beyond it connections crawl.
fn dial_small(server: &Server) -> TcpStream {
    let peer = server.connect();
    socket2::SockRef::from(&peer).set_send_buffer_size(16 * 1024).unwrap();
    peer
}

/// Sends what the kernels take, and returns how much that was.
fn stuff(peer: &mut TcpStream, bytes: &[u8]) -> usize {
    peer.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while sent < bytes.len() {
        match peer.write(&bytes[sent..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    peer.set_nonblocking(false).unwrap();
    sent
}

#[test]
fn thousand_unreading_peers_hold_one_read_each() {
    const PEERS: usize = 1000;
    echoloop::limits::raise_open_files();
    let mut server = Server::start(&["--send-buffer", "16KiB", "--recv-buffer", "16KiB"]);
    let mut quiet = server.connect();
    ping(&mut quiet, b"before");
    let before = server.resident();
    let bytes = noise(1, 4 * MIB);
    let mut peers: Vec<_> = (0..PEERS).map(|_| (dial_small(&server), 0)).collect();
    // Until no kernel takes any more of it, and the server has nothing more to read.
    wait_until("all are blocked", || {
        let mut moved = 0;
        for (peer, sent) in &mut peers {
            let count = stuff(peer, &bytes[*sent..]);
            *sent += count;
            moved += count;
        }
        ping(&mut quiet, b"meanwhile");
        moved == 0
    });
    let held = server.resident() - before;
    assert!(held < PEERS as u64 * READ, "{held} bytes for {PEERS} peers");
    assert!(peers.iter().all(|(_, sent)| *sent < bytes.len()), "more is on its way than the buffers hold");
    let used = idle_time(&server);
    assert!(used < Duration::from_millis(100), "who waits for WRITABLE costs nothing: {used:?} of 500 ms");
    for _ in 0..100 {
        ping(&mut quiet, b"and after");
    }
    // They read at last, and find every byte.
    for (peer, sent) in &mut peers {
        peer.shutdown(Shutdown::Write).unwrap();
        assert!(receive_rest(peer) == bytes[..*sent], "an echo is not what was sent");
    }
    drop(peers);
    drop(quiet);
    server.wait_until_alone();
    let log = server.stop();
    assert!(log.contains(" 0 failed, 0 idle, 0 stalled, 0 aborted"), "{log}");
}

#[test]
fn trickling_peers_are_kept_and_silent_ones_closed() {
    let mut server = Server::start(&["--idle-timeout", "2s"]);
    let mut slow = server.connect_many(200);
    let mut silent = server.connect_many(50);
    for byte in 0..5 {
        let next = Instant::now() + Duration::from_secs(1);
        slow.iter_mut().for_each(|peer| ping(peer, &[byte]));
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    silent.iter_mut().for_each(|peer| assert_eq!(receive_rest(peer), b""));
    slow.iter_mut().for_each(|peer| ping(peer, b"still here"));
    drop((slow, silent));
    server.wait_until_alone();
    assert!(server.stop().contains(" 50 idle,"));
}

#[test]
fn storm_of_resets_ends_nobody_else() {
    const STORM: u64 = 4;
    const RESETS: u64 = 500;
    let mut server = Server::start(&[]);
    let mut steady = server.connect();
    let addr = server.addr();
    let storms: Vec<_> = (0..STORM)
        .map(|storm| {
            thread::spawn(move || {
                let mut rng = Rng::with_seed(storm);
                for _ in 0..RESETS {
                    let mut peer = dial(addr);
                    let bytes = noise(storm, rng.usize(1..200_000));
                    match rng.u8(..4) {
                        0 => {}
                        1 => peer.write_all(&bytes[..bytes.len().min(1000)]).unwrap(),
                        2 => _ = stuff(&mut peer, &bytes),
                        _ => {
                            let sent = stuff(&mut peer, &bytes);
                            receive(&mut peer, &bytes[..rng.usize(1..=sent)]);
                        }
                    }
                    reset(peer);
                }
            })
        })
        .collect();
    let mut pings = 0;
    while storms.iter().any(|storm| !storm.is_finished()) {
        ping(&mut steady, b"in the storm");
        pings += 1;
    }
    storms.into_iter().for_each(|storm| storm.join().unwrap());
    assert!(pings > 10);
    ping(&mut steady, b"after it");
    drop(steady);
    server.wait_until_alone();
    let log = server.stop();
    assert!(log.contains(&format!("served {}", indicatif::HumanCount(STORM * RESETS + 1))), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn vanished_peers_are_closed_and_memory_given_back() {
    // From here a peer has vanished when nothing comes from it any more: it neither sends, nor reads, nor closes.
    let mut server = Server::start(&["--idle-timeout", "500ms", "--send-buffer", "4KiB"]);
    let bytes = noise(2, MIB);
    let mut vanished = Vec::new();
    for number in 0..300 {
        let mut peer = server.connect();
        match number % 3 {
            0 => {}                                       // it never says a word
            1 => assert!(stuff(&mut peer, &bytes) > 0),   // its echo is stuck
            _ => peer.shutdown(Shutdown::Write).unwrap(), // it is closed at once
        }
        vanished.push(peer);
    }
    server.wait_until_alone();
    let log = server.stop();
    assert!(log.contains(" 100 idle, 100 stalled, 0 aborted"), "{log}");
}

#[test]
fn flood_from_one_peer_starves_no_quiet_one() {
    echoloop::limits::raise_open_files();
    let server = Server::start(&[]);
    let mut quiet = server.connect_many(1000);
    let mut sender = server.connect();
    let mut receiver = sender.try_clone().unwrap();
    let bytes = noise(3, 40 * MIB);
    let expected = bytes.clone();
    let began = Instant::now();
    let flood = thread::spawn(move || {
        for (number, piece) in bytes.chunks(200_000).enumerate() {
            let due = Duration::from_millis(10) * number as u32;
            thread::sleep(due.saturating_sub(began.elapsed()));
            sender.write_all(piece).unwrap();
        }
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let drain = thread::spawn(move || assert!(receive_rest(&mut receiver) == expected));
    let mut pings = 0;
    while !drain.is_finished() {
        let index = pings % quiet.len();
        ping(&mut quiet[index], &pings.to_le_bytes());
        pings += 1;
    }
    flood.join().unwrap();
    drain.join().unwrap();
    assert!(pings >= quiet.len(), "only {pings} of the quiet ones had their turn");
}

#[test]
fn garbage_is_echoed_unchanged_and_printed_escaped() {
    let mut server = Server::start(&["--print", "--terminator", "a word that garbage does not contain"]);
    let mut printed = server.take_stdout();
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        printed.read_to_end(&mut text).unwrap();
        text
    });
    let addr = server.addr();
    let peers: Vec<_> = (0..8)
        .map(|seed| {
            thread::spawn(move || {
                let mut rng = Rng::with_seed(seed);
                for _ in 0..20 {
                    let mut peer = dial(addr);
                    let bytes: Vec<u8> = (0..rng.usize(1..50_000)).map(|_| rng.u8(..)).collect();
                    let mut left = &bytes[..];
                    while !left.is_empty() {
                        let (piece, rest) = left.split_at(rng.usize(1..=left.len()));
                        ping(&mut peer, piece);
                        left = rest;
                    }
                    peer.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(receive_rest(&mut peer), b"");
                }
            })
        })
        .collect();
    peers.into_iter().for_each(|peer| peer.join().unwrap());
    server.stop();
    let text = String::from_utf8(reader.join().unwrap()).unwrap();
    assert!(text.lines().count() > 1000);
    assert!(text.lines().all(|line| line.starts_with("127.0.0.1:")));
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "a terminal would obey");
}

#[test]
fn gigabyte_without_newline_takes_no_memory() {
    let mut server = Server::start(&["--terminator", "bye"]);
    let mut peer = server.connect();
    ping(&mut peer, b"first\n");
    let before = server.resident();
    let block: Vec<u8> = noise(4, MIB).into_iter().map(|byte| if byte == b'\n' { b'b' } else { byte }).collect();
    let mut sender = peer.try_clone().unwrap();
    let sent = block.clone();
    let writer = thread::spawn(move || (0..1024).for_each(|_| sender.write_all(&sent).unwrap()));
    let mut most = 0;
    for _ in 0..1024 {
        receive(&mut peer, &block);
        most = most.max(server.resident());
    }
    writer.join().unwrap();
    let grown = most.saturating_sub(before);
    assert!(grown < MIB as u64, "{grown} bytes more than before");
    ping(&mut peer, b"bye\n"); // the end of that message, or one of its own where the socket ran dry before it
    peer.write_all(b"bye\n").unwrap();
    assert!(b"bye\n".starts_with(&receive_rest(&mut peer)));
    assert!(server.stop().contains("1.0 GiB in"));
}

#[test]
fn stop_under_load_loses_no_byte_read() {
    // So much that few are through at the stop, and the rest is thrown away before a lingering close has its end.
    let bytes = Arc::new(noise(6, 16 * MIB));
    for round in 0..5 {
        let mut server = Server::start(&[]);
        let peers: Vec<_> = (0..20)
            .map(|number| {
                let mut receiver = server.connect();
                let mut sender = receiver.try_clone().unwrap();
                let (sent, expected, from) = (bytes.clone(), bytes.clone(), 10_007 * number);
                let writer = thread::spawn(move || _ = sender.write_all(&sent[from..])); // it is cut short
                let reader = thread::spawn(move || {
                    let echo = receive_rest(&mut receiver);
                    assert!(expected[from..].starts_with(&echo));
                    receiver.shutdown(Shutdown::Both).unwrap();
                    echo.len()
                });
                (writer, reader)
            })
            .collect();
        server.wait_for_connections(20);
        thread::sleep(Duration::from_millis(20 * round)); // anywhere in the run will do
        let log = server.stop();
        let echoed: usize = peers
            .into_iter()
            .map(|(writer, reader)| {
                writer.join().unwrap();
                reader.join().unwrap()
            })
            .sum();
        let size = bytesize::ByteSize(echoed as u64).display().iec();
        assert!(log.contains(&format!("{size} in, {size} out")), "{size} came back: {log}");
        assert!(log.contains(" 0 failed") && log.contains(" 0 aborted"), "{log}");
    }
}

#[test]
fn restart_under_load_gets_port_at_once() {
    let mut server = Server::start(&[]);
    let address = server.addr();
    for round in 0..5 {
        let peers: Vec<_> = (0..20)
            .map(|number| {
                let mut peer = dial(address);
                thread::spawn(move || {
                    let bytes = noise(100 * round + number, 10_000);
                    // Until the server leaves, every echo is right.
                    loop {
                        let mut echo = vec![0; bytes.len()];
                        if peer.write_all(&bytes).and_then(|()| peer.read_exact(&mut echo)).is_err() {
                            return;
                        }
                        assert!(echo == bytes);
                    }
                })
            })
            .collect();
        server.wait_for_connections(20);
        server.stop();
        server = Server::start_on(&[&address.to_string()], &[]);
        ping(&mut server.connect(), b"again");
        peers.into_iter().for_each(|peer| peer.join().unwrap());
    }
}

#[test]
fn the_accept_limit_and_a_stop_go_together() {
    // The limit has been reached, the last connections are owed something, and then comes the signal.
    let mut server = Server::start(&["--accept-limit", "3", "--send-buffer", "4KiB"]);
    let bytes = noise(5, 8 * MIB);
    let mut peers: Vec<_> = (0..3).map(|_| server.connect()).collect();
    let sent: Vec<_> = peers.iter_mut().map(|peer| stuff(peer, &bytes)).collect();
    server.wait_for_log("listening ends");
    server.signal(Signal::TERM);
    server.wait_for_log("SIGTERM");
    for (peer, sent) in peers.iter_mut().zip(sent) {
        let echo = receive_rest(peer);
        assert!(!echo.is_empty() && bytes[..sent].starts_with(&echo));
    }
    drop(peers);
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("served 3 connections") && log.contains(" 0 aborted"), "{log}");
}

#[test]
fn a_full_disk_stops_nothing_but_the_printing() {
    let mut command = Command::new("sh");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    // Where it listens it cannot say, so that has to be known beforehand.
    let socket = directory.path().join("socket");
    let (listen, log) = (socket.display(), path.display());
    command.args(["-c", &format!("exec {ECHOLOOP} serve --print unix:{listen} 2>{log} >/dev/full")]);
    let mut child = command.spawn().unwrap();
    let mut peer = None;
    wait_until("it listens", || {
        peer = UnixStream::connect(&socket).ok();
        peer.is_some()
    });
    let mut peer = peer.unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..10 {
        ping(&mut peer, b"never printed\n");
    }
    let log = || fs::read_to_string(&path).unwrap();
    wait_until("it says so", || log().contains("cannot write to standard output: No space left"));
    ping(&mut peer, b"and echoed all the same\n");
    drop(peer);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", log());
    assert_eq!(log().matches("cannot write to standard output").count(), 1, "{}", log());
}

#[test]
fn stopped_reader_of_messages_holds_nobody_up() {
    let mut server = Server::start(&["--print", "--drain-timeout", "300ms"]);
    let before = server.resident();
    let mut peer = server.connect();
    let message = [vec![b'x'; 9999], vec![b'\n']].concat();
    for _ in 0..1000 {
        ping(&mut peer, &message); // 10 MB, of which the pipe takes 64 KiB
    }
    let grown = server.resident() - before;
    assert!(grown < 4 * MIB as u64, "{grown} bytes more than before");
    let other = &mut server.connect();
    ping(other, b"served all the same");
    server.wait_for_log("some are not printed");
    let log = server.stop();
    assert!(log.contains("the last messages are not printed"), "{log}");
    assert!(log.contains("9.5 MiB in, 9.5 MiB out"), "{log}");
}

#[test]
fn messages_are_printed_to_the_last() {
    let mut server = Server::start(&["--print", "--accept-limit", "1"]);
    let mut stdout = server.take_stdout();
    let mut peer = server.connect();
    let lines: String = (0..20_000).map(|number| format!("{number}\n")).collect();
    let name = peer.local_addr().unwrap();
    ping(&mut peer, lines.as_bytes());
    drop(peer);
    // It has nothing left to do but to print, and somebody reads it.
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    // Where the socket ran dry in mid-line, that line is two messages.
    let text = text.replace(&format!("{name} "), "");
    assert!(text.lines().count() >= 20_000 && text.replace('\n', "") == lines.replace('\n', ""));
    assert_eq!(server.wait().0.code(), Some(0));
}

/// What `/proc/net/sockstat` or the server cannot tell afterwards.
#[derive(Debug, Default)]
struct Soak {
    runs: u64,
    replies: u64,
    bytes_verified: u64,
    connections: u64,
    resets: u64,
    stalled: u64,
    silent: u64,
    pauses: u64,
}

/// Runs `echoloop bench` against the server, and adds up what it reports. A mismatch or an unanswered message fails.
fn bench(server: &Server, seed: u64, flags: &[&str], soak: &mut Soak) {
    let (addr, seed) = (server.addr().to_string(), seed.to_string());
    let args = [&["bench", &addr, "--seed", &seed, "--warm-up", "0s", "--timeout", "30s", "--json", "-", "-q"], flags];
    let output = echoloop(&args.concat(), b"");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{flags:?}: {errors}");
    let run: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(run["mismatches"].as_array().unwrap().len(), 0, "{flags:?}: {errors}");
    let count = |value: &serde_json::Value| value.as_u64().unwrap();
    soak.runs += 1;
    soak.replies += count(&run["messages"]["replies"]);
    soak.bytes_verified += count(&run["messages"]["bytes"]);
    soak.connections += count(&run["connections"]["opened"]) + count(&run["connections"]["reopened"]);
}

/// Peers that misbehave, for a while.
fn misbehave(server: &Server, rng: &mut Rng, soak: &mut Soak) {
    let bytes = noise(rng.u64(..), 3 * MIB);
    let mut unread = Vec::new();
    for _ in 0..rng.usize(1..200) {
        let mut peer = dial_small(server);
        soak.connections += 1;
        match rng.u8(..4) {
            0 => soak.silent += 1,
            1 => {
                stuff(&mut peer, &bytes);
                reset(peer);
                soak.resets += 1;
                continue;
            }
            2 => {
                let mut sent = 0;
                let deadline = Instant::now() + Duration::from_millis(10);
                while Instant::now() < deadline {
                    sent += stuff(&mut peer, &bytes[sent..]);
                }
                soak.stalled += 1;
            }
            _ => {
                let sent = stuff(&mut peer, &bytes[..rng.usize(1..100_000)]);
                peer.shutdown(Shutdown::Write).unwrap();
                assert!(receive_rest(&mut peer) == bytes[..sent]);
                soak.bytes_verified += sent as u64;
                continue;
            }
        }
        unread.push(peer);
    }
    thread::sleep(Duration::from_millis(rng.u64(..500)));
    if rng.bool() {
        // The whole server stands still for a moment, as when its machine is busy or is moved.
        server.signal(Signal::STOP);
        thread::sleep(Duration::from_millis(rng.u64(..500)));
        server.signal(Signal::CONT);
        soak.pauses += 1;
    }
}

/// Mixed load with faults for `ECHOLOOP_SECONDS` (60). In the end nothing may be wrong, open, or in memory.
#[test]
#[ignore = "runs for as long as it is told"]
fn soak() {
    let seconds = std::env::var("ECHOLOOP_SECONDS").map_or(60, |text| text.parse().expect("ECHOLOOP_SECONDS"));
    let (seed, began) = (fastrand::u64(..), Instant::now());
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let mut server = Server::start(&["--send-buffer", "32KiB", "--idle-timeout", "45s", "--terminator", "not said"]);
    let (mut soak, mut before, mut peak) = (Soak::default(), None, 0);
    while before.is_none() || began.elapsed() < Duration::from_secs(seconds) {
        let seed = rng.u64(..);
        let (depth, connections) = (rng.usize(1..64).to_string(), rng.usize(1..1000).to_string());
        let loads: [&[&str]; 4] = [
            &["-c", &connections, "-d", &depth, "-s", "1..4KiB", "-t", "2s"],
            &["-c", "8", "-d", "4", "-s", "1..256KiB", "-t", "2s"],
            &["-c", "100", "--rate", "20000", "-t", "2s", "--idle", &connections],
            &["-c", "50", "--reconnect", "7", "-t", "2s"],
        ];
        let load = loads[rng.usize(..loads.len())];
        let mut faults = rng.fork();
        let server = &server;
        thread::scope(|scope| {
            let misbehaviour = scope.spawn(move || {
                let mut soak = Soak::default();
                (0..3).for_each(|_| misbehave(server, &mut faults, &mut soak));
                soak
            });
            bench(server, seed, load, &mut soak);
            peak = peak.max(server.resident());
            let more = misbehaviour.join().unwrap();
            soak.connections += more.connections;
            soak.bytes_verified += more.bytes_verified;
            soak.resets += more.resets;
            soak.stalled += more.stalled;
            soak.silent += more.silent;
            soak.pauses += more.pauses;
        });
        server.wait_until_alone();
        // Its allocator has seen the most by then, and what comes after it must find room there.
        if before.is_none() && began.elapsed() > Duration::from_secs(seconds / 4) {
            before = Some(server.resident());
        }
    }
    let (before, after) = (before.unwrap(), server.resident());
    let log = server.stop();
    println!("{soak:#?}\nresident: {before} after a quarter, {peak} at most, {after} at the end\n{log}");
    assert!(after <= before + MIB as u64, "{after} bytes are resident, and {before} were");
    assert!(!log.contains("ERROR") && log.contains(" 0 aborted"), "{log}");
}

/// A server that is stopped while `act` happens, so that all of it has happened when the server looks again.
fn while_it_sleeps(server: &Server, act: impl FnOnce()) {
    server.signal(Signal::STOP);
    wait_until("it is stopped", || {
        fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap().contains(") T ")
    });
    act();
    server.signal(Signal::CONT);
}

#[test]
fn an_urgent_byte_comes_back_in_its_place() {
    let server = Server::start(&[]);
    let mut peer = server.connect();
    ping(&mut peer, b"before");
    for _ in 0..3 {
        while_it_sleeps(&server, || {
            peer.write_all(b"aaa").unwrap();
            socket2::SockRef::from(&peer).send_out_of_band(b"X").unwrap();
            peer.write_all(b"bbb").unwrap();
        });
        receive(&mut peer, b"aaaXbbb");
    }
    ping(&mut peer, b"after");
}

#[test]
fn bytes_with_descriptors_hide_none_behind_them() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let server = Server::start_on(&[&format!("unix:{}", path.display())], &[]);
    let mut peer = UnixStream::connect(&path).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    ping(&mut peer, b"before");
    while_it_sleeps(&server, || {
        let stdin = std::io::stdin();
        let descriptors = [stdin.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&peer, &[IoSlice::new(b"aaa")], &mut control, SendFlags::empty()).unwrap();
        peer.write_all(b"bbb").unwrap();
    });
    receive(&mut peer, b"aaabbb");
}

#[test]
fn who_connected_before_a_stop_is_served() {
    const PEERS: usize = 300;
    let mut server = Server::start(&["--max-connections", "20"]);
    let mut peers = Vec::new();
    while_it_sleeps(&server, || {
        for number in 0..PEERS {
            let mut peer = server.connect();
            peer.write_all(format!("peer {number}").as_bytes()).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            peers.push(peer);
        }
        server.signal(Signal::TERM);
    });
    for (number, peer) in peers.iter_mut().enumerate() {
        assert_eq!(receive_rest(peer), format!("peer {number}").into_bytes());
    }
    let (status, log) = server.wait();
    assert!(status.success() && log.contains(&format!("served {PEERS} connections, 20 at the peak")), "{log}");
}

/// A peer whose kernel takes little of what comes back, so that the server soon has bytes waiting.
fn dial_unreading(server: &Server) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.addr().into()).unwrap();
    let peer = TcpStream::from(socket);
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer
}

#[test]
fn stop_that_loses_bytes_resets() {
    let mut server = Server::start(&["-vv", "--drain-timeout", "200ms", "--send-buffer", "4KiB"]);
    let mut peer = dial_unreading(&server);
    let sent = stuff(&mut peer, &noise(1, 4 * MIB));
    server.wait_for_log("wait for WRITABLE");
    server.stop();
    let mut echo = Vec::new();
    let error = peer.read_to_end(&mut echo).expect_err("part of it must not look like the whole");
    assert!(error.kind() == ErrorKind::ConnectionReset && echo.len() < sent, "{error}");
}

#[test]
fn a_second_signal_resets_those_who_miss_bytes() {
    let mut server = Server::start(&["-vv", "--drain-timeout", "1h", "--send-buffer", "4KiB"]);
    let mut peer = dial_unreading(&server);
    stuff(&mut peer, &noise(1, 4 * MIB));
    server.wait_for_log("wait for WRITABLE");
    server.signal(Signal::TERM);
    server.wait_for_log("a second signal ends at once");
    // Right after the first it may be taken for the same one.
    wait_until("it ends", || {
        server.signal(Signal::TERM);
        server.has_ended()
    });
    assert_eq!(server.wait().0.code(), Some(143));
    assert_eq!(peer.read_to_end(&mut Vec::new()).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn peer_sending_after_last_message_is_dropped() {
    let server = Server::start(&["-v", "--terminator", "bye", "--send-buffer", "4KiB"]);
    let mut peer = dial_unreading(&server);
    peer.write_all(&[b"x".repeat(60_000), b"\nbye\n".to_vec()].concat()).unwrap();
    // It reads nothing, and never stops.
    let flood = thread::spawn(move || while peer.write_all(&[b'y'; 65_536]).is_ok() {});
    server.wait_for_log("closed: stalled");
    server.wait_until_alone();
    flood.join().unwrap();
}

#[test]
fn lack_of_memory_ends_connections_not_the_server() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};

    let mut server = Server::start(&["--print", "--terminator", "bye", "-v"]);
    let _unread = server.take_stdout();
    // A thread that has just begun takes memory for its stacks, and without it the process ends.
    wait_until("all threads sleep", || {
        let mut threads = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
        threads.all(|it| fs::read_to_string(it.unwrap().path().join("stat")).unwrap().contains(") S "))
    });
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let size = line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024;
    // Room for a few of those who do not read.
    let limit = Some(size + 4 * MIB as u64);
    let pid = Pid::from_raw(server.pid().cast_signed());
    prlimit(pid, Resource::As, Rlimit { current: limit, maximum: limit }).unwrap();
    let mut peers: Vec<_> = (0..400).map(|_| server.connect()).collect();
    peers.iter().for_each(|peer| peer.set_nonblocking(true).unwrap());
    let bytes = noise(1, MIB);
    wait_until("memory runs out", || {
        peers.iter_mut().for_each(|peer| _ = peer.write(&bytes)); // it may have been ended
        server.log().contains("out of memory")
    });
    drop(peers);
    let mut last = server.connect();
    ping(&mut last, b"still here");
    assert!(!server.has_ended());
}
