//! The page of sessions, docs/watch.md, is what the program prints. `ECHOLOOP_UPDATE=1 cargo test --test watch` writes it anew.

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::path::Path;

use common::*;

/// Makes a session, and returns what it printed.
type Session = fn() -> Vec<String>;

/// A line without what differs from run to run: numbers, units of time, and which other events came along.
fn shape(line: &str) -> String {
    let line = line.split_once("ready: ").map_or(line, |(before, _)| before);
    let line = line.trim_end_matches(" (short: drained)");
    let word = |word: &str| {
        let bare = word.trim_end_matches([',', ';', ':']);
        match bare {
            "us" | "ms" | "s" => "TIME".to_owned(),
            "events" | "bytes" => bare.trim_end_matches('s').to_owned(),
            _ if bare.starts_with(|it: char| it.is_ascii_digit()) => "NUMBER".to_owned(),
            _ => bare.to_owned(),
        }
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// What depends on how much the kernel takes at once, and is not shown.
const SOMETIMES: [&str; 2] = ["the rest goes on waiting", "would block"];

/// The messages of a server's log, from its first turn on, the first of each shape.
fn told(server: &Server) -> Vec<String> {
    let mut seen = HashSet::new();
    let log = server.log();
    let messages = log.lines().filter_map(|line| Some(line.split_once("] ")?.1.to_owned()));
    let messages = messages.skip_while(|line| !line.starts_with("listener 0: ready"));
    let messages = messages.filter(|line| !SOMETIMES.iter().any(|text| line.contains(text)));
    messages.filter(|line| seen.insert(shape(line))).collect()
}

fn word() -> Vec<String> {
    let server = Server::start(&["-vv"]);
    let mut peer = server.connect();
    server.wait_for_log("token 0: ready: WRITABLE");
    ping(&mut peer, b"hello\n");
    server.wait_for_log("sent 6 of 6");
    drop(peer);
    server.wait_for_log(" 6 B sent");
    told(&server)
}

fn full() -> Vec<String> {
    let server = Server::start(&["-vv", "--send-buffer", "16KiB"]);
    let mut peer = server.connect();
    peer.set_nonblocking(true).unwrap();
    wait_until("nothing more is taken", || {
        let sent = peer.write(&[7; 65_536]);
        let is_full = sent.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        is_full && server.log().contains("reading paused until WRITABLE")
    });
    peer.set_nonblocking(false).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    peer.read_to_end(&mut Vec::new()).unwrap();
    server.wait_for_log(" MiB sent");
    // A budget is spent by one that is as fast as the loop.
    let second = Server::start(&["-vv"]);
    let mut peer = second.connect();
    let mut writer = peer.try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        writer.write_all(&vec![7; 16 << 20]).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    peer.read_to_end(&mut Vec::new()).unwrap();
    flood.join().unwrap();
    second.wait_for_log("queue: 1 ready");
    let own = ["budget spent", "queue: 1 ready", "reads grow"];
    let second = told(&second).into_iter().filter(|line| own.iter().any(|text| line.contains(text)));
    told(&server).into_iter().filter(|line| !own.iter().any(|text| line.contains(text))).chain(second).collect()
}

fn close() -> Vec<String> {
    let server = Server::start(&["-vv", "--terminator", "bye"]);
    let mut peer = server.connect();
    server.wait_for_log("token 0: ready: WRITABLE");
    ping(&mut peer, b"bye\n");
    server.wait_for_log("lingering");
    drop(peer);
    server.wait_for_log(" 4 B sent");
    told(&server)
}

#[test]
fn the_page_of_sessions_shows_what_is_printed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/watch.md");
    let mut page = fs::read_to_string(&path).unwrap();
    let update = std::env::var_os("ECHOLOOP_UPDATE").is_some();
    let sessions: [(&str, Session); 3] = [("word", word), ("full", full), ("close", close)];
    for (name, session) in sessions {
        let real = session();
        let marker = format!("<!-- session: {name} -->\n");
        let (before, rest) = page.split_once(&marker).unwrap_or_else(|| panic!("no {marker}"));
        let block = rest.strip_prefix("\n```text\n").and_then(|rest| rest.split_once("```\n"));
        let (block, after) = block.unwrap_or(("", rest));
        if update {
            page = format!("{before}{marker}\n```text\n{}\n```\n{after}", real.join("\n"));
            continue;
        }
        let shapes: HashSet<_> = real.iter().map(|line| shape(line)).collect();
        assert!(block.lines().count() > 8, "{name}: {block}");
        for line in block.lines() {
            assert!(shapes.contains(&shape(line)), "{name}: {line:?} is not printed any more: {real:#?}");
        }
    }
    if update {
        fs::write(&path, page).unwrap();
    }
}
