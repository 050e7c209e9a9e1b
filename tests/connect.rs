//! `echoloop connect`, as its users see it.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::*;

#[track_caller]
fn converse(server: &Server, flags: &[&str], input: &str, output: &str) {
    let address = server.addr().to_string();
    let outcome = echoloop(&[&["connect", &address], flags].concat(), input.as_bytes());
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), output);
    assert_eq!(String::from_utf8_lossy(&outcome.stderr), "");
    assert_eq!(outcome.status.code(), Some(0));
}

#[test]
fn lines_come_back_as_they_were() {
    let server = Server::start(&[]);
    for input in ["hello\nworld\n", "no newline at the end", "", "\n\n", "one\r\ntwo\r\n"] {
        converse(&server, &[], input, input);
    }
}

#[test]
fn a_file_of_any_bytes_is_copied() {
    let server = Server::start(&[]);
    let bytes = noise(20, 20 * 1024 * 1024 + 7);
    let outcome = echoloop(&["connect", &server.addr().to_string()], &bytes);
    assert!(outcome.stdout == bytes);
    assert_eq!(outcome.status.code(), Some(0));
}

#[test]
fn what_is_owed_is_shown_as_it_arrives() {
    let server = Server::start(&[]);
    let mut client = Command::new(ECHOLOOP)
        .args(["connect", &server.addr().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    for word in [&b"first\n"[..], b"second\n", b"without newline"] {
        stdin.write_all(word).unwrap();
        let mut echo = vec![0; word.len()];
        stdout.read_exact(&mut echo).unwrap(); // while the input is still open
        assert_eq!(echo, word);
    }
    drop(stdin);
    assert_eq!(client.wait().unwrap().code(), Some(0));
}

#[test]
fn bare_words_are_sent_one_by_one() {
    let mut server = Server::start(&["--print"]);
    converse(&server, &["--no-newline"], "one\ntwo\r\n\nthree", "one\ntwo\n\nthree\n");
    for word in ["one", "two", "three"] {
        let line = server.read_line();
        assert_eq!(line.trim_end().rsplit(' ').next(), Some(word), "a read of its own: {line:?}");
    }
}

#[test]
fn the_terminator_is_the_last_line() {
    let server = Server::start(&[]);
    converse(&server, &["--terminator", "bye"], "one\nbye\nnever sent\n", "one\nbye\n");
    converse(&server, &["--terminator", "bye", "--no-newline"], "one\nbye\nnever sent\n", "one\nbye\n");
    converse(&server, &["--terminator", "bye"], "goodbye\n", "goodbye\n");
}

#[test]
fn the_tutorials_servers_are_conversed_with() {
    let mut server = Server::start(&["--accept-limit", "1", "--terminator", "bye"]);
    converse(&server, &["--no-newline", "--terminator", "bye"], "hello\nbye\n", "hello\nbye\n");
    assert_eq!(server.wait().0.code(), Some(0));
    let mut server = Server::start(&["--once"]);
    converse(&server, &["--no-newline"], "hello\n", "hello\n");
    assert_eq!(server.wait().0.code(), Some(0));
}

#[track_caller]
fn fails(address: &str, input: &[u8], mentions: &[&str]) {
    let outcome = echoloop(&["connect", address], input);
    let errors = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(1), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    for text in mentions {
        assert!(errors.contains(text), "{text:?} is not in {errors:?}");
    }
}

#[test]
fn nobody_listening_is_one_line() {
    let address = nobody().to_string();
    fails(&address, b"hello\n", &["echoloop: cannot connect to ", &address, "refused"]);
    fails("no-such-host.invalid:1", b"", &["cannot resolve no-such-host.invalid:1"]);
}

#[test]
fn what_does_not_come_back_is_an_error() {
    let server = Server::start(&["--message-limit", "1"]);
    fails(&server.addr().to_string(), &b"line\n".repeat(100_000), &["bytes not echoed"]);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let closes = thread::spawn(move || {
        let mut peer = listener.accept().unwrap().0;
        let mut buffer = [0; 6];
        peer.read_exact(&mut buffer).unwrap();
        peer.write_all(&buffer[..2]).unwrap();
    });
    fails(&address, b"hello\n", &["4 bytes not echoed", &address]);
    closes.join().unwrap();
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let server = Server::start(&[]);
    let script = format!("yes | head -c 10000000 | {ECHOLOOP} connect {} | head -1", server.addr());
    let outcome = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "y\n");
    assert_eq!(String::from_utf8_lossy(&outcome.stderr), "");
}

/// Runs echoloop with `input`, and fails if it does not end.
#[track_caller]
fn ends(args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(ECHOLOOP);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let writer = thread::spawn(move || _ = stdin.write_all(&input)); // it may have left before
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("echoloop {args:?} does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
    writer.join().unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn unanswered_datagrams_end_whatever_their_number() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = format!("udp:{}", silent.local_addr().unwrap());
    thread::scope(|scope| {
        for count in [1, 15, 16, 17, 33] {
            let address = &address;
            scope.spawn(move || {
                let outcome = ends(&["connect", address], &b"line\n".repeat(count));
                let errors = String::from_utf8_lossy(&outcome.stderr);
                assert_eq!(errors, format!("echoloop: {count} datagrams did not come back\n"));
                assert_eq!(outcome.status.code(), Some(1));
            });
        }
    });
}
