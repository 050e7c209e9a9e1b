//! The load generator's figures beside the truth. Ignored unless asked for, since it needs a C compiler, and a machine with
//! nothing else to do: `cargo test --test calibration -- --ignored`. With `ECHOLOOP_UPDATE=1` it writes the tables
//! in docs/bench.md.
//!
//! There are two truths. Servers that hold each message for a time that they know tell what the account should say. And a library
//! that is preloaded into the generator times the same system calls with a clock of its own, which tells how exact its clock is.

#[path = "../common/mod.rs"]
mod common;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use common::{ECHOLOOP, Server};
use echoloop::bench::Run;

/// The size of all messages here, in bytes, but for one row.
const SIZE: usize = 64;

/// How many connections load the servers with known delays.
const CONNECTIONS: usize = 200;

/// The figures that are compared, with the share of the messages that each leaves below it.
const FIGURES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// For how long a server holds messages that it has received.
#[derive(Debug, Clone, Copy)]
enum Delays {
    /// Exponentially distributed, with this mean.
    Exponential(Duration),
    /// One message of so many for so long, the others not at all.
    Some(u64, Duration),
    /// All that come in the last so much of each so long, until it is over.
    Frozen(Duration, Duration),
    /// So many per second leave.
    Capped(f64),
}

/// Serves so many connections until the first is closed, and tells for how long each message was held. It reads at once whatever
/// it does with what it has read, so it knows when each message came.
fn serve(listener: &TcpListener, delays: Delays) -> Vec<Duration> {
    let accept = |_| {
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    };
    let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(accept).collect();
    let begin = Instant::now();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut free_at = begin;
    let mut received = 0;
    let mut hold = |at: Instant| {
        received += 1;
        match delays {
            Delays::Exponential(mean) => at + mean.mul_f64(-(1.0 - rng.f64()).ln()),
            Delays::Some(of, delay) => at + if received % of == 0 { delay } else { Duration::ZERO },
            Delays::Frozen(length, every) => {
                let phase = Duration::from_secs_f64((at - begin).as_secs_f64() % every.as_secs_f64());
                at + if phase >= every - length { every - phase } else { Duration::ZERO }
            }
            Delays::Capped(rate) => {
                free_at = free_at.max(at) + Duration::from_secs_f64(1.0 / rate);
                free_at
            }
        }
    };
    let mut held = Vec::new();
    let mut waiting: Vec<VecDeque<(Instant, [u8; SIZE])>> = vec![VecDeque::new(); CONNECTIONS];
    let mut partial: Vec<Vec<u8>> = vec![Vec::new(); CONNECTIONS];
    let mut release = vec![begin; CONNECTIONS];
    let mut due = BinaryHeap::new();
    loop {
        let poll = readable(&streams, due.peek().map(|Reverse((at, _))| *at));
        for index in poll {
            let mut buffer = [0; 4096];
            let got = match streams[index].read(&mut buffer) {
                Ok(0) => return held,
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => return held,
            };
            let at = Instant::now();
            partial[index].extend_from_slice(&buffer[..got]);
            while partial[index].len() >= SIZE {
                let message: Vec<u8> = partial[index].drain(..SIZE).collect();
                // What came first on a connection leaves first.
                release[index] = release[index].max(hold(at));
                waiting[index].push_back((at, message.try_into().unwrap()));
                due.push(Reverse((release[index], index)));
            }
        }
        while due.peek().is_some_and(|Reverse((at, _))| *at <= Instant::now()) {
            let Some(Reverse((_, index))) = due.pop() else { break };
            let Some((at, message)) = waiting[index].pop_front() else { break };
            held.push(at.elapsed());
            if streams[index].write_all(&message).is_err() {
                return held;
            }
        }
    }
}

/// Waits until any of these can be read, or that time has come. It sleeps for whole milliseconds and spins for the rest.
fn readable(streams: &[TcpStream], until: Option<Instant>) -> Vec<usize> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut sockets: Vec<_> = streams.iter().map(|stream| PollFd::new(stream, PollFlags::IN)).collect();
    let left = until.map(|until| until.saturating_duration_since(Instant::now()).as_millis() as i64);
    let left = left.map(|left| Timespec { tv_sec: left / 1000, tv_nsec: left % 1000 * 1_000_000 });
    poll(&mut sockets, left.as_ref()).unwrap();
    (0..streams.len()).filter(|&index| !sockets[index].revents().is_empty()).collect()
}

/// A server of known delays, and what it will tell of them.
fn known(delays: Delays) -> (SocketAddr, Receiver<Vec<Duration>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (send, held) = channel();
    thread::spawn(move || send.send(serve(&listener, delays)));
    (address, held)
}

