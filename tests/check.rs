//! `echoloop check`: what is wrong with a service is found and named, and an honest one is blamed for nothing.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output, Stdio};
use std::sync::{Condvar, Mutex};
use std::thread;

use common::{ECHOLOOP, Server, nobody, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Checks at once: what they measure is time, too, and the machine has other things to do.
static ROOM: (Mutex<usize>, Condvar) = (Mutex::new(6), Condvar::new());

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

/// A server that is wrong in one way: see `tests/check/bad.py`.
fn bad(kind: &str) -> String {
    format!("exec python3 {}/tests/check/bad.py {kind} {{port}}", env!("CARGO_MANIFEST_DIR"))
}

/// Asserts that of a service that is wrong so, exactly these promises are broken, among those that are judged.
#[track_caller]
fn assert_broken(kind: &str, judged: &str, expected: &[&str], more: &[&str]) {
    let found = broken(&[&["--exec", &bad(kind), "--only", judged], more].concat());
    assert_eq!(found, expected.iter().map(ToString::to_string).collect(), "{kind}");
}

macro_rules! wrong_servers {
    ($($name:ident: $kind:literal, $judged:literal => [$($expected:literal),*];)+) => {
        $(#[test]
        fn $name() {
            assert_broken($kind, $judged, &[$($expected),*], &[]);
        })+
    };
}

wrong_servers! {
    a_server_of_lines_is_found: "lines", "bytes,buffers,ends,many" => ["bytes.word"];
    one_that_waits_for_more_is_found: "whole", "bytes.word,bytes.one,bytes.sizes,bytes.order" => ["bytes.one"];
    one_that_answers_the_first_segment_is_found: "first", "bytes.word,bytes.one,bytes.pieces,many.sequence" => ["bytes.pieces"];
    one_with_a_single_buffer_is_found: "buffer", "bytes.word,bytes.one,bytes.sizes,many.sequence" => ["bytes.sizes"];
    one_that_swaps_is_found: "shuffled", "bytes.word,bytes.one,bytes.order" => ["bytes.order"];
    one_that_ignores_partial_sends_is_found: "partial", "bytes,buffers.partial-send,many" => ["buffers.partial-send"];
    one_that_forgets_at_the_end_is_found: "eof", "bytes.word,ends.half-close,ends.end" => ["ends.half-close"];
    one_that_does_not_see_the_end_is_found: "no-end", "bytes,ends.half-close,ends.end" => ["ends.end"];
    an_impatient_one_is_found: "impatient", "bytes,ends" => ["ends.idle"];
    one_with_a_blocking_send_is_found: "blocking", "bytes,buffers,ends" => ["buffers.others"];
    one_without_backpressure_is_found: "unbounded", "bytes,buffers" => ["buffers.backpressure"];
    one_connection_after_the_other_is_found: "sequential", "bytes,ends.end,many.sequence,many.silent-first" => ["many.silent-first"];
    a_limit_of_twenty_is_found: "few", "bytes,ends.end,many.sequence,many.at-once" => ["many.at-once"];
    an_error_that_ends_the_loop_is_found: "fatal", "bytes.word,ends.close,ends.reset" => ["ends.close", "ends.reset"];
    a_slow_accept_is_found: "burst", "bytes.word,many.burst" => ["many.burst"];
    a_greedy_loop_is_found: "greedy", "bytes.word,many.fairness" => ["many.fairness"];
    a_leak_is_found: "leak", "bytes.word,many.sequence,many.returned" => ["many.returned"];
    a_spinning_one_is_found: "spin", "bytes.word,process.idle" => ["process.idle"];
    a_fat_one_is_found: "fat", "bytes.word,process.memory-silent" => ["process.memory-silent"];
}

#[test]
fn words_that_close_are_judged() {
    let terminator = ["--terminator", "bye"];
    assert_broken("word", "messages", &[], &terminator);
    assert_broken("word-split", "messages", &["messages.split"], &terminator);
    assert_broken("word-ends", "messages", &["messages.only-equal"], &terminator);
    assert_broken("word-never", "messages.closes", &["messages.closes"], &terminator);
}

#[test]
fn datagram_services_are_judged() {
    for (kind, expected) in [
        ("udp-low", &[][..]),
        ("udp-honest", &["datagrams.low-port"]),
        ("udp-short", &["datagrams.sizes"]),
        ("udp-ascii", &["datagrams.values"]),
        ("udp-empty", &["datagrams.sizes"]),
        ("udp-other", &["datagrams.source"]),
        ("udp-first", &["datagrams.many"]),
        ("udp-twice", &["datagrams.once"]),
    ] {
        // Whether a low port can be bound to is the user's privilege, who may not have it.
        let judged = [
            "--only",
            "datagrams",
            "--skip",
            if kind == "udp-honest" { "datagrams.loss" } else { "datagrams.low-port" },
        ];
        let judged = if kind == "udp-first" {
            [judged[0], "datagrams.answer,datagrams.many", judged[2], judged[3]]
        } else {
            judged
        };
        let found = broken(&[&["udp:127.0.0.1:0", "--exec", &bad(kind)], &judged[..]].concat());
        if kind == "udp-honest" && found.is_empty() && !rustix::process::geteuid().is_root() {
            continue;
        }
        assert_eq!(found, expected.iter().map(ToString::to_string).collect(), "{kind}");
    }
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
                let found = broken(&[&server.endpoints[0], "--only", judged]);
                // Without accepting, the kernel's backlog takes the first connections, so they are open, and silent.
                let expected = if fault == "no-accept" { &["bytes.word"] } else { expected };
                assert_eq!(found, expected.iter().map(ToString::to_string).collect(), "{fault}");
            });
        }
    });
}

