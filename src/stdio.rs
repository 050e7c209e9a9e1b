//! Standard input, output and error, which others have opened.
//!
//! A standard stream is an open file description that is shared with whoever started the program (open(2)), and they
//! decide how it behaves:
//!
//! - It may be non-blocking because somebody else made it so. EAGAIN then means *wait*, and [`Stream`] does (poll(2)).
//! - A file may be as long as a limit lets it be (`ulimit -f`). SIGXFSZ would kill the program; once [`prepare`] has
//!   been called, writing says EFBIG instead (setrlimit(2)), which is a full disk and no more.
//! - A reader may have seen enough (`| head -1`). Writing says EPIPE, for Rust ignores SIGPIPE; that is no failure of the
//!   program, as it is if the disk is full. [`has_left`] tells the two apart.
//! - A stream may be closed. Rust opens it on `/dev/null` before `main`, so that no socket gets a number below 3. It
//!   cannot be told from a `/dev/null` that others have opened for reading and writing, as daemon(3), Python's
//!   `subprocess.DEVNULL` and Node.js do, and is treated as one: input has ended, and output is not missed.
//!
//! All of this *waits*, as long as a reader takes. An event loop says what it has to say through an
//! [`Outlet`](crate::outlet::Outlet) instead.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, poll};

/// A standard stream, unbuffered. It waits where it must, and retries what a signal has interrupted.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    descriptor: BorrowedFd<'static>,
    name: &'static str,
}

/// Standard input.
pub fn stdin() -> Stream {
    Stream { descriptor: rustix::stdio::stdin(), name: "standard input" }
}

/// Standard output.
pub fn stdout() -> Stream {
    Stream { descriptor: rustix::stdio::stdout(), name: "standard output" }
}

/// Standard error.
pub fn stderr() -> Stream {
    Stream { descriptor: rustix::stdio::stderr(), name: "standard error" }
}

impl Stream {
    /// What people call it, for messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.descriptor.is_terminal()
    }

    /// Whether somebody has made it non-blocking.
    pub fn is_nonblocking(&self) -> bool {
        rustix::fs::fcntl_getfl(self.descriptor).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::NONBLOCK))
    }

    /// Tries until there is an outcome other than "not now".
    fn when_ready<T>(&self, for_what: PollFlags, mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
        loop {
            match call() {
                Err(rustix::io::Errno::AGAIN) => {
                    // Interrupted, or with an error that the next call will report: either way that call comes next.
                    let _ = poll(&mut [PollFd::from_borrowed_fd(self.descriptor, for_what)], None);
                }
                Err(rustix::io::Errno::INTR) => {}
                outcome => return Ok(outcome?),
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.when_ready(PollFlags::IN, || rustix::io::read(self.descriptor, &mut *into))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.when_ready(PollFlags::OUT, || rustix::io::write(self.descriptor, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a file-size limit an error of `write` instead of the program's death. To be called once, at the start.
pub fn prepare() {
    // A handler is all that is needed; nobody looks at the flag. Without one the program does what it did before.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default());
}

/// Prints on standard output, in one write if the reader takes it so.
///
/// # Errors
///
/// If it could not be written: an error that names the stream. That the reader has left is none.
pub fn print(bytes: impl AsRef<[u8]>) -> io::Result<()> {
    write_to(stdout(), bytes.as_ref())
}

/// Prints on standard error, like [`print()`].
///
/// # Errors
///
/// If it could not be written.
pub fn eprint(bytes: impl AsRef<[u8]>) -> io::Result<()> {
    write_to(stderr(), bytes.as_ref())
}

fn write_to(mut stream: Stream, bytes: &[u8]) -> io::Result<()> {
    match stream.write_all(bytes) {
        Err(error) if has_left(&error) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot write to {}: {error}", stream.name))),
        Ok(()) => Ok(()),
    }
}

/// Whether a write failed because nobody will ever read it: not a failure to report, but a reason to stop writing.
pub fn has_left(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::thread;

    /// A non-blocking pipe's two ends; the writing one passes for a standard stream.
    fn pipe() -> (std::io::PipeReader, Stream) {
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let writer: &'static std::io::PipeWriter = Box::leak(Box::new(writer));
        (reader, Stream { descriptor: writer.as_fd(), name: "a pipe" })
    }

    #[test]
    fn a_non_blocking_stream_is_waited_for() {
        let (mut reader, stream) = pipe();
        let bytes = vec![7; 1 << 20]; // more than a pipe holds
        let expected = bytes.len();
        let writer = thread::spawn(move || write_to(stream, &bytes));
        let mut piece = vec![0; 10_000];
        let mut received = 0;
        while received < expected {
            received += reader.read(&mut piece).unwrap();
        }
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn a_reader_that_has_left_is_no_error() {
        let (reader, mut stream) = pipe();
        drop(reader);
        write_to(stream, b"seen enough").unwrap();
        assert!(has_left(&stream.write_all(b"seen enough").unwrap_err()));
    }

    #[test]
    #[cfg(target_os = "linux")] // elsewhere there need not be a /dev/full
    fn what_cannot_be_written_is_an_error_that_names_the_stream() {
        let full: &'static std::fs::File = Box::leak(Box::new(std::fs::File::create("/dev/full").unwrap()));
        let error = write_to(Stream { descriptor: full.as_fd(), name: "standard output" }, b"lost").unwrap_err();
        assert!(error.to_string().starts_with("cannot write to standard output: No space left"), "{error}");
    }
}