/// Runs `echoloop bench`, with these variables.
fn bench(address: SocketAddr, flags: &str, variables: &[(&str, &str)]) -> Run {
    let output = Command::new(ECHOLOOP)
        .args(["bench", &address.to_string(), "-q", "--warm-up", "0s", "--json", "-"])
        .args(flags.split_whitespace())
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    Run::parse(&text).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The figure below which such a share of these times is, which are in order.
fn quantile(times: &[f64], share: f64) -> f64 {
    times[((share * times.len() as f64).ceil() as usize).max(1) - 1]
}

/// Figures of a distribution: of [`FIGURES`], the mean and the longest, in microseconds.
fn truth(mut times: Vec<f64>) -> Vec<(&'static str, f64)> {
    times.sort_by(f64::total_cmp);
    let mut figures: Vec<_> = FIGURES.iter().map(|(name, share)| (*name, quantile(&times, *share))).collect();
    figures.push(("max", *times.last().unwrap()));
    figures.push(("mean", times.iter().sum::<f64>() / times.len() as f64));
    figures
}

/// The same figures, as they were reported.
fn reported(latency: &echoloop::bench::Latency) -> [f64; 6] {
    [latency.p50_us, latency.p90_us, latency.p99_us, latency.p99_9_us, latency.max_us, latency.mean_us]
}

fn show(microseconds: f64) -> String {
    match microseconds.abs() {
        us if us < 1000.0 => format!("{microseconds:.1} us"),
        us if us < 1e6 => format!("{:.2} ms", microseconds / 1e3),
        _ => format!("{:.3} s", microseconds / 1e6),
    }
}

/// What servers with known delays look like. The network is in the figures, and not in the truth: some ten microseconds.
fn delays_table() -> String {
    let ms = Duration::from_millis;
    let servers = [
        ("exponential, mean 20 ms", Delays::Exponential(ms(20)), 2000, 10),
        // A little more than one of a hundred, so that p99 is not where the one kind ends and the other begins.
        ("one message of 90 50 ms, the others at once", Delays::Some(90, ms(50)), 2000, 10),
        ("frozen for 1 s of 6 s", Delays::Frozen(ms(1000), ms(6000)), 2000, 12),
        ("400 per second, of 500 that are due", Delays::Capped(400.0), 500, 8),
    ];
    let mut table =
        String::from("| the server's delay | figure | truth | bench | error |\n| --- | --- | --- | --- | --- |\n");
    for (name, delays, rate, seconds) in servers {
        let (address, held) = known(delays);
        let run = bench(address, &format!("-c {CONNECTIONS} -r {rate} -t {seconds}s"), &[]);
        let held = held.recv().unwrap();
        assert_eq!((run.outcomes.due, run.outcomes.answered), (rate * seconds, held.len() as u64), "{name}");
        let truth = truth(held.iter().map(|held| held.as_secs_f64() * 1e6).collect());
        for ((figure, truth), reported) in truth.into_iter().zip(reported(&run.response)) {
            let error = reported - truth;
            assert!(error.abs() <= truth * 0.01 + 2000.0, "{name}: {figure} is {truth} us, and not {reported}");
            let percent = if truth > 1000.0 { format!(" ({:+.2} %)", 100.0 * error / truth) } else { String::new() };
            writeln!(table, "| {name} | {figure} | {} | {} | {}{percent} |", show(truth), show(reported), show(error))
                .unwrap();
        }
        if let Delays::Capped(cap) = delays {
            let error = 100.0 * (run.rate / cap - 1.0);
            assert!(error.abs() < 1.0, "{}", run.rate);
            writeln!(table, "| {name} | rate | {cap:.1}/s | {:.1}/s | {error:+.2} % |", run.rate).unwrap();
        }
    }
    table
}

/// The generator's clock beside that of the preloaded library.
fn clock_table(directory: &Path) -> String {
    let library = directory.join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/calibration/clock.c");
    let compiled =
        Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).args([source, "-ldl"]).status();
    assert!(compiled.unwrap().success());
    let times = directory.join("times");
    let loads = [
        ("1 connection, closed loop", "-c 1 -t 3s", SIZE),
        ("50 connections, closed loop: saturation", "-c 50 -t 3s", SIZE),
        ("50 connections, 10,000/s", "-c 50 -r 10000 -t 5s", SIZE),
        ("1 connection, 256 KiB", "-c 1 -s 256KiB -t 3s", 256 * 1024),
    ];
    let mut table =
        String::from("| load | messages | figure | truth | bench | error |\n| --- | --- | --- | --- | --- | --- |\n");
    for (name, flags, size) in loads {
        let server = Server::start(&[]);
        let variables = [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("CLOCK_FILE", times.to_str().unwrap()),
            ("SIZE", &size.to_string()),
        ];
        let run = bench(server.addr(), flags, &variables);
        let text = fs::read_to_string(&times).unwrap();
        let truth = truth(text.lines().map(|line| line.parse::<f64>().unwrap() / 1e3).collect());
        let messages = run.response.count;
        for ((figure, truth), reported) in
            truth.into_iter().zip(reported(run.service.as_ref().unwrap_or(&run.response)))
        {
            let error = reported - truth;
            assert!(error.abs() <= truth * 0.01 + 20.0, "{name}: {figure} is {truth} us, and not {reported}");
            let percent = 100.0 * error / truth;
            writeln!(
                table,
                "| {name} | {messages} | {figure} | {} | {} | {} ({percent:+.2} %) |",
                show(truth),
                show(reported),
                show(error)
            )
            .unwrap();
        }
    }
    table
}

#[test]
#[ignore = "needs cc and an idle machine"]
fn figures_are_the_truth() {
    let directory = tempfile::tempdir().unwrap();
    for (name, table) in [("delays", delays_table()), ("clock", clock_table(directory.path()))] {
        println!("{table}");
        if env::var_os("ECHOLOOP_UPDATE").is_some() {
            update(name, &table);
        }
    }
}

/// Puts a table where docs/bench.md has it.
fn update(name: &str, table: &str) {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/bench.md");
    let text = fs::read_to_string(page).unwrap();
    let begin = format!("<!-- calibration of {name} begin, written by the command above -->\n");
    let (before, rest) = text.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&format!("<!-- calibration of {name} end -->")).unwrap();
    fs::write(page, format!("{before}{begin}\n{table}\n<!-- calibration of {name} end -->{after}")).unwrap();
}