#[test]
fn slow_but_right_services_are_blamed_for_nothing() {
    for faults in [&["--fault", "delay=20ms"][..], &["--fault", "chunk=1..100", "--fault", "delay=exp:3ms"]] {
        let server = Server::start(faults);
        let found =
            broken(&[&server.endpoints[0], "--only", "bytes.word,bytes.newline,bytes.utf8,ends.end,many.silent-first"]);
        assert!(found.is_empty(), "{faults:?}: {found:?}");
    }
}

#[test]
fn honest_services_are_blamed_for_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", directory.path().join("socket").display());
    let server = Server::start_on(&["127.0.0.1:0", "udp:127.0.0.1:0", &socket], &["--terminator", "bye"]);
    let pid = server.pid().to_string();
    for endpoint in &server.endpoints {
        let found = broken(&[endpoint, "--terminator", "bye", "--pid", &pid]);
        assert!(found.is_empty(), "{endpoint}: {found:?}");
    }
    let found = broken(&["--exec", &bad("honest")]);
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
    let (text, code) = check(&["--exec", &bad("once"), "--only", "bytes.word,many.sequence"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("2 broken: bytes.word, many.sequence") && text.contains("it was started again"), "{text}");
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
    assert!(xml.contains("tests=\"3\" failures=\"1\" skipped=\"1\""), "{xml}");
}

#[test]
fn mistakes_and_absent_services_say_so() {
    for (args, says) in [
        (&["--only", "bytes.wrod"][..], "there is no such promise"),
        (&["--exec", "server"], "say where the port goes"),
        (&["localhost"], "it has no port"),
    ] {
        let (text, code) = check(args);
        assert!(code == Some(2) && text.contains(says), "{code:?}: {text}");
    }
    let (text, code) = check(&[&nobody().to_string()]);
    assert!(code == Some(1) && text.contains("refused") && text.contains("nothing comes back at all"), "{text}");
    let (text, code) = check(&["--exec", "exit 3; {port}"]);
    assert!(code == Some(1) && text.contains("has ended before it listened"), "{text}");
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

/// The table of known services in the page. `ECHOLOOP_UPDATE=1 cargo test --test check -- --ignored known` writes it anew.
#[test]
#[ignore = "it takes a minute, and what is installed decides what is in it"]
fn known_services_are_in_the_table() {
    let root = env!("CARGO_MANIFEST_DIR");
    let tutorial = |number: u32| format!("exec python3 {root}/tests/check/tutorial.py {number} {{port}}");
    let services = [
        ("`echoloop serve`", "", format!("exec {ECHOLOOP} serve -q 127.0.0.1:{{port}}"), ""),
        ("`echoloop serve`, UDP", "", format!("exec {ECHOLOOP} serve -q udp:127.0.0.1:{{port}}"), "udp:127.0.0.1:0"),
        ("the tutorial's first server", "tutorial-1", tutorial(1), ""),
        ("the tutorial's second server", "tutorial-2", tutorial(2), ""),
        ("the tutorial's third server", "tutorial-3", tutorial(3), ""),
        ("the tutorial's third server, all promises", "", tutorial(3), ""),
        ("a thread for each connection (Python)", "", bad("honest"), ""),
        ("Python's `asyncio`, `write` without `drain`", "", bad("unbounded"), ""),
        ("one connection after another (Python)", "", bad("sequential"), ""),
        (
            "`socat` with `fork` and `EXEC:cat`",
            "",
            "exec socat TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=128 EXEC:cat".to_owned(),
            "",
        ),
        (
            "`socat` with `fork` and `PIPE`",
            "",
            "exec socat TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=128 PIPE".to_owned(),
            "",
        ),
        ("`ncat -k --exec cat`", "", "exec ncat -l -k 127.0.0.1 {port} --exec /bin/cat".to_owned(), ""),
    ];
    let mut table =
        "\n| service | profile | holds | broken | not judged |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for (name, profile, command, address) in services {
        let program = command.split(' ').nth(1).unwrap();
        if Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().stdout.is_empty() {
            table.push_str(&format!("| {name} | {profile} | not installed | | |\n"));
            continue;
        }
        let mut args = vec!["--exec", &command, "--json", "-", "--max-time", "2m"];
        args.extend((!address.is_empty()).then_some(address));
        args.extend((!profile.is_empty()).then_some(["--profile", profile]).into_iter().flatten());
        let (text, _) = check(&args);
        let report = serde_json::Deserializer::from_str(&text).into_iter::<Value>().next();
        let report = report.unwrap().unwrap_or_else(|error| panic!("{name}: {error}: {text}"));
        let of = |verdict: &str| -> Vec<String> {
            let judgements = report["judgements"].as_array().unwrap().iter();
            judgements.filter(|it| it["verdict"] == verdict).map(|it| it["id"].as_str().unwrap().to_owned()).collect()
        };
        let (holds, unjudged, broken) = (of("holds").len(), of("not-judged").len(), of("broken"));
        let broken = if broken.is_empty() { "none".to_owned() } else { format!("`{}`", broken.join("`, `")) };
        table.push_str(&format!("| {name} | {profile} | {holds} | {broken} | {unjudged} |\n"));
    }
    println!("{table}");
    let path = format!("{root}/docs/check.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- the table begins -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- the table ends -->\n").unwrap();
    if std::env::var_os("ECHOLOOP_UPDATE").is_some() {
        fs::write(path, format!("{before}<!-- the table begins -->\n{table}\n<!-- the table ends -->\n{after}"))
            .unwrap();
    }
}
