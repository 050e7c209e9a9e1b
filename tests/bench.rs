//! The load generator against our server, and against servers that misbehave.

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{ECHOLOOP, Server, echoloop, nobody, pass_no_ignored_signals_on, wait_until};
use echoloop::bench::{Cause, ErrorKind, Limit, Run};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use rustix::process::{Pid, Signal, kill_process};

/// Listens, and has each connection served by `serve` in a thread of its own, with its number.
fn server(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let serve = serve.clone();
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || serve(number, stream));
        }
    });
    address
}

/// Echoes, and lets `change` meddle with what goes back. `change` is given the position of the first byte.
fn echo_changed(mut stream: TcpStream, mut change: impl FnMut(usize, &mut Vec<u8>)) {
    let mut position = 0;
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let mut bytes = buffer[..count].to_vec();
        change(position, &mut bytes);
        position += count;
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// Runs `echoloop bench`.
fn bench(address: SocketAddr, flags: &str) -> Output {
    let address = address.to_string();
    let mut args = vec!["bench", &address, "-q"];
    args.extend(flags.split_whitespace());
    echoloop(&args, b"")
}

/// Runs `echoloop bench` and returns its run and its exit code.
#[track_caller]
fn run(address: SocketAddr, flags: &str) -> (Run, i32) {
    let output = bench(address, &format!("{flags} --json -"));
    let text = String::from_utf8(output.stdout).unwrap();
    let run = Run::parse(&text).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (run, output.status.code().unwrap())
}

/// Runs `echoloop bench` against a server that does wrong: it must be told, and must not hang.
#[track_caller]
fn errors(address: SocketAddr, flags: &str) -> (Run, Vec<ErrorKind>) {
    let (run, code) = run(address, &format!("{flags} --warm-up 0s"));
    assert_eq!(code, 1);
    let kinds = run.errors.iter().map(|error| error.kind).collect();
    (run, kinds)
}

#[test]
fn every_message_comes_back() {
    for flags in ["-n 5000 -c 10", "-n 5000 -c 10 -d 32", "-n 300 -c 3 -s 1..100KiB -d 4", "-n 2000 -c 10 -r 20000"] {
        let mut server = Server::start(&[]);
        let (run, code) = run(server.addr(), &format!("{flags} --warm-up 10ms"));
        // A busy machine may not keep the rate, and that is told.
        assert!(code == 0 || code == 3 && flags.contains("-r"), "{flags}: {code} {:?}", run.errors);
        assert_eq!(run.messages.sent, run.config.messages.unwrap(), "{flags}");
        assert_eq!(run.response.count, run.messages.sent, "{flags}");
        assert_eq!((run.messages.missed, run.messages.unanswered), (0, 0), "{flags}");
        assert_eq!(run.connections.opened, run.config.connections, "{flags}");
        assert_eq!(run.connections.connect.count, run.config.connections, "{flags}");
        assert_eq!(run.timeline.iter().map(|interval| interval.response.count).sum::<u64>(), run.response.count);
        let log = server.stop();
        assert!(log.contains(&format!("{} at the peak", run.config.connections)), "{log}");
        assert!(log.contains(" 0 failed"), "{log}");
    }
}

#[test]
fn ipv6_and_names_are_dialled() {
    let server = Server::start_on(&["[::1]:0"], &[]);
    assert_eq!(run(server.addr(), "-n 100 --warm-up 0s").1, 0);
    // A name may have addresses on which nobody listens.
    let server = Server::start(&[]);
    let output = echoloop(&["bench", &format!("localhost:{}", server.addr().port()), "-n100", "--warm-up", "0s"], b"");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn idle_connections_are_held_open_and_silent() {
    let mut server = Server::start(&[]);
    let (run, code) = run(server.addr(), "-n 1000 -c 5 --idle 40 --warm-up 0s");
    assert_eq!((code, run.connections.opened, run.connections.idle_opened), (0, 5, 40));
    assert!(server.stop().contains("45 at the peak"));
}

#[test]
fn connections_are_opened_at_the_rate_asked_for() {
    let server = Server::start(&[]);
    let (run, _) = run(server.addr(), "-n 10 -c 21 --connect-rate 100 --warm-up 0s");
    assert!(run.connections.opening_seconds >= 0.2, "{}", run.connections.opening_seconds);
}

#[test]
fn a_connection_is_reopened_after_its_messages() {
    let mut server = Server::start(&[]);
    let (run, code) = run(server.addr(), "-n 100 -c 4 --reconnect 2 --warm-up 0s");
    assert_eq!((code, run.messages.replies, run.connections.opened), (0, 100, 4));
    assert!((40..=50).contains(&run.connections.reopened), "{}", run.connections.reopened);
    let log = server.stop();
    assert!(log.contains(" 0 failed"), "{log}");
}

/// Two servers that say who they are, and a balancer that takes them in turn. Those of odd numbers are slow.
fn balanced() -> ([Server; 2], SocketAddr) {
    let servers = [("blue", &[][..]), ("green", &["--fault", "delay=20ms"])]
        .map(|(name, flags)| Server::start(&[&["--greeting", name], flags].concat()));
    let targets = [servers[0].addr(), servers[1].addr()];
    let balancer = server(move |number, mut inner| {
        let mut outer = TcpStream::connect(targets[number % 2]).unwrap();
        outer.set_nodelay(true).unwrap();
        let (mut back, mut forth) = (outer.try_clone().unwrap(), inner.try_clone().unwrap());
        thread::spawn(move || {
            let _ = std::io::copy(&mut back, &mut forth);
            let _ = forth.shutdown(Shutdown::Write);
        });
        let _ = std::io::copy(&mut inner, &mut outer);
        let _ = outer.shutdown(Shutdown::Write);
    });
    (servers, balancer)
}

#[test]
fn backends_are_told_apart_by_their_greetings() {
    let (_servers, balancer) = balanced();
    for (flags, asked) in [("-n 200 --reconnect 10", 200), ("-t 1s --rate 80", 80)] {
        let (run, code) = run(balancer, &format!("-c 4 --idle 2 --warm-up 0s --by-greeting {flags}"));
        assert_eq!((code, run.error_count()), (0, 0), "{flags}: {:?}", run.errors);
        let mut backends = run.backends.clone();
        backends.sort_by(|one, other| one.greeting.cmp(&other.greeting));
        let [blue, green] = &backends[..] else { panic!("{backends:?}") };
        assert_eq!((blue.greeting.as_str(), green.greeting.as_str()), ("blue", "green"));
        // Its part of the account adds up to the whole.
        assert_eq!(blue.replies + green.replies, run.messages.replies, "{flags}");
        assert_eq!((run.messages.replies, blue.unanswered + green.unanswered), (asked, 0), "{flags}");
        assert_eq!(blue.response.count + green.response.count, run.response.count, "{flags}");
        assert!(blue.connections >= 3 && green.connections >= 3, "{backends:?}");
        assert!(green.response.min_us >= 20_000.0 && blue.response.p50_us < green.response.min_us, "{backends:?}");
    }
}

#[test]
fn backends_of_merged_runs_are_added() {
    let (_servers, balancer) = balanced();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    thread::scope(|scope| {
        for name in ["one", "two"] {
            let flags = format!("-t 1s --rate 100 -c 2 --warm-up 0s --by-greeting --name {name} --json {}", path(name));
            // A busy machine may not keep the rate.
            scope.spawn(move || assert!(matches!(bench(balancer, &flags).status.code(), Some(0 | 3))));
        }
    });
    let (json, page) = (path("sum"), path("page.html"));
    let output = echoloop(&["report", "--merge", &path("one"), &path("two"), "--json", &json, "--html", &page], b"");
    let text = String::from_utf8(output.stdout).unwrap();
    let sum = Run::read(json.as_ref()).unwrap();
    assert_eq!(sum.backends.len(), 2, "{text}");
    assert_eq!(sum.backends.iter().map(|backend| backend.replies).sum::<u64>(), 200);
    assert_eq!(sum.backends.iter().map(|backend| backend.response.count).sum::<u64>(), 200);
    let page = fs::read_to_string(page).unwrap();
    for name in ["blue", "green"] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{text}");
        assert!(page.contains(&format!("<th scope=\"row\">{name}</th>")));
    }
}

#[test]
fn missing_greetings_are_errors_with_a_remedy() {
    type Serve = fn(TcpStream);
    let cases: [(Serve, &str); 4] = [
        (|stream| echo_changed(stream, |_, _| {}), "no greeting within 300ms"),
        (drop, "before its greeting"),
        (|mut stream| _ = stream.write_all(&[b'x'; 5000]).and(stream.read(&mut [0])), "without a newline"),
        (|mut stream| _ = stream.write_all(b"a\nb").and(stream.read(&mut [0; 64])), "1 byte more"),
    ];
    for (serve, says) in cases {
        let server = server(move |_, stream| serve(stream));
        let output = bench(server, "-n 10 -c 1 --warm-up 0s --timeout 300ms --by-greeting");
        let text = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
        assert!(output.status.code() == Some(1) && text.contains(says), "{text}");
    }
    // And one that nobody expected says which option is for it.
    let server = Server::start(&["--greeting", "hello"]);
    let (run, _) = errors(server.addr(), "-c 0 --idle 1 -t 1s");
    assert!(run.errors[0].first.contains("--by-greeting"), "{:?}", run.errors);
}

#[test]
fn connections_are_dialled_from_each_source_in_turn() {
    let (sender, peers) = channel();
    let sender = Mutex::new(sender);
    let address = server(move |_, stream| {
        sender.lock().unwrap().send(stream.peer_addr().unwrap().ip()).unwrap();
        echo_changed(stream, |_, _| ());
    });
    assert_eq!(run(address, "-n 60 -c 6 --source 127.0.0.2-127.0.0.3,127.0.0.9 --warm-up 0s").1, 0);
    let mut seen: Vec<IpAddr> = peers.try_iter().collect();
    seen.sort();
    let expected = [2, 2, 3, 3, 9, 9].map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)));
    assert_eq!(seen, expected);
}

