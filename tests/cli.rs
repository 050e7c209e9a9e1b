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

/// The program with these variables in its environment, and what it says on standard error, which ends it.
fn with_variables(variables: &[(&str, &str)], line: &[&str]) -> (String, Option<i32>) {
    let outcome = Command::new(ECHOLOOP).envs(variables.iter().copied()).args(line).output().unwrap();
    (String::from_utf8(outcome.stderr).unwrap(), outcome.status.code())
}

#[test]
fn command_line_wins_over_conflicting_variables() {
    // An address that cannot be listened on ends it as soon as all options are taken.
    let nowhere = "unix:/nowhere/at/all";
    for (variables, options) in [
        (&[("ECHOLOOP_QUIET", "1")][..], &["serve", "-v", nowhere][..]),
        (&[("ECHOLOOP_QUIET", "1")], &["-v", "serve", nowhere]),
        (&[("ECHOLOOP_VERBOSE", "1")], &["serve", "-q", nowhere]),
        (&[("ECHOLOOP_ONCE", "1")], &["serve", "--accept-limit", "3", nowhere]),
        (&[("ECHOLOOP_MESSAGE_LIMIT", "4"), ("ECHOLOOP_ACCEPT_LIMIT", "4")], &["serve", "--once", nowhere]),
        (&[("ECHOLOOP_RATE", "5")], &["bench", "-d", "3", nowhere]),
        (&[("ECHOLOOP_DEPTH", "5")], &["bench", "--rate", "100", nowhere]),
        (&[("ECHOLOOP_MESSAGES", "5")], &["bench", "--find-rate", "p50<1s", nowhere]),
        (&[("ECHOLOOP_PID", "1")], &["check", "--exec", "exit 1 # {port}", "--max-time", "1s"]),
        (&[("ECHOLOOP_IDLE_TIMEOUT", "soon")], &["serve", "--idle-timeout", "1m", nowhere]),
    ] {
        let (errors, code) = with_variables(variables, options);
        assert_eq!(code, Some(1), "{variables:?} {options:?}: {errors}");
    }
    for exclusive in ["check --list", "check --schema", "report --schema"] {
        let all = [("ECHOLOOP_JSON", "x"), ("ECHOLOOP_TIMEOUT", "1s"), ("ECHOLOOP_QUIET", "1"), ("ECHOLOOP_LIST", "1")];
        let (errors, code) = with_variables(&all, &exclusive.split(' ').collect::<Vec<_>>());
        assert_eq!(code, Some(0), "{exclusive}: {errors}");
    }
}

#[test]
fn mistakes_in_variables_name_the_variable() {
    for (name, value) in
        [("ECHOLOOP_IDLE_TIMEOUT", "soon"), ("ECHOLOOP_ALLOW", "10.0.0.0/8,x"), ("ECHOLOOP_LOG_FORMAT", "xml")]
    {
        let (errors, code) = with_variables(&[(name, value)], &["serve", "unix:/nowhere/at/all"]);
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains(&format!("{name} (--")), "{errors}");
    }
}

#[test]
fn lists_and_empty_variables_are_understood() {
    let variables = [("ECHOLOOP_ALLOW", "10.0.0.0/8, 192.0.2.0/24"), ("ECHOLOOP_IDLE_TIMEOUT", "")];
    let (errors, code) = with_variables(&variables, &["serve", "unix:/nowhere/at/all"]);
    assert_eq!(code, Some(1), "{errors}");
}

#[test]
fn unknown_variables_are_warned_of() {
    let variables = [("ECHOLOOP_IDLE_TIMOUT", "1m"), ("ECHOLOOP_PORT", "tcp://10.0.0.1:7777")];
    let (errors, _) = with_variables(&variables, &["serve", "unix:/nowhere/at/all"]);
    assert!(errors.contains("ECHOLOOP_IDLE_TIMOUT"), "{errors}");
    assert!(!errors.contains("ECHOLOOP_PORT"), "{errors}");
}

#[test]
fn version_is_short_or_tells_the_build() {
    let say = |flag: &str| String::from_utf8(Command::new(ECHOLOOP).arg(flag).output().unwrap().stdout).unwrap();
    let short = say("-V");
    assert_eq!(short, concat!("echoloop ", env!("CARGO_PKG_VERSION"), "\n"));
    let long = say("--version");
    assert!(long.starts_with(&short), "{long}");
    assert!(long.contains("\ntarget: ") && long.contains("\ncompiler: rustc "), "{long}");
    let git =
        Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let is_checkout = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".git").exists();
    let commit =
        git.ok().filter(|git| is_checkout && git.status.success()).map(|git| String::from_utf8(git.stdout).unwrap());
    assert_eq!(long.contains("\ncommit: "), commit.is_some(), "{long}");
    if let Some(commit) = commit {
        assert!(long.contains(commit.trim()), "{long} is not of {commit}");
    }
}

#[test]
fn wrong_guesses_are_answered_by_what_works() {
    for (line, answer) in [
        ("serve --port 8080", "echoloop serve 127.0.0.1:8080"),
        ("serve --threads 4", "echoloop serve --reuse-port"),
        ("bench -t -5s", "invalid value '-5s' for '--duration <DUR>': it is negative"),
        ("connect localhost 7777", "echoloop connect localhost:7777"),
        ("localhost:7777", "echoloop connect localhost:7777"),
        ("client", "echoloop connect"),
        ("man nothing", "bench"),
        ("check -c many", "as in 10000"),
    ] {
        let outcome = Command::new(ECHOLOOP).args(line.split(' ')).output().unwrap();
        let errors = String::from_utf8(outcome.stderr).unwrap();
        assert_eq!(outcome.status.code(), Some(2), "{line}: {errors}");
        assert!(errors.contains(answer), "{line}: {errors}");
    }
}

#[test]
#[ignore = "needs mandoc"]
fn manual_pages_are_clean_to_mandoc() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().display();
    assert!(sh(&format!("{ECHOLOOP} man --dir {pages}")).status.success());
    let outcome = sh(&format!("mandoc -T lint -W style {pages}/*.1"));
    let complaints = String::from_utf8_lossy(&outcome.stdout).into_owned() + &String::from_utf8_lossy(&outcome.stderr);
    // Pages refer to one another, and are not installed here.
    let complaints: Vec<_> = complaints.lines().filter(|line| !line.contains("referenced manual not found")).collect();
    assert_eq!(complaints, [""; 0]);
}
