//! A stream whose reading can be held up, and that is still read when it cannot be written to any more.
//!
//! What a peer said before it closed the connection is worth printing, even if we learn of the end from a write.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

use crate::reactor::Stream;

/// What the client and its stream share.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// Nothing is read for now.
    pub paused: Cell<bool>,
    /// A read has been put off, or may say more than was known: the stream is to be read when it may be, and the poll
    /// will not say so.
    pub unread: Cell<bool>,
    /// Why nothing can be written any more.
    pub broken: RefCell<Option<io::Error>>,
}

/// The stream `S`, under a [`Control`].
#[derive(Debug)]
pub(super) struct Line<S> {
    stream: S,
    control: Rc<Control>,
}

impl<S: Stream> Line<S> {
    pub fn new(stream: S, control: Rc<Control>) -> Line<S> {
        Line { stream, control }
    }

    /// Whether nothing can be written any more.
    pub fn is_broken(&self) -> bool {
        self.control.broken.borrow().is_some()
    }

    /// Whether nothing is read for now.
    pub fn is_paused(&self) -> bool {
        self.control.paused.get()
    }
}

impl<S: Stream> Read for Line<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.control.paused.get() {
            self.control.unread.set(true);
            return Err(ErrorKind::WouldBlock.into());
        }
        let read = self.stream.read(into);
        // The end does not tell that the peer has closed its socket without reading what we sent: that is an error which
        // waits on the socket (socket(7), SO_ERROR).
        if matches!(read, Ok(0)) {
            self.stream.established()?;
        }
        read
    }
}

impl<S: Stream> Write for Line<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_broken() {
            return Err(ErrorKind::WouldBlock.into());
        }
        match self.stream.write(bytes) {
            Err(error) if ![ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => {
                *self.control.broken.borrow_mut() = Some(error);
                self.control.unread.set(true);
                Err(ErrorKind::WouldBlock.into())
            }
            outcome => outcome,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: Stream> Stream for Line<S> {
    fn shutdown_write(&mut self) -> io::Result<()> {
        match self.stream.shutdown_write() {
            Err(error) => {
                *self.control.broken.borrow_mut() = Some(error);
                self.control.unread.set(true);
                Ok(())
            }
            done => done,
        }
    }

    fn established(&mut self) -> io::Result<bool> {
        self.stream.established()
    }
    fn reset_on_drop(&mut self) {
        self.stream.reset_on_drop();
    }

    fn short_read_is_conclusive(&self) -> bool {
        self.stream.short_read_is_conclusive()
    }

    fn short_write_is_conclusive(&self) -> bool {
        self.stream.short_write_is_conclusive()
    }
}