/// What a server received on its first connection.
fn received(flags: &str) -> Vec<u8> {
    let (sender, bytes): (_, Receiver<Vec<u8>>) = channel();
    let sender = Mutex::new(sender);
    let address = server(move |_, stream| {
        let mut all = Vec::new();
        echo_changed(stream, |_, bytes| all.extend_from_slice(bytes));
        sender.lock().unwrap().send(all).unwrap();
    });
    assert_eq!(run(address, &format!("-c 1 -n 50 --warm-up 0s {flags}")).1, 0);
    bytes.recv().unwrap()
}

#[test]
fn a_seed_makes_a_run_reproducible() {
    let bytes = received("-s 1..1000 --seed 7");
    assert!(bytes == received("-s 1..1000 --seed 7"));
    assert!(bytes != received("-s 1..1000 --seed 8"));
    assert_eq!(received("-s 100").len(), 5000);
}

#[test]
fn lost_byte_is_found_where_it_was_lost() {
    let address = server(|_, stream| {
        let mut lost = false;
        echo_changed(stream, |position, bytes| {
            if !lost && position >= 640 {
                lost = true;
                bytes.remove(10);
            }
        });
    });
    let (run, kinds) = errors(address, "-c 1 -d 8 -t 10s");
    assert_eq!(kinds, [ErrorKind::Mismatch]);
    let mismatch = &run.mismatches[0];
    assert_eq!((mismatch.connection, mismatch.cause), (0, Cause::Lost { bytes: 1 }));
    assert!(mismatch.offset >= 650 && mismatch.expected != mismatch.got);
}

#[test]
fn swapped_and_repeated_bytes_are_found() {
    let swapping = server(|_, stream| echo_changed(stream, |_, bytes| bytes.swap(20, 21)));
    let (run, kinds) = errors(swapping, "-c 1 -t 10s");
    assert_eq!((kinds, run.mismatches[0].offset), (vec![ErrorKind::Mismatch], 20));
    assert_eq!(run.mismatches[0].cause, Cause::Altered);

    let repeating = server(|_, stream| {
        let mut before = Vec::new();
        echo_changed(stream, |_, bytes| {
            let now = bytes.clone();
            if !before.is_empty() {
                *bytes = std::mem::take(&mut before);
            }
            before = now;
        });
    });
    let (run, kinds) = errors(repeating, "-c 1 -t 10s");
    assert_eq!((kinds, run.mismatches[0].offset), (vec![ErrorKind::Mismatch], 64));
    assert_eq!(run.mismatches[0].cause, Cause::Repeated { bytes: 64 });
}

#[test]
fn bytes_of_another_connection_are_recognised() {
    let others: Arc<Mutex<HashMap<usize, TcpStream>>> = Arc::default();
    let address = server(move |number, mut stream| {
        others.lock().unwrap().insert(number, stream.try_clone().unwrap());
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            wait_until("both are there", || others.lock().unwrap().len() == 2);
            let _ = (&others.lock().unwrap()[&(1 - number)]).write_all(&buffer[..count]);
        }
    });
    let (run, kinds) = errors(address, "-c 2 -t 10s");
    assert_eq!(kinds, [ErrorKind::Mismatch]);
    let connection = 1 - run.mismatches[0].connection;
    assert_eq!(run.mismatches[0].cause, Cause::Foreign { connection, offset: 0 });
}

#[test]
fn replies_to_nothing_are_found() {
    let address = server(|_, stream| echo_changed(stream, |_, bytes| bytes.push(0)));
    assert_eq!(errors(address, "-c 3 -t 10s").1, [ErrorKind::Excess]);
    // An idle connection is owed nothing at all.
    let address = server(|_, mut stream| {
        let _ = stream.write_all(b"220 ready\r\n");
        echo_changed(stream, |_, _| ());
    });
    assert_eq!(errors(address, "-c 0 --idle 2 -t 10s").1, [ErrorKind::Excess]);
}

#[test]
fn occasional_delay_shows_in_the_latency() {
    let count = AtomicUsize::new(0);
    let address = server(move |_, stream| {
        echo_changed(stream, |_, _| {
            if count.fetch_add(1, Ordering::Relaxed) % 100 == 99 {
                thread::sleep(Duration::from_millis(50));
            }
        })
    });
    let (run, code) = run(address, "-c 1 -n 1000 --warm-up 0s");
    assert_eq!(code, 0);
    assert!(run.response.max_us >= 50_000.0);
    let slow = run.response.decode().unwrap().count_between(50_000_000, u64::MAX);
    assert!((10..15).contains(&slow), "{slow}");
}

