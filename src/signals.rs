//! SIGINT, SIGTERM and SIGHUP: the first asks for an orderly end, a second one for an end at once.
//!
//! An event loop cannot see a signal while it is anywhere but in its poll: while names are resolved, while the last
//! messages wait for a reader. But a signal must end the program whatever it is doing. So a thread of its own
//! receives them, and this is all that it does:
//!
//! - While nobody [watches](StopSignals::watch), as before the loop and after it, a signal ends the process at once.
//! - While the loop watches, the first signal is handed to it through the poll, and so is the second. If the loop has
//!   not ended the process soon after that, the thread does.
//!
//! A process ended so has the exit code that shells give to one killed by the signal: 128 and its number.
//!
//! What the process was started with is respected, as far as it is meant: SIGINT and SIGHUP stay ignored if they were
//! (a shell's `&`, `nohup`). SIGTERM is taken over in any case, for something must end a server; and a mask that blocks
//! these signals is lifted, for it is what a careless parent has left (sigprocmask(2): it is inherited through execve).

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use log::{info, warn};
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use signal_hook::low_level::{exit, signal_name};

use crate::logging;

/// How often signals are looked for that nothing tells of.
const UNREADABLE: Duration = Duration::from_millis(20);

/// The token under which signals become ready.
pub const TOKEN: Token = Token(usize::MAX - 1);

/// The same signal again within this time of the first is the same request. GNU `timeout` and others signal their child
/// and then the process group that the child is in: two signals from one sender, which siginfo does not tell apart from
/// two `kill` of a shell; only the time does. The two calls follow each other within microseconds, or within a time
/// slice of the scheduler if the child runs in between on the same processor, which is less than this. People and scripts
/// that mean it twice take longer.
const DUPLICATE_WITHIN: Duration = Duration::from_millis(5);

/// How long a loop may take to end the process itself after a second signal, so that its files are removed and the log
/// is whole.
const KILL_GRACE: Duration = Duration::from_millis(200);

/// The signals that ask this process to end.
///
/// ```no_run
/// # let mut poll = mio::Poll::new()?;
/// # let mut events = mio::Events::with_capacity(8);
/// use echoloop::signals::{Request, StopSignals, TOKEN};
///
/// let mut signals = StopSignals::new(poll.registry())?;
/// // ... resolve names, bind: a signal ends the process ...
/// signals.watch(true);
/// loop {
///     poll.poll(&mut events, None)?;
///     if events.iter().any(|event| event.token() == TOKEN) {
///         match signals.take() {
///             Some(Request::Stop(_)) => { /* finish what was begun */ }
///             Some(Request::Kill(signal)) => std::process::exit(128 + signal),
///             None => {}
///         }
///     }
///     # break;
/// }
/// signals.watch(false);
/// // ... print the results: a signal ends the process ...
/// # anyhow::Ok(())
/// ```
pub struct StopSignals {
    /// Each byte is a request: see [`encode`].
    requests: UnixStream,
    watched: Arc<AtomicBool>,
    stops: Arc<AtomicUsize>,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// An orderly end; with the signal's number.
    Stop(i32),
    /// An end at once; with the signal's number.
    Kill(i32),
}

impl StopSignals {
    /// Takes the signals over, for the whole process and for good. Requests become ready under [`TOKEN`]. To be called
    /// from the first thread, before anything that may take long.
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when there is no descriptor or no thread left.
    pub fn new(registry: &Registry) -> anyhow::Result<Self> {
        let take = || {
            let (mut requests, sender) = UnixStream::pair()?;
            registry.register(&mut requests, TOKEN, Interest::READABLE)?;
            let (wakes, waker) = StdUnixStream::pair()?;
            let signals = SignalDelivery::with_pipe(wakes, waker, SignalOnly, wanted(ignored()))?;
            unblock()?;
            let watched = Arc::new(AtomicBool::new(false));
            let stops = Arc::new(AtomicUsize::new(1));
            let (is_watched, max_stops) = (watched.clone(), stops.clone());
            let attend = move || attend(signals, sender, &is_watched, &max_stops);
            thread::Builder::new().name("signals".to_owned()).spawn(attend)?;
            io::Result::Ok(StopSignals { requests, watched, stops })
        };
        take().context("cannot take over signals")
    }

