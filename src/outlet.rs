//! Output of an event loop: a bounded queue, and a thread that empties it.
//!
//! The reader of standard output or standard error may be slow, or have stopped, and the disk behind them may be full;
//! a write then waits. It cannot be made non-blocking for this program alone, because `O_NONBLOCK` belongs to the open
//! file description, which the shell and others share (open(2)). So the loop never writes: it puts lines
//! into an [`Outlet`], and what there is no room for is left out and counted. When there
//! is room again, the reader is told how much is missing.
//!
//! A failed write is tried again until it succeeds: a disk may have room again. Without a reader (EPIPE) it is
//! left out; a FIFO may get another reader.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::{limits, stdio};

/// How long to wait after a failed write before the next attempt.
const RETRY: Duration = Duration::from_millis(100);

/// The least that [`Outlet::finish`] waits: time enough for a reader that reads.
const MIN_FINISH: Duration = Duration::from_millis(50);

/// How items become bytes. Called on the outlet's thread.
pub trait Wording: Send + 'static {
    /// What is handed over.
    type Item: Send + 'static;

    /// Puts an item into words.
    fn item(&mut self, item: Self::Item, out: &mut Vec<u8>);

    /// So many lines were left out for want of room, or of a reader.
    fn left_out(&mut self, lines: u64, out: &mut Vec<u8>);

    /// A write has failed, for the first time since one succeeded.
    fn failed(&mut self, error: &io::Error);
}

/// The loop's end of the queue. It never waits.
pub struct Outlet<T> {
    queue: Sender<Entry<T>>,
    shared: Arc<Shared>,
}

enum Entry<T> {
    Item {
        item: T,
        cost: Cost,
    },
    /// Here lines are missing.
    LeftOut(u64),
    /// Everything before is done with: say whether it is written.
    Last(Sender<bool>),
}

/// What an item takes of the queue, and how many lines are missing without it.
#[derive(Debug, Clone, Copy)]
struct Cost {
    bytes: usize,
    lines: u64,
}

struct Shared {
    /// Bytes that may wait.
    limit: usize,
    /// Bytes that wait, or are being written.
    waiting: AtomicUsize,
    /// Lines left out that the reader has not been told of.
    left_out: AtomicU64,
    /// Lines that were never written, in all.
    lost: AtomicU64,
    /// Nothing more is expected, so that what cannot be written now never will.
    finishing: AtomicBool,
}

impl Shared {
    /// Whether there is room for so many bytes. After a loss only once half of the queue is empty: a reader that is too
    /// slow is told of a few long gaps instead of very many short ones.
    fn has_room(&self, bytes: usize) -> bool {
        let limit = if self.left_out.load(Ordering::Relaxed) > 0 { self.limit / 2 } else { self.limit };
        let waiting = self.waiting.load(Ordering::Relaxed);
        waiting == 0 || waiting + bytes <= limit
    }
}

impl<T: Send + 'static> Outlet<T> {
    /// An outlet whose thread writes to `out`, which may wait and may fail. At most `limit` bytes wait for it.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn new(
        name: &str,
        limit: usize,
        out: impl Write + Send + 'static,
        wording: impl Wording<Item = T>,
    ) -> io::Result<Self> {
        let (queue, entries) = channel();
        let shared = Arc::new(Shared {
            limit,
            waiting: AtomicUsize::new(0),
            left_out: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            finishing: AtomicBool::new(false),
        });
        let mut mouth = Mouth { out, wording, shared: shared.clone(), bytes: Vec::new(), failing: false, unread: 0 };
        // Signals are for the thread that waits for them, even if that one starts later.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let spawned = limits::start_thread(name, move || mouth.run(&entries));
        mask.thread_set_mask()?;
        spawned?;
        Ok(Outlet { queue, shared })
    }

    /// Hands over an item of so many bytes and lines, or leaves it out. Returns whether there was room.
    pub fn push(&self, item: T, bytes: usize, lines: u64) -> bool {
        if !self.shared.has_room(bytes) {
            self.leave_out(lines);
            return false;
        }
        if self.shared.left_out.load(Ordering::Relaxed) > 0 {
            let missing = self.shared.left_out.swap(0, Ordering::Relaxed);
            let _ = self.queue.send(Entry::LeftOut(missing));
        }
        self.shared.waiting.fetch_add(bytes, Ordering::Relaxed);
        // The thread ends only after this sender.
        let _ = self.queue.send(Entry::Item { item, cost: Cost { bytes, lines } });
        true
    }

    /// Counts lines that are not even handed over. The reader is told when there is room.
    pub fn leave_out(&self, lines: u64) {
        self.shared.left_out.fetch_add(lines, Ordering::Relaxed);
        self.shared.lost.fetch_add(lines, Ordering::Relaxed);
    }

    /// How many lines were left out, or found no reader, so far.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Waits until everything is written, until it cannot be, or until then. Returns whether it is.
    pub fn finish(&self, until: Instant) -> bool {
        let (done, last) = channel();
        let timeout = until.saturating_duration_since(Instant::now()).max(MIN_FINISH);
        self.shared.finishing.store(true, Ordering::Relaxed);
        let written = self.queue.send(Entry::Last(done)).is_ok() && last.recv_timeout(timeout) == Ok(true);
        self.shared.finishing.store(false, Ordering::Relaxed);
        written
    }
}

