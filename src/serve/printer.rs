//! Lines for standard output, which must not hold the loop up.
//!
//! Who reads standard output may be slow, or have stopped (`serve --print | less`), and then a write to it waits. It
//! cannot be made non-blocking for this program alone: `O_NONBLOCK` belongs to the open file description, which the
//! shell and others share (open(2)). So it is the one thing that is written by a thread of its own. A bounded number
//! of bytes waits for that thread; lines beyond are left out, and counted.
//!
//! This module knows lines, and not what is in them.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use indicatif::HumanCount;
use log::warn;

/// Lines wait for the thread up to so many bytes, and as many again are made in a turn at most.
const LIMIT: usize = 1024 * 1024;

/// Prints lines without ever waiting for those who read them.
pub(super) struct Printer {
    /// The lines of this turn.
    lines: Vec<u8>,
    left_out: u64,
    /// There is nobody to print for any more.
    over: bool,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What the thread is to write next.
    lines: Vec<u8>,
    /// No more lines will come.
    last: bool,
    /// The thread has ended: everything is written, or cannot be.
    ended: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        loop {
            let mut state = self.lock();
            while state.lines.is_empty() && !state.last {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let lines = std::mem::take(&mut state.lines);
            drop(state);
            if lines.is_empty() {
                return Ok(());
            }
            out.write_all(&lines)?;
            out.flush()?;
        }
    }
}

impl Printer {
    /// Prints to `out`, which may block and may fail.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn new(mut out: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let reader = queue.clone();
        thread::Builder::new().name("printer".to_owned()).spawn(move || {
            if let Err(error) = reader.write_to(&mut out) {
                warn!("messages are not printed any more: standard output: {error}");
            }
            reader.lock().ended = true;
            reader.changed.notify_all();
        })?;
        Ok(Printer { lines: Vec::new(), left_out: 0, over: false, queue })
    }

    /// Prints the line that `write` makes, or leaves it out if too much waits.
    pub fn print(&mut self, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) {
        if self.over {
            return;
        }
        // Writing to memory does not fail.
        if self.lines.len() >= LIMIT || write(&mut self.lines).is_err() {
            self.leave_out(1);
        }
    }

    /// Hands the turn's lines over. To be called once a turn.
    pub fn flush(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let mut state = self.queue.lock();
        self.over = state.ended;
        if state.lines.len() < LIMIT {
            state.lines.append(&mut self.lines);
            drop(state);
            self.queue.changed.notify_all();
            let left_out = std::mem::take(&mut self.left_out);
            if left_out > 0 {
                warn!("{} messages were not printed", HumanCount(left_out));
            }
        } else {
            drop(state);
            let count = memchr::memchr_iter(b'\n', &self.lines).count();
            self.lines.clear();
            self.leave_out(count as u64);
        }
    }

    /// Waits until everything is printed, or `timeout` has passed.
    pub fn finish(&mut self, timeout: Duration) {
        self.flush();
        let mut state = self.queue.lock();
        state.last = true;
        self.queue.changed.notify_all();
        let (state, _) = self
            .queue
            .changed
            .wait_timeout_while(state, timeout, |state| !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        if !state.ended {
            warn!("nobody reads standard output: the last messages are not printed");
        }
        self.over = true;
    }

    fn leave_out(&mut self, count: u64) {
        if self.left_out == 0 {
            warn!("standard output is read more slowly than messages come: some are not printed");
        }
        self.left_out += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// An output that takes what it is given when it is told to, and passes it on.
    struct Gate(mpsc::Receiver<io::Result<()>>, mpsc::Sender<Vec<u8>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().unwrap_or(Ok(()))?;
            self.1.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (Printer, mpsc::Sender<io::Result<()>>, mpsc::Receiver<Vec<u8>>) {
        let (open, gate) = mpsc::channel();
        let (sink, written) = mpsc::channel();
        (Printer::new(Gate(gate, sink)).unwrap(), open, written)
    }

    fn print(printer: &mut Printer, text: &str) {
        printer.print(|out| out.write_all(text.as_bytes()));
        printer.flush();
    }

    #[test]
    fn a_reader_that_takes_nothing_holds_nobody_up_and_bounded_memory() {
        let (mut printer, open, written) = gated();
        let line = format!("{}\n", "x".repeat(1023));
        print(&mut printer, &line);
        while !printer.queue.lock().lines.is_empty() {
            thread::yield_now(); // until the thread has taken it, and waits at the gate
        }
        for _ in 0..10_000 {
            print(&mut printer, &line);
        }
        assert_eq!(printer.queue.lock().lines.len(), LIMIT);
        assert_eq!(printer.left_out, 10_000 - 1024);
        // It reads on: what waited comes whole, and what is printed from now on comes too.
        drop(open);
        assert_eq!(written.recv().unwrap().len(), 1024);
        assert_eq!(written.recv().unwrap().len(), LIMIT);
        print(&mut printer, "last\n");
        assert_eq!(printer.left_out, 0, "told, and counted anew");
        printer.finish(Duration::MAX);
        assert_eq!(written.recv().unwrap(), b"last\n");
    }

    #[test]
    fn one_turn_makes_no_more_lines_than_it_may() {
        let (mut printer, _open, _written) = gated();
        for _ in 0..10_000 {
            printer.print(|out| out.write_all(&[b'x'; 1000]));
        }
        assert!(printer.lines.len() <= LIMIT + 1000);
    }

    #[test]
    fn an_output_that_is_gone_ends_the_printing() {
        let (mut printer, open, _written) = gated();
        open.send(Err(io::ErrorKind::BrokenPipe.into())).unwrap();
        print(&mut printer, "nobody\n");
        while !printer.over {
            print(&mut printer, "hears\n");
        }
        printer.print(|_| panic!("no line is made for nobody"));
        printer.finish(Duration::ZERO);
    }

    #[test]
    fn the_end_waits_no_longer_than_it_was_told() {
        let (mut printer, open, written) = gated();
        print(&mut printer, "unread\n");
        printer.finish(Duration::from_millis(1));
        assert!(written.try_recv().is_err());
        drop(open);
        assert_eq!(written.recv().unwrap(), b"unread\n");
    }
}