    /// Says whether a loop looks at [`TOKEN`] and [takes](Self::take) what comes. At first none does.
    pub fn watch(&self, watched: bool) {
        self.watched.store(watched, Ordering::Release);
    }

    /// How many signals ask for an orderly end before one ends the process: usually one. For a loop that has several
    /// things to end, one after the other.
    pub fn allow_stops(&self, stops: usize) {
        self.stops.store(stops, Ordering::Release);
    }

    /// What the signals ask for that came since the last time. Does not wait.
    pub fn take(&mut self) -> Option<Request> {
        let (mut bytes, mut last) = ([0; 16], None);
        loop {
            match self.requests.read(&mut bytes) {
                Ok(0) => return last,
                Ok(length) => last = Some(decode(bytes[length - 1])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return last, // WouldBlock
            }
        }
    }
}

/// For a program without a loop: signals end this process though it is process 1, to which the kernel delivers none that
/// nobody handles (pid_namespaces(7)). Any other they end anyway.
pub fn end_process_one() {
    if std::process::id() != 1 {
        return;
    }
    let take = || {
        let (wakes, waker) = StdUnixStream::pair()?;
        let mut signals = SignalDelivery::with_pipe(wakes, waker, SignalOnly, wanted(ignored()))?;
        unblock()?;
        let attend = move || {
            loop {
                if let Some(&signal) = next(&mut signals).first() {
                    end(signal);
                }
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(attend)
    };
    if let Err(error) = take() {
        warn!("cannot take over signals: {error}");
    }
}

/// The thread that receives the signals.
fn attend(
    mut signals: SignalDelivery<StdUnixStream, SignalOnly>,
    mut sender: UnixStream,
    watched: &AtomicBool,
    stops: &AtomicUsize,
) {
    let (mut last, mut left) = (None, 0);
    loop {
        for signal in next(&mut signals) {
            if last.is_none() {
                left = stops.load(Ordering::Acquire);
            }
            let Some(request) = judge(&mut last, &mut left, signal, Instant::now()) else { continue };
            if !watched.load(Ordering::Acquire) {
                end(signal);
            }
            // The loop may have ended since; then nobody reads this.
            let _ = sender.write_all(&[encode(request)]);
            if let Request::Kill(signal) = request {
                thread::sleep(KILL_GRACE);
                end(signal);
            }
        }
    }
}

/// Waits for the next signals. The pipe only wakes, and the signals are noted elsewhere: so a pipe that cannot be read, as
/// where a filter of system calls forbids it, makes them come a little later. The crate's own iterator panics then.
fn next<R: Read + AsRawFd + Send + Sync + 'static>(signals: &mut SignalDelivery<R, SignalOnly>) -> Vec<i32> {
    let awaited = signals.poll_pending(&mut |wakes| {
        if !matches!(wakes.read(&mut [0]), Ok(1..)) {
            thread::sleep(UNREADABLE);
        }
        Ok(true)
    });
    awaited.ok().flatten().into_iter().flatten().collect()
}

fn end(signal: i32) -> ! {
    info!("{}: ending at once", signal_name(signal).unwrap_or_default());
    logging::finish(Instant::now());
    // Not std::process::exit, which takes the locks of others.
    exit(128 + signal)
}

/// What a signal asks for, if `left` may still ask for an orderly end, given the last one.
fn judge(last: &mut Option<(i32, Instant)>, left: &mut usize, signal: i32, now: Instant) -> Option<Request> {
    if last.is_some_and(|(same, then)| same == signal && now.saturating_duration_since(then) < DUPLICATE_WITHIN) {
        return None;
    }
    *last = Some((signal, now));
    if *left == 0 {
        return Some(Request::Kill(signal));
    }
    *left -= 1;
    Some(Request::Stop(signal))
}

/// Signals have small numbers, so that there is a bit to tell one request from the other.
const KILL: u8 = 0x80;

fn encode(request: Request) -> u8 {
    match request {
        Request::Stop(signal) => signal as u8,
        Request::Kill(signal) => signal as u8 | KILL,
    }
}

fn decode(byte: u8) -> Request {
    let signal = i32::from(byte & !KILL);
    if byte & KILL == 0 { Request::Stop(signal) } else { Request::Kill(signal) }
}

/// The signals to take over, given those that are ignored: a bit each, as far as that is known.
fn wanted(ignored: Option<u64>) -> Vec<i32> {
    let is_ignored = |signal: i32| ignored.is_some_and(|ignored| ignored & (1 << (signal - 1)) != 0);
    let mut signals = vec![SIGTERM];
    if !is_ignored(SIGINT) {
        signals.push(SIGINT);
    }
    // Where one cannot know, SIGHUP is left as it is: it ends the process, unless `nohup` has seen to it.
    if ignored.is_some() && !is_ignored(SIGHUP) {
        signals.push(SIGHUP);
    }
    signals
}

/// The signals that this process was started to ignore (proc(5), `SigIgn`). Elsewhere there is no way to ask that is
/// not `unsafe` (sigaction(2)).
fn ignored() -> Option<u64> {
    #[cfg(target_os = "linux")]
    return Some(procfs::process::Process::myself().ok()?.status().ok()?.sigign);
    #[cfg(not(target_os = "linux"))]
    None
}

fn unblock() -> io::Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    Ok(SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]).thread_unblock()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_signal_stops_second_kills_duplicate_is_ignored() {
        let (mut first, mut left, begin) = (None, 1, Instant::now());
        let after = |milliseconds| begin + Duration::from_millis(milliseconds);
        assert_eq!(judge(&mut first, &mut left, SIGTERM, begin), Some(Request::Stop(SIGTERM)));
        assert_eq!(judge(&mut first, &mut left, SIGTERM, after(1)), None, "as of GNU timeout");
        assert_eq!(
            judge(&mut first, &mut left, SIGINT, after(1)),
            Some(Request::Kill(SIGINT)),
            "another signal, another request"
        );
        assert_eq!(judge(&mut first, &mut left, SIGTERM, after(10)), Some(Request::Kill(SIGTERM)));
    }