#[test]
fn a_server_that_stops_reading_ends_in_timeouts() {
    let address = server(|_, _stream| thread::sleep(Duration::from_secs(60)));
    for flags in ["-c 3", "-c 3 -s 1MiB -d 8", "-c 3 -r 1000"] {
        let (run, kinds) = errors(address, &format!("{flags} -t 20s --timeout 300ms"));
        assert_eq!(kinds, [ErrorKind::ReplyTimeout], "{flags}");
        assert_eq!(run.errors[0].count, 3, "{flags}");
        assert!(run.messages.unanswered >= 3, "{flags}");
        assert!(run.seconds < 10.0, "it ends when no connection is left");
    }
}

#[test]
fn a_server_that_accepts_nobody_ends_in_timeouts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_, kinds) = errors(listener.local_addr().unwrap(), "-c 3 -t 20s --timeout 300ms");
    assert_eq!(kinds, [ErrorKind::ReplyTimeout], "the kernel has connected them");
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let (run, kinds) = errors(address, "-c 9 -t 20s --timeout 500ms");
    assert_eq!(kinds, [ErrorKind::ConnectTimeout, ErrorKind::ReplyTimeout]);
    assert!(run.connections.opened < 9);
}

#[test]
fn early_close_and_reset_are_told_apart() {
    let closing = server(|_, mut stream| {
        let mut buffer = [0; 640];
        let _ = stream.read_exact(&mut buffer).and_then(|()| stream.write_all(&buffer));
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert_eq!(errors(closing, "-c 2 -d 10 -t 20s").1, [ErrorKind::ClosedEarly]);
    let resetting = server(|_, mut stream| {
        let mut buffer = [0; 640];
        let _ = stream.read_exact(&mut buffer).and_then(|()| stream.write_all(&buffer));
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    });
    assert_eq!(errors(resetting, "-c 2 -d 10 -t 20s").1, [ErrorKind::Reset]);
}

#[test]
fn nobody_listening_is_one_line() {
    let address = nobody().to_string();
    let output = echoloop(&["bench", &address], b"");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&address) && text.contains("refused"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn server_that_goes_away_midway_ends_the_run() {
    let server = Server::start(&[]);
    let address = server.addr();
    let running = thread::spawn(move || run(address, "-c 5 -t 60s --warm-up 0s"));
    server.wait_for_connections(5);
    server.signal(Signal::KILL);
    let (run, code) = running.join().unwrap();
    assert_eq!(code, 1);
    assert_eq!(run.error_count(), 5);
    assert!(run.seconds < 30.0);
}

#[test]
fn messages_of_a_lost_connection_end_the_run() {
    let address = server(|number, mut stream| {
        if number == 1 {
            let mut message = [0; 64];
            let _ = stream.read_exact(&mut message).and_then(|()| stream.write_all(&message));
            return;
        }
        echo_changed(stream, |_, _| ());
    });
    let (run, code) = run(address, "-r 200 -n 400 -c 4 --warm-up 0s");
    assert_eq!(code, 1);
    assert!(run.error_count() == 1 && run.messages.replies >= 300, "{:?}", run.messages);
    assert_eq!(run.messages.sent + run.messages.missed, 400);
}

#[test]
fn a_dead_server_ends_a_run_that_reconnects() {
    for flags in ["-n 100000000", "-n 100000000 -r 10000", "-t 60s"] {
        let server = Server::start(&[]);
        let flags = format!("{flags} -c 10 --reconnect 100 --timeout 500ms --warm-up 0s");
        let address = server.addr();
        let running = thread::spawn(move || run(address, &flags));
        server.wait_for_connections(10);
        server.signal(Signal::KILL);
        let (run, code) = running.join().unwrap();
        assert_eq!(code, 1);
        assert!(run.seconds < 30.0, "{}", run.seconds);
    }
}

#[test]
fn a_server_that_serves_nobody_ends_the_run() {
    // Each connection is accepted, and closed.
    let address = server(|_, _stream| ());
    for flags in [
        "-n 1000",
        "-n 1000 -r 1000",
        "-t 60s -r 1000",
        "-n 100000000 --reconnect 10",
        "-n 100000000 -r 10000 --reconnect 1",
    ] {
        let (run, code) = run(address, &format!("{flags} -c 4 --timeout 1s --warm-up 100ms"));
        assert_eq!((code, run.messages.replies), (1, 0), "{flags}");
    }
}

#[test]
fn replies_are_counted_with_their_messages() {
    let server = Server::start(&[]);
    for flags in ["-c 50 -d 16", "-c 1 -d 64", "-c 7 -d 3 --reconnect 5", "-c 3 -r 100000"] {
        let (run, code) = run(server.addr(), &format!("-n 1000 {flags} --warm-up 50ms"));
        assert!(code == 0 || code == 3 && flags.contains("-r"), "{flags}: {code} {:?}", run.errors);
        assert_eq!((run.messages.sent, run.messages.replies, run.response.count), (1000, 1000, 1000), "{flags}");
        assert!((run.rate - 1000.0 / run.seconds).abs() < 1e-6 * run.rate, "{flags}: {} {}", run.rate, run.seconds);
    }
}

#[test]
fn silent_datagram_service_is_no_success() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = format!("udp:{}", silent.local_addr().unwrap());
    for (flags, code) in [("-t 300ms", 1), ("-n 1000000", 1), ("-t 300ms --fail-if p99>1s", 3)] {
        let args = format!("bench {address} -c 2 --warm-up 0s --timeout 200ms {flags}");
        let output = echoloop(&args.split(' ').collect::<Vec<_>>(), b"");
        assert_eq!(output.status.code(), Some(code), "{flags}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn refused_datagram_does_not_end_the_run() {
    let address = format!("udp:{}", std::net::UdpSocket::bind("127.0.0.98:0").unwrap().local_addr().unwrap());
    let args = ["bench", &address, "-c", "2", "-r", "100", "-t", "600ms", "--warm-up", "0s", "--timeout", "100ms"];
    let output = echoloop(&[&args[..], &["--json", "-"]].concat(), b"");
    let run = Run::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    assert_eq!((output.status.code(), run.seconds), (Some(1), 0.6));
    assert_eq!(run.errors.iter().map(|error| error.kind).collect::<Vec<_>>(), [ErrorKind::Unreachable]);
    assert_eq!((run.outcomes.due, run.outcomes.answered), (60, 0));
}

#[test]
fn unanswered_messages_bound_the_percentiles() {
    // Two of ten connections are served.
    let address = server(|number, stream| match number {
        0 | 1 => echo_changed(stream, |_, _| ()),
        _ => thread::sleep(Duration::from_secs(60)),
    });
    let flags = "-c 10 -r 1000 -t 1s --timeout 500ms --warm-up 0s";
    let (run, code) = run(address, flags);
    let outcomes = run.outcomes;
    assert_eq!((code, outcomes.due, outcomes.answered), (1, 1000, 200));
    assert!(
        outcomes.unanswered >= 8 && outcomes.unanswered + outcomes.never_sent.connection_gone == 800,
        "{outcomes:?}"
    );
    assert_eq!((run.response.count, run.response.bounds), (1000, 800));
    assert!(run.response.lower_bounds.contains(&"p99_99_us".to_owned()), "{:?}", run.response.lower_bounds);
    assert!(run.response.max_us >= 500_000.0);
    let output = bench(address, &format!("{flags} --fail-if p99>10s"));
    assert_eq!(output.status.code(), Some(3), "what was not answered meets no bound");
    let text = String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(" were not answered: they took at least (>)"), "{text}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("run.json").display().to_string();
    fs::write(&file, serde_json::to_string(&run).unwrap()).unwrap();
    let text = String::from_utf8(echoloop(&["report", &file, &file], b"").stdout).unwrap();
    let bounds = text.lines().filter(|line| line.starts_with("max ") && line.matches('>').count() == 2);
    assert_eq!(bounds.count(), 1, "{text}");
}

#[test]
fn rate_beyond_the_server_is_not_kept() {
    // Five milliseconds a message, one after the other: two hundred a second.
    let address = server(|_, stream| {
        echo_changed(stream, |_, bytes| thread::sleep(Duration::from_millis(5) * (bytes.len() / 64) as u32));
    });
    let (run, code) = run(address, "-c 1 -r 1000 -t 1s --warm-up 0s");
    let kept = run.rate_kept.as_ref().unwrap();
    assert_eq!((code, kept.kept, kept.limit), (3, false, Some(echoloop::bench::Limit::Server)), "{:?}", run.errors);
    assert!((100.0..210.0).contains(&run.rate), "{}", run.rate);
    assert_eq!(run.seconds, 1.0);
}

#[test]
fn rate_beyond_everybody_ends_in_time() {
    let server = Server::start(&[]);
    for rate in ["3000000", "1e9"] {
        let (run, code) = run(server.addr(), &format!("-c 3 -r {rate} -t 300ms --timeout 500ms --warm-up 100ms"));
        assert_eq!(run.seconds, 0.3);
        assert!(code == 3 || code == 1 || rate == "3000000", "{code}");
        let due: f64 = rate.parse::<f64>().unwrap() * 0.3;
        assert!((run.outcomes.due as f64 - due).abs() <= 1.0, "{:?}", run.outcomes);
    }
}

#[test]
fn slow_closes_do_not_slow_a_closed_loop() {
    let address = server(|_, mut stream| {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..count]).unwrap();
        }
        thread::sleep(Duration::from_secs(1));
    });
    let (run, code) = run(address, "-c 2 --reconnect 10 -n 1000 --warm-up 0s");
    assert_eq!((code, run.messages.replies), (0, 1000));
    assert!(run.connections.reopened >= 90 && run.seconds < 20.0, "{} {}", run.connections.reopened, run.seconds);
}

#[test]
fn search_without_its_server_ends() {
    let server = Server::start(&[]);
    let address = server.addr();
    let search = thread::spawn(move || run(address, "-c 2 --find-rate p50<10s --warm-up 0s --timeout 500ms"));
    server.wait_for_connections(2);
    server.signal(Signal::KILL);
    let (run, code) = search.join().unwrap();
    assert_eq!(code, 1);
    let search = run.search.unwrap();
    // Which of the two depends on whether connections of the step were still open.
    let (steps, ended) = (search.steps.len(), search.ended.unwrap());
    let is_told = ended.contains("refused") || ended.contains("nobody answered");
    assert!(steps <= 3 && is_told, "{steps} steps: {ended}");
}

#[test]
fn second_signal_ends_waiting_and_the_report_comes() {
    pass_no_ignored_signals_on();
    let address = server(|_, _stream| thread::sleep(Duration::from_secs(60)));
    let child = Command::new(ECHOLOOP)
        .args([
            "bench",
            &address.to_string(),
            "-c",
            "3",
            "-r",
            "50",
            "-t",
            "60s",
            "--timeout",
            "60s",
            "--warm-up",
            "0s",
        ])
        .args(["--json", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let sockets = || fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap().count();
    wait_until("it is connected", || sockets() >= 8);
    thread::sleep(Duration::from_millis(300)); // so that something is due
    kill_process(pid, Signal::HUP).unwrap();
    thread::sleep(Duration::from_millis(100));
    kill_process(pid, Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let run = Run::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    assert!(run.interrupted && run.seconds < 30.0 && run.outcomes.unanswered > 0, "{:?}", run.outcomes);
    assert!(String::from_utf8_lossy(&output.stderr).contains("of 60.00 s"));
    // Who would not wait cannot say that the server was slow.
    let rate = run.rate_kept.unwrap();
    assert!(!rate.kept && rate.limit.is_none() && rate.text.contains("a signal"), "{rate:?}");
}

#[test]
fn stalls_of_the_generator_are_told() {
    let server = Server::start(&[]);
    let child = Command::new(ECHOLOOP)
        .args(["bench", &server.addr().to_string(), "-c", "2", "-t", "1s", "--warm-up", "0s", "--json", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let idle = server.processor_time();
    wait_until("messages flow", || server.processor_time() > idle + Duration::from_millis(30));
    kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
    thread::sleep(Duration::from_millis(500));
    kill_process(Pid::from_child(&child), Signal::CONT).unwrap();
    let output = child.wait_with_output().unwrap();
    let run = Run::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    assert!(run.generator.explains.contains(&"max".to_owned()), "{:?}", run.generator.explains);
    assert!(run.generator.stalls.unwrap().max_us >= 400_000.0);
    assert!(String::from_utf8_lossy(&output.stderr).contains("stood still"));
}

/// A server that echoes at once, but for a second after it was told to freeze.
fn freezing_server() -> (SocketAddr, Arc<AtomicBool>) {
    let frozen = Arc::new(AtomicBool::new(false));
    let told = frozen.clone();
    let address = server(move |_, mut stream| {
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            while told.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
            if stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    });
    (address, frozen)
}

/// Makes a load for two and a half seconds, in which the server freezes for one.
fn load_a_freezing_server(flags: &str) -> Run {
    let (address, frozen) = freezing_server();
    let flags = format!("{flags} -t 2500ms --warm-up 0s");
    let running = thread::spawn(move || run(address, &flags));
    thread::sleep(Duration::from_millis(700));
    frozen.store(true, Ordering::Relaxed);
    thread::sleep(Duration::from_secs(1));
    frozen.store(false, Ordering::Relaxed);
    let (run, code) = running.join().unwrap();
    assert_eq!(code, 0);
    run
}

#[test]
fn open_loop_latency_counts_from_due_time() {
    // Small messages can all be sent, and wait in the server.
    let run = load_a_freezing_server("-c 10 -r 1000");
    let late = run.response.decode().unwrap().count_between(100_000_000, u64::MAX);
    assert!((800..1100).contains(&late), "{late} of the messages due in that second, less its last tenth");
    assert!((900_000.0..1_500_000.0).contains(&run.response.p99_us), "{}", run.response.p99_us);

    // Large ones fill the sockets, and wait in the generator: the service time hides them.
    let run = load_a_freezing_server("-c 1 -r 200 -s 256KiB");
    let service = run.service.unwrap();
    assert!(run.response.p90_us > 500_000.0, "{}", run.response.p90_us);
    assert!(service.p50_us < run.response.p90_us / 2.0, "{} {}", service.p50_us, run.response.p90_us);
    let slow = |latency: &echoloop::bench::Latency| latency.decode().unwrap().count_between(100_000_000, u64::MAX);
    assert!(slow(&service) < slow(&run.response) / 2, "{} {}", slow(&service), slow(&run.response));

    // And in a closed loop there is one slow reply a connection, and nobody asks meanwhile: coordinated omission.
    let run = load_a_freezing_server("-c 10");
    assert!((1..=20).contains(&slow(&run.response)));
    assert!(run.response.p99_us < 100_000.0);
}

#[test]
fn what_could_not_be_sent_is_missed() {
    let address = server(|_, _stream| thread::sleep(Duration::from_secs(60)));
    let (run, code) = run(address, "-c 1 -r 1000 -s 64KiB -t 1s --warm-up 0s --timeout 2s");
    assert_eq!(code, 1);
    assert!(run.messages.missed > 100, "{:?}", run.messages);
    assert!((990..=1010).contains(&(run.messages.sent + run.messages.missed)), "{:?}", run.messages);
    assert_eq!(run.messages.unanswered, run.messages.sent);
}

#[test]
fn the_highest_rate_is_found() {
    // Ten milliseconds a message, one after the other: a hundred a second.
    let address = server(|_, mut stream| {
        let mut buffer = [0; 64];
        while stream.read_exact(&mut buffer).is_ok() {
            thread::sleep(Duration::from_millis(10));
            if stream.write_all(&buffer).is_err() {
                return;
            }
        }
    });
    let (run, code) = run(address, "-c 1 --find-rate p90<60ms --rate 50 -t 600ms --warm-up 0s --timeout 300ms");
    let search = run.search.unwrap();
    let (holds, fails) = (search.holds_at.unwrap(), search.fails_at.unwrap());
    assert_eq!(code, 0, "{search:?}");
    assert!((30.0..115.0).contains(&holds) && fails > holds && fails <= holds * 1.06, "{search:?}");
    assert!(search.steps.len() >= 4);
    let text = bench(address, "-c 1 --find-rate p50<1ms --rate 300 -t 300ms --warm-up 0s --timeout 300ms");
    assert_eq!(text.status.code(), Some(3), "it holds at no rate");
    assert!(String::from_utf8_lossy(&text.stdout).contains("p50<1ms does not hold"));
}

#[test]
fn criteria_decide_the_exit_code() {
    let server = Server::start(&[]);
    let output = bench(server.addr(), "-n 100 --warm-up 0s --fail-if errors>0 --fail-if rate<1 --fail-if p50>=0s");
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--fail-if p50>=0s: p50 = "), "{text}");
    assert!(!text.contains("errors>0"), "{text}");
    let output = bench(server.addr(), "-n 100 --warm-up 0s --fail-if errors>0");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_signal_ends_it_early_with_a_report() {
    let mut server = Server::start(&[]);
    let address = server.addr().to_string();
    let child = Command::new(ECHOLOOP)
        .args(["bench", &address, "-t", "60s", "--warm-up", "0s", "--json", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    server.wait_for_connections(50);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let run = Run::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    assert!(run.interrupted && run.seconds < 30.0 && run.error_count() == 0);
    assert!(String::from_utf8_lossy(&output.stderr).contains("ended early"));
    server.stop();
}

#[test]
fn too_many_connections_are_refused_before_any_opens() {
    let mut server = Server::start(&["-v"]);
    let command = format!("ulimit -n 60; exec {ECHOLOOP} bench {} -c 100", server.addr());
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("100 connections") && text.contains("60") && text.contains("ulimit -n"), "{text}");
    assert!(!server.stop().contains("accepted"));
}

#[test]
fn unwritable_files_are_named_before_any_connection_opens() {
    let mut server = Server::start(&["-v"]);
    for flag in ["--json", "--html", "--hdr", "--hgrm"] {
        let output = bench(server.addr(), &format!("{flag} /no/such/directory/file"));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("cannot write /no/such/directory/file: No such file"), "{text}");
    }
    let output = bench(server.addr(), "--json - --hdr -");
    assert_eq!(output.status.code(), Some(1));
    assert!(!server.stop().contains("accepted"));
}

/// Runs `report` on a file with a run of version 1, in a shell that has its path as $RUN.
fn report_in_shell(command: &str, directory: &Path) -> Output {
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runs/version-1.json");
    let command = command.replace("REPORT", &format!("{ECHOLOOP} report {}", run.display()));
    Command::new("sh").args(["-c", &command]).current_dir(directory).output().unwrap()
}

/// What is in a directory, sorted.
fn listing(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn one_file_under_two_names_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("old"), "the last run").unwrap();
    fs::hard_link(path.join("old"), path.join("hard")).unwrap();
    std::os::unix::fs::symlink("old", path.join("soft")).unwrap();
    std::os::unix::fs::symlink("new", path.join("dangling")).unwrap();
    for (json, html) in [
        ("old", "old"),
        ("old", "./old"),
        ("old", "hard"),
        ("soft", "old"),
        ("new", "../$(basename $PWD)/new"),
        ("dangling", "new"),
        ("-", "-"),
        ("-", "/dev/stdout"),
    ] {
        let output = report_in_shell(&format!("REPORT --merge --json {json} --html {html}"), path);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{json} {html}: {text}");
        assert!(text.contains("to be written twice"), "{json} {html}: {text}");
    }
    assert_eq!(fs::read_to_string(path.join("old")).unwrap(), "the last run");
    assert_eq!(listing(path), ["dangling", "hard", "old", "soft"]);
    let output = report_in_shell("REPORT --merge --json /dev/null --html /dev/null", path);
    assert_eq!(output.status.code(), Some(0), "whatever is written there, nothing is lost");
}

#[test]
fn links_pipes_and_stdout_stay_what_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("old"), "the last run").unwrap();
    fs::set_permissions(path.join("old"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("old", path.join("soft")).unwrap();
    std::os::unix::fs::symlink("new", path.join("dangling")).unwrap();
    let is_run = |name: &str| Run::read(&path.join(name)).is_ok_and(|run| run.messages.replies == 5000);

    assert_eq!(report_in_shell("REPORT --merge --json soft", path).status.code(), Some(0));
    assert!(is_run("old") && path.join("soft").is_symlink());
    assert_eq!(fs::metadata(path.join("old")).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(report_in_shell("REPORT --merge --json dangling", path).status.code(), Some(0));
    assert!(is_run("new") && path.join("dangling").is_symlink());

    // The text goes where the run does not.
    for name in ["/dev/stdout", "/dev/fd/1", "-", "same"] {
        let output = report_in_shell(&format!("REPORT --merge --json {name} > same"), path);
        assert_eq!(output.status.code(), Some(0), "{name}");
        assert!(is_run("same"), "{name}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("5,000 replies"), "{name}");
    }
    let output = report_in_shell("REPORT --merge --json /dev/fd/3 3> three; REPORT > text", path);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    assert!(is_run("three"));
    let output = report_in_shell("mkfifo pipe; cat pipe > piped & REPORT --merge --json pipe; wait", path);
    assert_eq!(output.status.code(), Some(0));
    assert!(is_run("piped"));
    assert_eq!(listing(path), ["dangling", "new", "old", "pipe", "piped", "same", "soft", "text", "three"]);
}

#[test]
#[cfg(target_os = "linux")] // elsewhere there need not be a /dev/full
fn what_can_be_written_is_when_something_cannot() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    for (command, complaint) in [
        ("REPORT --merge --json /dev/full --html page.html", "cannot write /dev/full: No space"),
        ("REPORT --merge --json run.json --html page.html > /dev/full", "cannot write to standard output: No space"),
    ] {
        let output = report_in_shell(command, path);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{command}: {text}");
        assert!(text.contains(complaint), "{command}: {text}");
        assert!(command.contains("> /dev/full") || output.stdout.starts_with(b"version 1: "), "the text comes first");
        assert!(path.join("page.html").exists(), "{command}");
    }
    // A limit on files stands for a full disk: the old result stays, and nothing half is left.
    fs::write(path.join("run.json"), "the last run").unwrap();
    let output = report_in_shell("ulimit -f 1; REPORT --merge --json run.json --html page.html", path);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.starts_with(b"version 1: "));
    assert_eq!(String::from_utf8(output.stderr).unwrap().matches("File too large").count(), 2, "both were tried");
    assert_eq!(fs::read_to_string(path.join("run.json")).unwrap(), "the last run");
    assert_eq!(listing(path), ["page.html", "run.json"]);
    // Who has seen enough is no error.
    let output = report_in_shell("{ REPORT; echo $? >&2; } | true", path);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "0\n");
}

#[test]
fn names_from_files_reach_no_terminal_raw() {
    let directory = tempfile::tempdir().unwrap();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runs/version-1.json");
    let text = fs::read_to_string(sample).unwrap();
    let evil = "\\u001b]0;owned\\u0007\\r\\n\\u202e\\u009b2J";
    let paths = [("\"version 1\"", "run.json"), ("\"echoloop-bench\"", "junk\u{1b}[2J.json"), ("\"64\"", "three.json")]
        .map(|(what, file)| {
            let path = directory.path().join(file);
            fs::write(&path, text.replacen(what, &format!("\"{evil}\""), 1)).unwrap();
            path.display().to_string()
        });
    let page = directory.path().join("page.html").display().to_string();
    for args in [vec![&paths[0]], vec![&paths[0], &paths[2]], vec![&paths[1]], vec![&paths[0], &paths[1]]] {
        let args = args.iter().map(|path| path.as_str());
        let output = echoloop(&["report", "--html", &page].into_iter().chain(args).collect::<Vec<_>>(), b"");
        let page = fs::read(&page).unwrap_or_default();
        let text = String::from_utf8([output.stdout, output.stderr, page].concat()).unwrap();
        assert!(text.contains("u{1b}"), "{text}");
        assert!(!text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    }
}

#[test]
fn failed_run_leaves_files_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("run.json");
    fs::write(&file, "the last run").unwrap();
    assert_eq!(bench(nobody(), &format!("--json {}", file.display())).status.code(), Some(1));
    assert_eq!(fs::read_to_string(file).unwrap(), "the last run");
}

#[test]
fn every_file_is_written_and_can_be_read() {
    let server = Server::start(&[]);
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let flags = format!(
        "-n 3000 -c 5 --warm-up 0s --name <b>run --json {} --html {} --hdr {} --hgrm {}",
        path("run.json"),
        path("run.html"),
        path("run.hdr"),
        path("run.hgrm")
    );
    assert_eq!(bench(server.addr(), &flags).status.code(), Some(0));

    let json: serde_json::Value = serde_json::from_slice(&fs::read(path("run.json")).unwrap()).unwrap();
    let schema = echoloop(&["report", "--schema"], b"").stdout;
    let schema: serde_json::Value = serde_json::from_slice(&schema).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let complaints: Vec<_> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
    assert_eq!(complaints, Vec::<String>::new());
    let mut broken = json.clone();
    broken["messages"]["replies"] = "many".into();
    assert!(!validator.is_valid(&broken), "the schema says something");

    let log = fs::read(path("run.hdr")).unwrap();
    let mut sum = Histogram::<u64>::new(3).unwrap();
    for entry in IntervalLogIterator::new(&log) {
        if let LogEntry::Interval(interval) = entry.unwrap() {
            let bytes = base64(interval.encoded_histogram());
            sum += Deserializer::new().deserialize::<u64, _>(&mut bytes.as_slice()).unwrap();
        }
    }
    assert_eq!(sum.len(), 3000);

    let distribution = fs::read_to_string(path("run.hgrm")).unwrap();
    assert!(distribution.contains("Total count    =         3000"), "{distribution}");
    let counts: Vec<u64> =
        distribution.lines().skip(2).filter_map(|line| line.split_whitespace().nth(2)?.parse().ok()).collect();
    assert!(counts.len() > 10 && counts.is_sorted() && counts.contains(&3000), "{counts:?}");

    let page = fs::read_to_string(path("run.html")).unwrap();
    assert!(page.contains("&lt;b&gt;run") && !page.contains("<b>run"));
    assert_eq!(page.matches("<svg role=\"img\"").count(), 8, "four charts, wide and narrow");
    assert!(!page.contains("http://") && !page.contains("https://"), "no request leaves it");
}

fn base64(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[test]
fn runs_are_compared_and_merged() {
    let server = Server::start(&[]);
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    for name in ["one", "two"] {
        let flags = format!("-n 500 -c 2 --warm-up 0s --name {name} --json {}", path(name));
        assert_eq!(bench(server.addr(), &flags).status.code(), Some(0));
    }
    let output = echoloop(&["report", &path("one"), &path("two"), "--html", &path("page.html")], b"");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().next().unwrap().contains("one") && text.contains("p99.99") && text.contains(" ("), "{text}");
    assert!(fs::read_to_string(path("page.html")).unwrap().contains("2 runs"));

    // They ran one after the other, which is no one test.
    let merge = ["report", "--merge", &path("one"), &path("two"), "--json", &path("sum"), "--name", "both"];
    let text = String::from_utf8(echoloop(&merge, b"").stderr).unwrap();
    assert!(text.contains(&format!("{} began ", path("two"))) && text.lines().count() == 1, "{text}");
    let [one, mut two] = ["one", "two"].map(|name| Run::read(path(name).as_ref()).unwrap());
    (two.measured_from, two.measured_to) = (one.measured_from, one.measured_to);
    fs::write(path("two"), serde_json::to_string(&two).unwrap()).unwrap();
    let output = echoloop(&merge, b"");
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().contains("1,000 replies"));
    let [one, two, sum] = ["one", "two", "sum"].map(|name| Run::read(path(name).as_ref()).unwrap());
    let mut added = one.response.decode().unwrap();
    added += two.response.decode().unwrap();
    assert_eq!(sum.response.decode().unwrap(), added);
    assert_eq!((sum.messages.replies, sum.merged, sum.name.as_str()), (1000, 2, "both"));
    assert!((sum.rate * sum.seconds - 1000.0).abs() < 1e-6);
    assert_eq!(sum.parts.iter().map(|part| part.id.clone()).collect::<Vec<_>>(), [one.id, two.id]);
    std::os::unix::fs::symlink(path("one"), path("link")).unwrap();
    for files in [["one", "one"], ["one", "link"], ["sum", "two"]] {
        let output = echoloop(&["report", "--merge", &path(files[0]), &path(files[1])], b"");
        assert_eq!(output.status.code(), Some(1), "{files:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("a run counts once"), "{files:?}");
    }

    let json = fs::read(path("one")).unwrap();
    let output = echoloop(&["report", "-"], &json);
    assert!(String::from_utf8(output.stdout).unwrap().contains("500 replies"));
    fs::write(path("junk"), "{\"hello\": 1}").unwrap();
    for (file, cause) in [("junk", "is not a run"), ("missing", "No such file")] {
        let output = echoloop(&["report", &path(file)], b"");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text.contains(&path(file)) && text.contains(cause) && text.lines().count() == 1, "{text}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_server_is_watched() {
    let server = Server::start(&[]);
    let flags = format!("-t 300ms -c 10 --idle 2000 --warm-up 0s --watch-pid {}", server.pid());
    let watched = run(server.addr(), &flags).0.watched.unwrap();
    assert!(watched.cpu_seconds > 0.0 && watched.cpu_us_per_message > 0.0, "{watched:?}");
    assert!(watched.resident_peak >= watched.resident_before && watched.resident_before > 0, "{watched:?}");
    assert!((1.0..10_000.0).contains(&watched.resident_per_connection), "{watched:?}");
    // A stranger and no process are refused, and who it is instead is told.
    let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
    for (pid, complaint) in [
        (
            stranger.id(),
            format!("(sleep) does not listen on {}; process {} (echoloop) does", server.addr(), server.pid()),
        ),
        (2_147_483_647, "cannot watch process 2147483647".to_owned()),
    ] {
        let output = bench(server.addr(), &format!("--watch-pid {pid}"));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
        assert!(text.contains(&complaint), "{text}");
    }
    let directory = tempfile::tempdir().unwrap();
    let named = format!("unix:{}", directory.path().join("named.sock").display());
    let unix = Server::start_on(&[&named], &[]);
    let watch = |pid: u32| echoloop(&["bench", &named, "-qn10", "--warm-up=0s", "--watch-pid", &pid.to_string()], b"");
    let refused = String::from_utf8(watch(stranger.id()).stderr).unwrap();
    assert!(refused.contains(&format!("(sleep) does not listen on {named}; process {}", unix.pid())), "{refused}");
    assert_eq!(watch(unix.pid()).status.code(), Some(0));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_watched_process_that_ends_is_told() {
    let server = Server::start(&[]);
    let (address, pid) = (server.addr(), server.pid());
    let running = thread::spawn(move || run(address, &format!("-c 2 -t 60s --warm-up 0s --watch-pid {pid}")));
    server.wait_for_connections(2);
    server.signal(Signal::KILL);
    let (run, _) = running.join().unwrap();
    let told = format!("process {pid} ended before the run did");
    assert!(run.generator.warnings.iter().any(|warning| warning.contains(&told)), "{:?}", run.generator.warnings);
    assert!(run.watched.unwrap().resident_peak > 0);
}

#[test]
fn mistakes_on_the_command_line_are_named() {
    for (flags, named) in [
        ("--size 0", "'0'"),
        ("--size 9..1", "9 is more than 1"),
        ("--size 1..9TB", "1 GiB"),
        ("--rate 0", "--rate"),
        ("--rate fast", "'fast'"),
        ("--depth 0", "--depth"),
        ("--depth 2 --rate 10", "--rate"),
        ("--fail-if p99", "no comparison"),
        ("--find-rate p101<1s", "p101"),
        ("--source 1.2.3", "1.2.3"),
        ("--timeout 0s", "--timeout"),
        ("-c 0", "no connection"),
        ("udp:127.0.0.1:7 --by-greeting", "load a stream"),
        ("-c 0 --idle 1 --rate 10", "--rate"),
        ("-c 0 --idle 1 --find-rate p99<1s", "--find-rate"),
        ("-c 0 --idle 3 -n 3", "--messages"),
        ("-c 0 --idle 3 --reconnect 3", "--reconnect"),
        ("-c 18446744073709551615 --idle 2", "'18446744073709551615'"),
        ("--idle 18446744073709551615", "'18446744073709551615'"),
        ("--rate 1e-11", "'1e-11'"),
        ("--connect-rate 1e-11", "'1e-11'"),
        ("-n 9007199254740993", "'9007199254740993'"),
        ("--rate 0.01 -t 5s", "none is due"),
        ("--fail-if lost>0", "only datagrams are lost"),
        ("--fail-if missed>0", "only an open loop"),
        ("-c 0 --idle 1 --fail-if p99>1s", "no messages to time"),
        ("--find-rate p99>5ms", "higher rates make this come true"),
        ("--find-rate rate>100000", "does not find this by itself"),
    ] {
        let mut args = vec!["bench"];
        args.extend(flags.split(' '));
        let output = echoloop(&args, b"");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags}: {text}");
        assert!(text.contains(named), "{flags}: {text}");
    }
}

/// A terminal whose output is stopped, as by Ctrl-S. What is kept is its other end.
#[cfg(target_os = "linux")]
fn stopped_terminal() -> (std::os::fd::OwnedFd, std::fs::File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&keyboard).unwrap();
    unlockpt(&keyboard).unwrap();
    let path = ptsname(&keyboard, Vec::new()).unwrap().into_string().unwrap();
    let flags = rustix::fs::OFlags::NOCTTY.bits() as i32;
    let terminal = std::os::unix::fs::OpenOptionsExt::custom_flags(&mut std::fs::File::options(), flags)
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    rustix::termios::tcflow(&terminal, rustix::termios::Action::OOff).unwrap();
    (keyboard, terminal)
}

#[cfg(target_os = "linux")]
#[test]
fn stopped_terminal_holds_no_load_up() {
    let server = Server::start(&[]);
    let (_keyboard, terminal) = stopped_terminal();
    let addr = server.addr().to_string();
    let room = tempfile::tempdir().unwrap();
    let file = room.path().join("run.json");
    let mut child = std::process::Command::new(ECHOLOOP)
        .args(["bench", &addr, "-c", "1", "-t", "60s", "--json"])
        .arg(&file)
        .stdout(std::process::Stdio::piped())
        .stderr(terminal)
        .spawn()
        .unwrap();
    server.wait_for_connections(1);
    // Long enough for the first frames: their writer waits, and the load goes on.
    let before = server.processor_time();
    wait_until("the server works on", || server.processor_time() > before + Duration::from_millis(500));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut status = None;
    wait_until("it ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    let run = Run::parse(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert!(status.unwrap().code() == Some(0) && run.messages.replies > 0);
}

#[test]
fn full_pipe_holds_no_search_up() {
    let server = Server::start(&[]);
    let (_reader, mut writer) = std::io::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    rustix::fs::fcntl_setfl(&writer, flags).unwrap();
    let addr = server.addr().to_string();
    let mut child = std::process::Command::new(ECHOLOOP)
        .args(["bench", &addr, "--find-rate", "p99<1s", "-r", "100", "-c", "2", "-t", "1ms", "--warm-up", "0s"])
        .stdout(std::process::Stdio::null())
        .stderr(writer)
        .spawn()
        .unwrap();
    server.wait_for_connections(2);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut status = None;
    wait_until("it ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert!(matches!(status.unwrap().code(), Some(0 | 3)), "{status:?}");
}

#[test]
fn reconnecting_after_each_message_lasts_the_window() {
    let echo = server(|_, stream| echo_changed(stream, |_, _| {}));
    let (run, code) = run(echo, "--reconnect 1 -c 4 -t 400ms --timeout 100ms --warm-up 0s");
    assert_eq!((code, run.cut, run.outcomes.answered), (0, None, run.outcomes.due), "{:?}", run.errors);
}

#[test]
fn datagrams_beyond_the_generator_end_in_time() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = format!("udp:{}", silent.local_addr().unwrap());
    let args = format!("bench {address} -c 2 -r 20000000 -t 200ms --timeout 200ms --warm-up 0s --json -");
    let begin = std::time::Instant::now();
    let output = echoloop(&args.split(' ').collect::<Vec<_>>(), b"");
    let took = begin.elapsed();
    let run = Run::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(run.outcomes.never_sent.generator_behind > run.outcomes.due / 2, "{:?}", run.outcomes);
    assert_eq!(run.rate_kept.unwrap().limit, Some(Limit::Generator));
}

#[test]
fn search_goes_on_with_connections_opened_anew() {
    let echo = server(|number, stream| {
        let mut left = if number < 2 { 20 } else { usize::MAX };
        let ends = stream.try_clone().unwrap();
        echo_changed(stream, |_, _| {
            left -= 1;
            if left == 0 {
                let _ = ends.shutdown(Shutdown::Both);
            }
        });
    });
    let (run, _) = run(echo, "--find-rate p50<1s -r 100 -c 2 -t 300ms --warm-up 0s");
    assert!(run.search.unwrap().holds_at.is_some());
}

#[test]
fn closes_under_way_at_the_end_are_told() {
    let (send, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let open = server(move |_, stream| {
        echo_changed(stream.try_clone().unwrap(), |_, _| {});
        let _ = wait.lock().unwrap().recv();
    });
    let (run, code) = run(open, "-c 2 --reconnect 5 -n 20 --warm-up 0s");
    drop(send);
    assert_eq!((code, run.outcomes.answered), (0, 20));
    assert!(run.connections.still_closing > 0 && run.connections.closing.is_none());
}

#[test]
fn refused_addresses_end_slow_opening() {
    let output = bench(nobody(), "-c 1000 --connect-rate 10 --timeout 200ms");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && text.contains("refused"), "{text}");
}

#[test]
fn first_message_is_due_when_the_window_opens() {
    let server = Server::start(&[]);
    let (run, code) = run(server.addr(), "-c 2 -r 0.01 -t 50ms --warm-up 0s");
    assert_eq!((code, run.outcomes.due, run.outcomes.answered), (0, 1, 1));
}

/// Echoes datagrams to whoever sends them, the one with this number, counted from 0, so long after it came, so many times.
fn udp_server_that_is_late(late: usize, by: Duration, times: usize) -> SocketAddr {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        for number in 0.. {
            let Ok((count, peer)) = socket.recv_from(&mut buffer) else { return };
            let (socket, datagram) = (socket.try_clone().unwrap(), buffer[..count].to_vec());
            let echo = move |times| (0..times).try_for_each(|_| socket.send_to(&datagram, peer).map(|_| ()));
            match number == late {
                true => _ = thread::spawn(move || (thread::sleep(by), echo(times))),
                false => _ = echo(1),
            }
        }
    });
    address
}

/// Loads a server over UDP. Returns the run and the exit code.
#[track_caller]
fn udp_run(address: SocketAddr, flags: &str) -> (Run, i32) {
    let address = format!("udp:{address}");
    let mut args = vec!["bench", &address, "-q", "--warm-up", "0s", "--json", "-"];
    args.extend(flags.split_whitespace());
    let output = echoloop(&args, b"");
    (Run::parse(&String::from_utf8(output.stdout).unwrap()).unwrap(), output.status.code().unwrap())
}

#[test]
fn late_datagrams_are_lost_and_their_echoes_counted() {
    // It comes twice after it was given up, while others are on their way.
    let address = udp_server_that_is_late(3, Duration::from_millis(250), 2);
    let (run, code) = udp_run(address, "-c 1 -r 100 -t 600ms --timeout 100ms");
    let datagrams = run.datagrams.unwrap();
    assert_eq!((datagrams.lost, datagrams.duplicates, run.outcomes.unanswered), (1, 2, 1), "{:?}", run.outcomes);
    assert_eq!((run.outcomes.due, run.outcomes.answered, run.response.bounds), (60, 59, 1));
    assert_eq!((run.error_count(), code), (0, 0), "{:?}", run.errors);
}

#[test]
fn datagrams_after_the_window_are_awaited_in_time() {
    // The last of all, that comes after the window's end: in time, twice; and later than anything is waited for.
    for (by, times, answered) in [(60, 2, 4), (2000, 1, 3)] {
        let address = udp_server_that_is_late(3, Duration::from_millis(by), times);
        let (run, code) = udp_run(address, "-c 1 -r 200 -n 4 -t 20ms --timeout 300ms");
        assert_eq!((run.outcomes.due, run.outcomes.answered), (4, answered), "{:?}", run.outcomes);
        assert_eq!(run.datagrams.unwrap().lost, 4 - answered);
        assert_eq!((run.error_count(), code), (0, 0), "{:?}", run.errors);
        assert!(run.seconds < 0.1, "the window is no longer for it: {}", run.seconds);
    }
}

#[test]
fn small_rates_are_shown_with_their_digits() {
    let server = Server::start(&[]);
    let output = bench(server.addr(), "-c 1 -r 0.02 -t 100ms --warm-up 0s");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("open loop, 0.02 messages/s"), "{text}");
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (run, _) = udp_run(silent.local_addr().unwrap(), "-c 1 -r 0.02 -t 50ms --timeout 50ms");
    let text = run.rate_kept.unwrap().text;
    assert!(text.contains("0/s of 0.02/s"), "{text}");
}

#[test]
fn longer_steps_of_a_search_are_told() {
    let closing = server(|_, mut stream| drop(stream.read(&mut [0; 64]))).to_string();
    let args = ["bench", &closing, "--find-rate", "p99<1s", "-r", "100", "-c", "2", "-t", "1ms", "--warm-up", "0s"];
    let output = echoloop(&args, b"");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("steps take longer than 1ms: p99<1s needs 269 messages, which at 100/s take 2.69 s"),
        "{text}"
    );
}

#[test]
fn verbose_tells_of_connections_phases_and_first_errors() {
    let server = Server::start(&[]);
    let address = server.addr().to_string();
    let flags = ["bench", &address, "-c", "2", "-n", "20", "--warm-up", "20ms", "--reconnect", "5"];
    let usual = echoloop(&flags, b"");
    assert_eq!(String::from_utf8_lossy(&usual.stderr), "");
    let verbose = echoloop(&[&flags[..], &["-v"]].concat(), b"");
    assert_eq!(verbose.status.code(), Some(0));
    let log = String::from_utf8_lossy(&verbose.stderr);
    for text in [
        &format!("{address} is {address}"),
        "connection 0: open after ",
        "2 connections open after ",
        "warming up for 20ms",
        "measuring: 20 messages",
        "in place of another",
        "the window is over: as planned",
        "20 of 20 messages answered",
    ] {
        assert!(log.contains(text), "{text:?} is not in {log}");
    }
    let failed = echoloop(&["bench", &nobody().to_string(), "-c", "2", "-v"], b"");
    let log = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(log.matches("the first connection refused: Connection refused").count(), 1, "{log}");
}
