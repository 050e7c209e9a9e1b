//! `echoloop check`: what is wrong with a service is found and named, and an honest one is blamed for nothing.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output, Stdio};
use std::sync::{Condvar, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use common::{ECHOLOOP, Server, nobody, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Checks at once: what they measure is time, too, and the machine has other things to do.
static ROOM: (Mutex<usize>, Condvar) = (Mutex::new(20), Condvar::new());

/// Runs `echoloop check` and returns what it says on standard output, and its exit code.
fn check(args: &[&str]) -> (String, Option<i32>) {
    let mut room = ROOM.1.wait_while(ROOM.0.lock().unwrap(), |room| *room == 0).unwrap();
    *room -= 1;
    drop(room);
    let Output { status, stdout, stderr } = Command::new(ECHOLOOP).arg("check").args(args).output().unwrap();
    *ROOM.0.lock().unwrap() += 1;
    ROOM.1.notify_one();
    let text = String::from_utf8(stdout).unwrap() + &String::from_utf8_lossy(&stderr);
    (text, status.code())
}

/// The promises that a check says are broken.
fn broken(args: &[&str]) -> BTreeSet<String> {
    let (text, code) = check(&[args, &["--json", "-"]].concat());
    // Behind it may be what the service had to say.
    let report = serde_json::Deserializer::from_str(&text).into_iter::<Value>().next();
    let report = report.unwrap().unwrap_or_else(|error| panic!("{error}: {text}"));
    let judgements = report["judgements"].as_array().unwrap().iter();
    let broken: BTreeSet<_> =
        judgements.filter(|it| it["verdict"] == "broken").map(|it| it["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(code, Some(i32::from(!broken.is_empty() || !report["ended_early"].is_null())), "{text}");
    broken
}

/// Python itself: what is called so may be a script that looks for it, a dozen processes each time.
fn python() -> &'static str {
    static FOUND: OnceLock<String> = OnceLock::new();
    FOUND.get_or_init(|| {
        let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    })
}

/// A server that is wrong in one way: see `tests/check/bad.py`.
fn bad(kind: &str) -> String {
    format!("exec {} {}/tests/check/bad.py {kind} {{port}}", python(), env!("CARGO_MANIFEST_DIR"))
}

/// Promises, for each a service that breaks it (`tests/check/bad.py`) and nothing else that is judged, and what that is.
const BREAKERS: &[(&str, &str, &str)] = &[
    ("bytes.silence", "banner", "bytes,ends,many.sequence"),
    ("bytes.word", "lines", "bytes,buffers,ends,many"),
    ("bytes.one", "whole", "bytes.word,bytes.one,bytes.sizes,bytes.order"),
    ("bytes.pieces", "first", "bytes.word,bytes.one,bytes.pieces,many.sequence"),
    ("bytes.sizes", "buffer", "bytes.word,bytes.one,bytes.sizes,many.sequence"),
    ("bytes.newline", "crlf", "bytes,ends"),
    ("bytes.nul", "nul", "bytes,ends"),
    ("bytes.telnet", "telnet", "bytes,ends"),
    ("bytes.utf8", "decodes", "bytes,ends"),
    ("bytes.values", "signed", "bytes,ends"),
    ("bytes.order", "shuffled", "bytes.word,bytes.one,bytes.order"),
    ("buffers.pipelined", "segments", "bytes,buffers.pipelined"),
    ("buffers.partial-send", "partial", "bytes,buffers.partial-send,many"),
    ("buffers.others", "blocking", "bytes,buffers,ends"),
    ("buffers.backpressure", "unbounded", "bytes,buffers"),
    ("ends.half-close", "eof", "bytes.word,ends.half-close,ends.end"),
    ("ends.end", "no-end", "bytes,ends.half-close,ends.end"),
    ("ends.close", "sigpipe", "bytes,ends"),
    ("ends.reset", "reset", "bytes.word,ends.reset,ends.end"),
    ("ends.survives", "careless", "bytes,ends"),
    ("ends.idle", "impatient", "bytes,ends"),
    ("many.sequence", "limited", "bytes.word,bytes.one,ends.end,many.sequence"),
    ("many.silent-first", "sequential", "bytes,ends.end,many.sequence,many.silent-first"),
    ("many.at-once", "few", "bytes,ends.end,many.sequence,many.at-once"),
    ("many.burst", "burst", "bytes.word,many.burst"),
    ("many.fairness", "greedy", "bytes.word,many.fairness"),
    ("many.returned", "leak", "bytes.word,many.sequence,many.returned"),
    ("messages.closes", "word-never", "bytes.word,messages.closes"),
    ("messages.split", "word-split", "messages"),
    ("messages.only-equal", "word-ends", "messages"),
    ("datagrams.answer", "udp-silent", "datagrams"),
    ("datagrams.source", "udp-other", "datagrams.answer,datagrams.source,datagrams.sizes"),
    ("datagrams.sizes", "udp-short", "datagrams.answer,datagrams.sizes,datagrams.values"),
    ("datagrams.values", "udp-ascii", "datagrams.answer,datagrams.sizes,datagrams.values"),
    ("datagrams.once", "udp-twice", "datagrams.answer,datagrams.sizes,datagrams.once"),
    ("datagrams.boundaries", "udp-joined", "datagrams.answer,datagrams.sizes,datagrams.boundaries"),
    ("datagrams.many", "udp-first", "datagrams.answer,datagrams.many"),
    ("process.idle", "spin", "bytes.word,process.idle"),
    ("process.descriptors", "forgets-files", "bytes.word,ends,process"),
    ("process.memory-silent", "fat", "bytes.word,process.memory-silent"),
    ("process.memory-unreading", "hoards", "bytes.word,buffers,process"),
];

/// Services that are wrong only now and then, or at one place, or right and slow; and what is found broken, if anything.
const SUBTLE: &[(&str, &str, &str)] = &[
    ("ends.idle", "late-banner", "bytes.silence,bytes.word,ends.idle"),
    ("ends.idle", "repeats", "bytes.word,ends.idle"),
    ("bytes.sizes", "two-thousand", "bytes.word,bytes.sizes"),
    ("bytes.nul", "nul-tail", "bytes.nul,bytes.values"),
    ("bytes.utf8", "bom", "bytes.utf8,bytes.values"),
    ("ends.end", "no-end-of-much", "ends.half-close,ends.end"),
    ("ends.close", "epipe", "ends.close,ends.reset"),
    ("datagrams.source", "udp-fifth", "datagrams.answer,datagrams.source,datagrams.sizes"),
    ("datagrams.sizes", "udp-empty", "datagrams.answer,datagrams.sizes"),
    ("datagrams.values", "udp-nul", "datagrams.answer,datagrams.values"),
    ("many.silent-first", "sequential", "bytes.word,ends.idle,many.silent-first"),
    ("", "udp-slow", "datagrams.answer,datagrams.boundaries"),
    ("", "forking", "process.memory-unreading"),
    ("", "adds-nul", "bytes.silence,process.idle,process.descriptors"),
];

/// What is found broken of a service that is wrong in one way.
fn found(promise: &str, kind: &str, judged: &str) -> BTreeSet<String> {
    let command = bad(kind);
    let mut args = vec!["--exec", &command, "--timeout", "500ms", "--only", judged];
    match promise.split('.').next().unwrap() {
        _ if kind.starts_with("udp-") => args.push("udp:127.0.0.1:0"),
        "messages" => args.extend(["--terminator", "bye"]),
        _ => {}
    }
    broken(&args)
}

#[test]
fn breakers_are_found_and_nothing_else() {
    // Most of the time something is waited for.
    let run = |&(promise, kind, judged): &(&str, &str, &str)| {
        let of = |it: &str| promise.is_empty() || it == promise || promise.starts_with(&format!("{it}."));
        assert!(judged.split(',').any(of), "{promise} is not judged");
        let found = Vec::from_iter(found(promise, kind, judged));
        (found.join(",") != promise).then(|| format!("{kind}: {found:?}, and not {promise:?}"))
    };
    let wrong: Vec<_> = thread::scope(|scope| {
        let checks: Vec<_> = BREAKERS.iter().chain(SUBTLE).map(|service| scope.spawn(move || run(service))).collect();
        checks.into_iter().filter_map(|check| check.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Promises that are not among these, and why.
const WITHOUT_BREAKER: &[(&str, &str)] = &[
    ("datagrams.loss", "it is told, and never broken"),
    ("datagrams.low-port", "it takes a privilege: see low_port_is_answered_or_not"),
];

#[test]
fn every_promise_has_a_breaker() {
    let (list, _) = check(&["--list"]);
    let promises: BTreeSet<_> = list.lines().map(|line| line.split(' ').next().unwrap()).collect();
    let excepted = WITHOUT_BREAKER.iter().map(|(promise, why)| {
        assert!(!why.is_empty());
        *promise
    });
    let covered: BTreeSet<_> = BREAKERS.iter().map(|(promise, ..)| *promise).chain(excepted).collect();
    assert_eq!(promises, covered);
    assert_eq!(BREAKERS.len() + WITHOUT_BREAKER.len(), covered.len(), "each once");
}

#[test]
fn a_service_of_words_is_honest() {
    let found = broken(&["--exec", &bad("word"), "--only", "messages", "--terminator", "bye"]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn low_port_is_answered_or_not() {
    thread::scope(|scope| {
        for (kind, answers) in [("udp-honest", true), ("udp-low", false)] {
            scope.spawn(move || {
                let args = ["udp:127.0.0.1:0", "--exec", &bad(kind), "--only", "datagrams", "--skip", "datagrams.loss"];
                let found = broken(&args);
                // Only who may bind to such a port can find it (ip(7)).
                let is_found = answers && rustix::process::geteuid().is_root();
                let expected = if is_found { &["datagrams.low-port"][..] } else { &[] };
                assert_eq!(found, expected.iter().map(ToString::to_string).collect(), "{kind}");
            });
        }
    });
}

#[test]
fn each_fault_of_serve_is_found() {
    let faults = [
        ("banner=hello\\n", "bytes,ends,many.sequence", &["bytes.silence"][..]),
        ("translate=crlf", "bytes,ends", &["bytes.newline", "bytes.values"]),
        ("translate=telnet", "bytes,ends", &["bytes.telnet", "bytes.values"]),
        ("translate=nul", "bytes,ends", &["bytes.nul", "bytes.values"]),
        ("translate=utf8", "bytes.word,bytes.newline,bytes.utf8,bytes.nul,ends", &["bytes.utf8"]),
        ("half-close=ignore", "bytes,ends.half-close,ends.end", &["ends.end"]),
        ("half-close=reset", "bytes.word,ends.end", &["ends.end"]),
        ("reset-after=4000", "bytes.word,bytes.one,bytes.sizes,ends.end", &["bytes.sizes"]),
        ("close-after=4000", "bytes.word,bytes.one,bytes.sizes,ends.end", &["bytes.sizes"]),
        ("stall-after=4000", "bytes.word,bytes.one,bytes.sizes,ends.end", &["bytes.sizes"]),
        ("no-accept", "bytes,ends,many", &["bytes.silence", "bytes.word"]),
        ("drop", "bytes,ends,many", &["bytes.word"]),
        ("duplicate", "bytes.order,many.sequence", &["bytes.order", "many.sequence"]),
    ];
    // Each server for itself; most of the time something is waited for.
    thread::scope(|scope| {
        for (fault, judged, expected) in faults {
            scope.spawn(move || {
                let server = Server::start(&["--fault", fault]);
                let found = broken(&[&server.endpoints[0], "--timeout", "500ms", "--only", judged]);
                // Without accepting, the kernel's backlog takes the first connections, so they are open, and silent.
                let expected = if fault == "no-accept" { &["bytes.word"] } else { expected };
                assert_eq!(found, expected.iter().map(ToString::to_string).collect(), "{fault}");
            });
        }
    });
}

#[test]
fn slow_but_right_services_are_blamed_for_nothing() {
    thread::scope(|scope| {
        for faults in [&["--fault", "delay=20ms"][..], &["--fault", "chunk=1..9999", "--fault", "delay=exp:3ms"]] {
            scope.spawn(move || {
                let server = Server::start(faults);
                let only = "bytes.word,bytes.newline,bytes.utf8,ends.end,many.silent-first";
                let found = broken(&[&server.endpoints[0], "--only", only]);
                assert!(found.is_empty(), "{faults:?}: {found:?}");
            });
        }
    });
}

#[test]
fn honest_services_are_blamed_for_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", directory.path().join("socket").display());
    thread::scope(|scope| {
        // Each a process of its own, for what it does is watched.
        for address in ["127.0.0.1:0", "udp:127.0.0.1:0", &socket] {
            scope.spawn(move || {
                let server = Server::start_on(&[address], &["--terminator", "bye"]);
                let found = broken(&[&server.endpoints[0], "--terminator", "bye", "--pid", &server.pid().to_string()]);
                assert!(found.is_empty(), "{address}: {found:?}");
            });
        }
        let found = broken(&["--exec", &bad("honest")]);
        assert!(found.is_empty(), "{found:?}");
    });
}

#[test]
fn a_segment_sent_again_is_waited_for() {
    // While it is not read, a segment finds no room, and is tried again by the kernel in ever longer intervals.
    let found = broken(&["--exec", &bad("in-parts"), "--timeout", "300ms", "--only", "buffers.partial-send"]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_busy_machine_is_not_the_services_fault() {
    let server = Server::start(&[]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 * thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let found = broken(&[&server.endpoints[0], "--max-time", "2m"]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(found.is_empty(), "{found:?}");
    });
}

#[test]
fn what_is_not_required_is_noted() {
    let server = Server::start(&["--fault", "translate=nul"]);
    let args = [&server.endpoints[0], "--only", "bytes.word,bytes.nul", "--require", "bytes.word"];
    let (text, code) = check(&args);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("bytes.nul                note"), "{text}");
}

#[test]
fn tutorial_servers_are_judged_by_what_they_promise() {
    let (text, code) = check(&["--exec", &bad("once"), "--profile", "tutorial-1"]);
    assert_eq!(code, Some(0), "{text}");
    let args = ["--exec", &bad("once"), "--timeout", "300ms", "--only", "bytes.word,many.sequence"];
    let (text, code) = check(&args);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("2 broken: bytes.word, many.sequence") && text.contains("restarted"), "{text}");
}

#[test]
fn reports_are_files_with_a_schema() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (json, junit) = (file("check.json"), file("check.xml"));
    let server = Server::start(&["--fault", "translate=nul"]);
    let only = "bytes.word,bytes.nul,messages.split";
    let (text, code) = check(&[&server.endpoints[0], "--only", only, "--json", &json, "--junit", &junit]);
    assert_eq!(code, Some(1), "{text}");
    let report: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let schema: Value = serde_json::from_str(&check(&["--schema"]).0).unwrap();
    assert!(jsonschema::is_valid(&schema, &report));
    assert_eq!(report["judgements"][1]["verdict"], "broken");
    let xml = fs::read_to_string(junit).unwrap();
    assert!(xml.contains("tests=\"3\" failures=\"1\" errors=\"0\" skipped=\"1\""), "{xml}");
}

#[test]
fn files_appear_whole_or_fail_after_the_text() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (one, link, fifo) = (file("one"), file("link"), file("fifo"));
    std::os::unix::fs::symlink(&one, &link).unwrap();
    let server = Server::start(&[]);
    let word = |args: &[&str]| check(&[&[server.endpoints[0].as_str(), "--only", "bytes.word"], args].concat());
    for (json, junit) in [(one.as_str(), link.as_str()), ("-", "/dev/stdout")] {
        let (text, code) = word(&["--json", json, "--junit", junit]);
        assert!(code == Some(1) && text.contains("are one file"), "{code:?}: {text}");
        assert!(!text.contains("bytes.word"), "nothing was checked: {text}");
    }
    // The other file is written though one cannot be.
    let (text, code) = word(&["--json", "/dev/full", "--junit", &link]);
    assert!(code == Some(1) && text.contains("1 of 1") && text.contains("cannot write /dev/full"), "{code:?}: {text}");
    assert!(fs::read_to_string(&one).unwrap().ends_with("</testsuite>\n"));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink(), "it is the file behind a link that is replaced");
    let (text, code) = word(&["--json", "/dev/stdout"]);
    assert_eq!(code, Some(0), "{text}");
    serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read_to_string(&fifo).unwrap());
        assert_eq!(word(&["--junit", &fifo]).1, Some(0));
        assert!(reader.join().unwrap().ends_with("</testsuite>\n"));
    });
    assert!(fs::metadata(&fifo).is_ok_and(|metadata| !metadata.is_file()), "it is still a pipe");
    let names = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(names, 3, "nothing is left aside");
}

#[test]
fn datagrams_that_cannot_leave_are_no_pass() {
    // Broadcasts are refused to whoever has not asked for them (ip(7)).
    let (text, code) = check(&["udp:255.255.255.255:9"]);
    assert!(code == Some(1) && text.contains("cannot be sent from here"), "{code:?}: {text}");
    assert!(text.contains("0 of 9"), "{text}");
}

#[test]
fn mistakes_and_absent_services_say_so() {
    for (args, says) in [
        (&["--only", "bytes.wrod"][..], "there is no such promise"),
        (&["--exec", "server"][..], "say where the port goes"),
        (&["127.0.0.1:0"], "nobody listens on port 0"),
        (&["localhost"], "it has no port"),
    ] {
        let (text, code) = check(args);
        assert!(code == Some(2) && text.contains(says), "{code:?}: {text}");
    }
    let directory = tempfile::tempdir().unwrap();
    let junit = directory.path().join("check.xml").display().to_string();
    let (text, code) = check(&[&nobody().to_string(), "--junit", &junit]);
    assert!(code == Some(1) && text.contains("refused") && text.contains("--exec"), "{text}");
    assert!(!text.contains("BROKEN"), "nobody has broken a promise: {text}");
    assert!(fs::read_to_string(junit).unwrap().contains("errors=\"1\""));
    let (text, code) = check(&["--exec", "exit 3; {port}"]);
    assert!(code == Some(1) && text.contains("exited before it listened"), "{text}");
}

/// A directory, and the command of a service that says in it which process it is and then does this.
fn noted(then: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let command = format!("echo $$ > {}; {then}", directory.path().join("pid").display());
    (directory, command)
}

/// Waits until the service has said which process it is, and returns that.
fn service_of(directory: &tempfile::TempDir) -> Pid {
    let read = || fs::read_to_string(directory.path().join("pid")).ok()?.trim().parse().ok().and_then(Pid::from_raw);
    wait_until("the service is started", || read().is_some());
    read().unwrap()
}

fn wait_until_gone(pid: Pid) {
    // A zombie whose parent has gone is the init process's business, which may take its time.
    let state = || fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    wait_until("the service has ended", || {
        rustix::process::test_kill_process(pid).is_err() || state().contains(") Z ")
    });
}

#[test]
fn signals_end_the_service_too() {
    let serve = bad("honest");
    for (then, signals, code) in [
        ("exec sleep 600; : {port}", &[Signal::TERM][..], 143),
        (serve.as_str(), &[Signal::INT], 130),
        ("trap '' TERM HUP; while :; do sleep 0.1; done; : {port}", &[Signal::TERM, Signal::TERM], 143),
    ] {
        let (directory, command) = noted(then);
        let junit = directory.path().join("check.xml");
        let mut check = Command::new(ECHOLOOP);
        check.args(["check", "--exec", &command, "--junit"]).arg(&junit);
        let mut check = check.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let service = service_of(&directory);
        for (number, signal) in signals.iter().enumerate() {
            // Within a few milliseconds the same signal is the same request.
            thread::sleep(Duration::from_millis(20 * number as u64));
            kill_process(Pid::from_child(&check), *signal).unwrap();
        }
        assert_eq!(check.wait().unwrap().code(), Some(code), "{then}");
        wait_until_gone(service);
        if signals.len() == 1 {
            assert!(fs::read_to_string(junit).unwrap().contains("ended the check"), "{then}");
        }
    }
}

#[test]
fn daemons_are_checked_and_ended() {
    let (directory, command) = noted("");
    let serve = format!("setsid sh -c '{command} {}' < /dev/null > /dev/null 2>&1 &", bad("honest"));
    let (text, code) = check(&["--exec", &serve, "--only", "bytes.word,process.idle"]);
    assert!(code == Some(0) && text.contains("2 of 2"), "{text}");
    wait_until_gone(service_of(&directory));
}

#[test]
fn addresses_of_all_kinds_are_started_and_checked() {
    let directory = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", directory.path().join("a socket").display());
    let nobody = nobody();
    let (nobody, port) = (nobody.to_string(), nobody.port().to_string());
    let serve = |listen: &str| format!("exec {ECHOLOOP} serve -q '{listen}'");
    for (address, command) in [
        ("[::1]:0", serve("[::1]:{port}")),
        ("localhost:0", serve("127.0.0.1:{port}")),
        (&socket, serve(&socket)),
        (&nobody, serve(&nobody.replace(&port, "{port}"))),
    ] {
        let (text, code) = check(&[address, "--exec", &command, "--only", "bytes.word"]);
        assert_eq!(code, Some(0), "{address}: {text}");
    }
    let server = Server::start(&[]);
    let (text, code) = check(&[&server.endpoints[0], "--exec", "server"]);
    assert!(code == Some(1) && text.contains("listens on") && text.contains("already"), "{text}");
}

#[test]
fn a_service_that_goes_is_blamed_once() {
    // It ends with the first connection that is reset before anything came, and nobody starts it again.
    let port = nobody().port();
    let mut service = Command::new(python());
    service.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/check/bad.py")).args(["careless", &port.to_string()]);
    let mut service = service.spawn().unwrap();
    let address = format!("127.0.0.1:{port}");
    wait_until("it listens", || std::net::TcpStream::connect(&address).is_ok());
    let (text, code) = check(&[&address, "--only", "bytes.word,ends,many.sequence"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("1 broken: ends.survives") && text.contains("has not answered since"), "{text}");
    service.wait().unwrap();
}

#[test]
fn a_stuck_service_is_started_again() {
    let only = "bytes.word,bytes.nul,ends.end,many.sequence";
    let found = broken(&["--exec", &bad("stuck"), "--timeout", "300ms", "--only", only]);
    assert_eq!(found, ["bytes.nul".to_owned()].into());
}

#[test]
fn it_uses_no_more_than_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("check.json").display().to_string();
    let limits = ["--timeout", "200ms", "--max-time", "6s"];
    let (text, _) = check(&[&["--exec", &bad("greedy"), "--json", &json, "-c", "20"], &limits[..]].concat());
    let report: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let said = text.split("at most ").nth(1).unwrap().split(' ').next().unwrap().replace(',', "");
    assert!(report["connections"].as_u64().unwrap() <= said.parse().unwrap(), "{said}: {text}");
    assert!(report["seconds"].as_f64().unwrap() < 6.0, "{text}");
}

#[test]
fn a_signal_ends_it_with_what_is_known() {
    let server = Server::start(&["--fault", "delay=300ms"]);
    let mut command = Command::new(ECHOLOOP);
    command.args(["check", "--timeout", "5s", &server.endpoints[0]]).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_until("it is at work", || server.connections() > 0);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("ended early: SIGINT ended the check"), "{text}");
}

#[test]
fn what_is_started_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let command = format!("echo $$ > {}; {}", file.display(), bad("honest"));
    let (text, code) = check(&["--exec", &command, "--only", "bytes.word"]);
    assert_eq!(code, Some(0), "{text}");
    let pid = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    assert!(rustix::process::test_kill_process(Pid::from_raw(pid).unwrap()).is_err(), "it is still there");
}

/// The page has the catalogue as the program has it. `ECHOLOOP_UPDATE=1 cargo test --test check` writes it.
#[test]
fn the_page_has_the_catalogue() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/check.md");
    let page = fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- the catalogue begins -->\n", "<!-- the catalogue ends -->\n");
    let (before, rest) = page.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let fresh = format!("{before}{begin}\n{}{end}{after}", echoloop::check::lessons());
    if std::env::var_os("ECHOLOOP_UPDATE").is_some() {
        fs::write(path, &fresh).unwrap();
    }
    assert!(
        page == fresh || std::env::var_os("ECHOLOOP_UPDATE").is_some(),
        "ECHOLOOP_UPDATE=1 cargo test --test check writes it anew"
    );
}