    #[test]
    fn inherited_ignored_signals_stay_ignored_except_sigterm() {
        let bit = |signal: i32| 1 << (signal - 1);
        assert_eq!(wanted(Some(0)), [SIGTERM, SIGINT, SIGHUP]);
        assert_eq!(wanted(Some(bit(SIGINT))), [SIGTERM, SIGHUP]);
        assert_eq!(wanted(Some(bit(SIGHUP) | bit(SIGTERM))), [SIGTERM, SIGINT]);
        assert_eq!(wanted(None), [SIGTERM, SIGINT]);
    }

    #[test]
    fn unreadable_pipe_does_not_hide_signals() {
        let (_, waker) = StdUnixStream::pair().unwrap();
        let unreadable = std::fs::File::create("/dev/null").unwrap();
        let ours = signal_hook::consts::SIGWINCH; // which nobody else minds
        let mut signals = SignalDelivery::with_pipe(unreadable, waker, SignalOnly, [ours]).unwrap();
        signal_hook::low_level::raise(ours).unwrap();
        assert_eq!(next(&mut signals), [ours]);
        assert!(next(&mut signals).is_empty());
    }

    #[test]
    fn requests_survive_their_encoding() {
        for request in [Request::Stop(SIGINT), Request::Kill(SIGTERM), Request::Stop(64)] {
            assert_eq!(decode(encode(request)), request);
        }
    }
}
