//! The programs in `examples/`, started and talked to: they survive resets, half-closed peers and a want of descriptors
//! because the library does.

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{ECHOLOOP, PATIENCE, reset, resident, wait_until};

/// A running example, killed when it is dropped.
struct Example {
    child: Child,
    address: String,
    _stdout: BufReader<ChildStdout>,
}

impl Example {
    /// Starts an example with room for so many open files.
    fn start(name: &str, open_files: u32) -> Example {
        let program = Path::new(ECHOLOOP).parent().unwrap().join("examples").join(name);
        assert!(program.exists(), "cargo build --examples makes {}", program.display());
        let limited = format!("ulimit -n {open_files}; exec {} 127.0.0.1:0", program.display());
        let mut child = Command::new("sh").args(["-c", &limited]).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address =
            line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{name}: {line:?}")).to_owned();
        Example { child, address, _stdout: stdout }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads to the end; a reset counts as one.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => bytes,
    }
}

/// Peers of the kinds that programs of this sort die of.
fn torment(example: &Example) {
    // More than there are descriptors, most of them waiting in the backlog.
    let crowd: Vec<_> = (0..40).map(|_| example.connect()).collect();
    crowd.into_iter().enumerate().for_each(|(number, peer)| {
        if number % 4 == 0 {
            reset(peer)
        }
    });
    let half_closed = example.connect();
    half_closed.shutdown(Shutdown::Write).unwrap();
    reset(example.connect());
}

#[test]
fn discard_takes_everything_and_says_nothing() {
    let example = Example::start("discard", 16);
    torment(&example);
    let mut peer = example.connect();
    peer.write_all(&vec![b'x'; 4 << 20]).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut peer), b"");
}

#[test]
fn daytime_tells_everybody_the_time_and_closes() {
    let example = Example::start("daytime", 16);
    torment(&example);
    let mut peers: Vec<_> = (0..50).map(|_| example.connect()).collect();
    for peer in &mut peers {
        let text = String::from_utf8(rest(peer)).unwrap();
        assert!(text.ends_with(" seconds since 1970-01-01\r\n"), "{text:?}");
    }
}

#[test]
fn chargen_waits_for_its_readers_in_bounded_memory() {
    let example = Example::start("chargen", 16);
    torment(&example);
    let _unread: Vec<_> = (0..4).map(|_| example.connect()).collect();
    let mut peer = example.connect();
    let mut lines = vec![0; 74 * 95 * 1000];
    peer.read_exact(&mut lines).unwrap();
    for (number, line) in lines.chunks(74).enumerate() {
        let expected: Vec<u8> = (0..72).map(|at| b' ' + ((number + at) % 95) as u8).chain(*b"\r\n").collect();
        assert_eq!(line, expected, "line {number}");
    }
    assert!(resident(example.child.id()) < 16 << 20);
}

#[test]
fn chat_passes_lines_on_drops_slow_readers() {
    let example = Example::start("chat", 64);
    torment(&example);
    let (mut speaker, mut listener, mut deaf) = (example.connect(), example.connect(), example.connect());
    // Until both are in: what is said before they are accepted is not for them.
    let mut reader = BufReader::new(listener.try_clone().unwrap());
    reader.get_ref().set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut line = String::new();
    wait_until("a line comes through", || {
        speaker.write_all(b"hello\n").unwrap();
        reader.read_line(&mut line).is_ok() && line.ends_with('\n')
    });
    assert!(line.starts_with("hello"));
    reader.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    let flood = std::thread::spawn(move || {
        let line = [&[b'x'; 1000][..], b"\n"].concat();
        (0..15_000).for_each(|_| speaker.write_all(&line).unwrap());
        speaker.write_all(b"the end\n").unwrap();
        speaker
    });
    // One reads, one does not: the first gets every line, the other is dropped.
    let mut text = String::new();
    let mut lines = 0;
    while text != "the end\n" {
        text.clear();
        reader.read_line(&mut text).unwrap();
        lines += 1;
    }
    assert!(lines > 15_000);
    flood.join().unwrap();
    let mut bytes = Vec::new();
    let dropped = deaf.read_to_end(&mut bytes);
    assert!(dropped.is_err() && bytes.len() < 15_000 * 1001, "{dropped:?}: {} bytes", bytes.len());
    listener.write_all(b"bye\n").unwrap();
}
