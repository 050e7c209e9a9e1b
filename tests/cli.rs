//! What the program prints about itself, where it cannot be printed.

mod common;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};

use common::ECHOLOOP;

/// Each way to have a text as the result.
const TEXTS: [&str; 8] =
    ["--help", "--version", "help serve", "bench --help", "man", "man connect", "completions bash", "report --schema"];

fn sh(script: &str) -> Output {
    Command::new("bash").args(["-c", script]).output().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn texts_onto_a_full_disk_are_errors() {
    for text in TEXTS {
        let outcome = sh(&format!("{ECHOLOOP} {text} > /dev/full"));
        let errors = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(errors.lines().count(), 1, "{text}: {errors}");
        assert!(errors.starts_with("echoloop: cannot write to standard output: "), "{text}: {errors}");
        assert_eq!(outcome.status.code(), Some(1), "{text}");
    }
}

#[test]
fn a_file_limit_is_a_full_disk() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let outcome = sh(&format!("ulimit -f 1; {ECHOLOOP} completions bash > {}", file.path().display()));
    let errors = String::from_utf8_lossy(&outcome.stderr);
    assert!(errors.starts_with("echoloop: cannot write to standard output: File too large"), "{errors}");
    assert_eq!(outcome.status.code(), Some(1), "no signal ends it");
}

#[test]
fn readers_of_texts_may_leave_early() {
    for text in TEXTS {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let outcome = Command::new(ECHOLOOP).args(text.split(' ')).stdout(writer).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&outcome.stderr), "", "{text}");
        assert_eq!(outcome.status.code(), Some(0), "{text}");
    }
}

#[test]
fn texts_wait_where_standard_output_is_nonblocking() {
    let (mut reader, writer) = UnixStream::pair().unwrap();
    socket2::SockRef::from(&writer).set_send_buffer_size(1).unwrap(); // the smallest, and smaller than the text
    writer.set_nonblocking(true).unwrap();
    let mut command = Command::new(ECHOLOOP);
    let mut child = command.args(["man", "serve"]).stdout(OwnedFd::from(writer)).spawn().unwrap();
    drop(command);
    let mut text = vec![0];
    reader.read_exact(&mut text).unwrap();
    reader.read_to_end(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(text == sh(&format!("{ECHOLOOP} man serve")).stdout);
}