/// The thread's end of the queue.
struct Mouth<W, V> {
    out: W,
    wording: V,
    shared: Arc<Shared>,
    bytes: Vec<u8>,
    /// The last write failed.
    failing: bool,
    /// Lines that nobody could read.
    unread: u64,
}

impl<W: Write, V: Wording> Mouth<W, V> {
    fn run(&mut self, entries: &Receiver<Entry<V::Item>>) {
        loop {
            let entry = match entries.try_recv() {
                Ok(entry) => entry,
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    self.tell_left_out(0);
                    match entries.recv() {
                        Ok(entry) => entry,
                        Err(_) => return,
                    }
                }
            };
            match entry {
                Entry::Item { item, cost } => {
                    self.bytes.clear();
                    self.wording.item(item, &mut self.bytes);
                    if !self.write() {
                        self.unread += cost.lines;
                        self.shared.lost.fetch_add(cost.lines, Ordering::Relaxed);
                    }
                    self.shared.waiting.fetch_sub(cost.bytes, Ordering::Relaxed);
                }
                Entry::LeftOut(lines) => self.tell_left_out(lines),
                Entry::Last(done) => {
                    self.tell_left_out(0);
                    let _ = done.send(self.unread == 0); // unless it has waited long enough
                }
            }
        }
    }

    /// Tells the reader how much is missing, if anything is.
    fn tell_left_out(&mut self, lines: u64) {
        let lines = lines + self.shared.left_out.swap(0, Ordering::Relaxed) + self.unread;
        if lines == 0 {
            return;
        }
        self.bytes.clear();
        self.wording.left_out(lines, &mut self.bytes);
        self.unread = if self.write() { 0 } else { lines };
    }

    /// Writes the bytes, however often that has to be tried. Returns whether somebody may read them.
    fn write(&mut self) -> bool {
        let mut rest = &self.bytes[..];
        while !rest.is_empty() {
            let error = match self.out.write(rest) {
                Ok(0) => ErrorKind::WriteZero.into(),
                Ok(length) => {
                    self.failing = false;
                    rest = &rest[length..];
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            if !std::mem::replace(&mut self.failing, true) {
                self.wording.failed(&error);
            }
            if stdio::has_left(&error) || self.shared.finishing.load(Ordering::Relaxed) {
                return false;
            }
            thread::sleep(RETRY);
        }
        true
    }
}

#[cfg(test)]
#[allow(missing_docs)]
pub mod tests {
    use super::*;
    use std::sync::mpsc;

    /// An output that takes what it is given when it is told to, and passes it on.
    pub struct Gate(mpsc::Receiver<io::Result<()>>, mpsc::Sender<String>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().unwrap_or(Ok(()))?;
            let _ = self.1.send(String::from_utf8(bytes.to_vec()).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A gate, what opens it once for each message, and what has come through.
    pub fn gate() -> (Gate, mpsc::Sender<io::Result<()>>, mpsc::Receiver<String>) {
        let (open, gate) = mpsc::channel();
        let (sink, written) = mpsc::channel();
        (Gate(gate, sink), open, written)
    }

    struct Plain(mpsc::Sender<ErrorKind>);

    impl Wording for Plain {
        type Item = String;

        fn item(&mut self, item: String, out: &mut Vec<u8>) {
            out.extend_from_slice(item.as_bytes());
        }

        fn left_out(&mut self, lines: u64, out: &mut Vec<u8>) {
            out.extend_from_slice(format!("{lines} missing").as_bytes());
        }

        fn failed(&mut self, error: &io::Error) {
            let _ = self.0.send(error.kind());
        }
    }

    type Gated = (Outlet<String>, mpsc::Sender<io::Result<()>>, mpsc::Receiver<String>, mpsc::Receiver<ErrorKind>);

    /// An outlet with room for ten bytes.
    fn gated() -> Gated {
        let (out, open, written) = gate();
        let (failures, failed) = mpsc::channel();
        (Outlet::new("test", 10, out, Plain(failures)).unwrap(), open, written, failed)
    }

    fn push(outlet: &Outlet<String>, text: &str) -> bool {
        outlet.push(text.to_owned(), text.len(), 1)
    }

    #[test]
    fn stopped_reader_is_told_what_is_missing() {
        let (outlet, open, written, _) = gated();
        assert!(push(&outlet, "12345") && push(&outlet, "67890"));
        assert!(!push(&outlet, "a") && !push(&outlet, "b"), "no room");
        open.send(Ok(())).unwrap();
        assert_eq!(written.recv().unwrap(), "12345");
        while outlet.shared.waiting.load(Ordering::Relaxed) > 5 {
            thread::yield_now();
        }
        assert!(!push(&outlet, "c"), "after a loss, only once half is empty");
        drop(open);
        assert!(outlet.finish(Instant::now() + Duration::from_secs(30)));
        assert_eq!(written.try_iter().collect::<Vec<_>>(), ["67890", "3 missing"]);
        assert!(push(&outlet, "d") && outlet.finish(Instant::now() + Duration::from_secs(30)));
        assert_eq!(written.try_iter().collect::<Vec<_>>(), ["d"], "told once");
    }

    #[test]
    fn gap_is_told_where_it_is() {
        let (outlet, open, written, _) = gated();
        assert!(push(&outlet, "12345") && push(&outlet, "6") && !push(&outlet, "lost lost"));
        open.send(Ok(())).unwrap();
        while outlet.shared.waiting.load(Ordering::Relaxed) > 1 {
            thread::yield_now();
        }
        assert!(push(&outlet, "new"));
        drop(open);
        assert!(outlet.finish(Instant::now() + Duration::from_secs(30)));
        assert_eq!(written.try_iter().collect::<Vec<_>>(), ["12345", "6", "1 missing", "new"]);
    }

    #[test]
    fn full_disk_loses_nothing_and_is_told_once() {
        let (outlet, open, written, failed) = gated();
        for _ in 0..2 {
            open.send(Err(ErrorKind::StorageFull.into())).unwrap();
        }
        drop(open);
        assert!(push(&outlet, "kept"));
        assert_eq!(written.recv().unwrap(), "kept");
        assert_eq!(failed.try_iter().collect::<Vec<_>>(), [ErrorKind::StorageFull]);
    }

    #[test]
    fn next_fifo_reader_is_told_what_is_missing() {
        let (outlet, open, written, failed) = gated();
        open.send(Err(ErrorKind::BrokenPipe.into())).unwrap();
        drop(open);
        assert!(push(&outlet, "unread"));
        assert_eq!(failed.recv().unwrap(), ErrorKind::BrokenPipe);
        assert!(push(&outlet, "read") && outlet.finish(Instant::now() + Duration::from_secs(30)));
        let written: String = written.try_iter().collect();
        assert!(written.contains("read") && written.contains("1 missing"), "{written}");
    }

    #[test]
    fn finish_does_not_wait_for_a_full_disk() {
        let (out, open, _) = gate();
        let outlet = Outlet::new("test", 10, out, Plain(mpsc::channel().0)).unwrap();
        for _ in 0..100 {
            open.send(Err(ErrorKind::StorageFull.into())).unwrap();
        }
        let begin = Instant::now();
        assert!(push(&outlet, "lost") && !outlet.finish(begin + Duration::from_secs(1000)));
    }

    #[test]
    fn finish_waits_no_longer_than_told() {
        let (outlet, _open, written, _) = gated();
        assert!(push(&outlet, "unread") && !outlet.finish(Instant::now()));
        assert!(written.try_recv().is_err());
    }
}
