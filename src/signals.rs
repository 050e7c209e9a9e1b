//! SIGINT, SIGTERM and SIGHUP: the first asks for an orderly end, a second one for an end at once.
//!
//! An event loop cannot see a signal while it is anywhere but in its poll: while names are resolved, while the last
//! messages wait for a reader. But a signal must end the program whatever it is doing. So they are blocked in every
//! thread, and a thread of its own waits for them with sigwait(3): there is no handler that interrupts calls, and no pipe
//! between a handler and the loop that could fail. This is all that the thread does:
//!
//! - While nobody [watches](StopSignals::watch), as before the loop and after it, a signal ends the process at once.
//! - While the loop watches, the first signal is handed to it through the poll, and so is the second. If the loop has
//!   not ended the process soon after that, the thread does.
//!
//! A process ended so has the exit code that shells give to one killed by the signal: 128 and its number.
//!
//! What the process was started with is respected, as far as it is meant: SIGINT and SIGHUP stay ignored if they were
//! (a shell's `&`, `nohup`). SIGTERM is taken over in any case, for something must end a server; and so are signals that
//! were blocked at the start, for that is what a careless parent has left (sigprocmask(2): it is inherited through execve).

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use log::{info, warn};
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;
use signal_hook::low_level::{exit, signal_name};

use crate::{limits, logging};

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

/// How often and after which pause the loop is woken again, if that fails.
const WAKE_ATTEMPTS: u32 = 20;
const WAKE_PAUSE: Duration = Duration::from_millis(10);

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
    shared: Arc<Shared>,
    /// A byte comes with each request, and wakes the poll. What it says is in `shared`, so a read that fails loses nothing.
    wakes: UnixStream,
}

#[derive(Debug)]
struct Shared {
    /// The last request that was not taken yet: see [`encode`]. Zero: none.
    request: AtomicU8,
    watched: AtomicBool,
    stops: AtomicUsize,
    /// A process group that ends with this process; zero: none.
    group: AtomicI32,
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
    /// from the first thread, before anything that may take long; threads that are already there must have them blocked.
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when there is no descriptor or no thread left.
    pub fn new(registry: &Registry) -> anyhow::Result<Self> {
        let take = || {
            let (mut wakes, sender) = UnixStream::pair()?;
            registry.register(&mut wakes, TOKEN, Interest::READABLE)?;
            let signals = take_over()?;
            let shared = Arc::new(Shared {
                request: AtomicU8::new(0),
                watched: AtomicBool::new(false),
                stops: AtomicUsize::new(1),
                group: AtomicI32::new(0),
            });
            let theirs = shared.clone();
            let attend = move || attend(&signals, sender, &theirs);
            limits::start_thread("signals", attend)?;
            io::Result::Ok(StopSignals { shared, wakes })
        };
        take().context("cannot take over signals")
    }

    /// Says whether a loop looks at [`TOKEN`] and [takes](Self::take) what comes. At first none does.
    pub fn watch(&self, watched: bool) {
        self.shared.watched.store(watched, Ordering::Release);
    }

    /// How many signals ask for an orderly end before one ends the process: usually one. For a loop that has several
    /// things to end, one after the other.
    pub fn allow_stops(&self, stops: usize) {
        self.shared.stops.store(stops, Ordering::Release);
    }

    /// Says which process group is killed when a signal ends this process at once: what it has started must not stay.
    pub fn take_along(&self, group: Option<i32>) {
        self.shared.group.store(group.unwrap_or(0), Ordering::Release);
    }

    /// What the signals ask for that came since the last time. Does not wait.
    pub fn take(&mut self) -> Option<Request> {
        let mut bytes = [0; 16];
        while matches!(self.wakes.read(&mut bytes), Ok(1..)) {}
        decode(self.shared.request.swap(0, Ordering::AcqRel))
    }
}

/// For a program without a loop: signals end this process though it is process 1, to which the kernel delivers none that
/// nobody handles (pid_namespaces(7)). Any other they end anyway.
pub fn end_process_one() {
    if std::process::id() != 1 {
        return;
    }
    let take = || {
        let signals = take_over()?;
        limits::start_thread("signals", move || end(next(&signals)))
    };
    if let Err(error) = take() {
        warn!("cannot take over signals: {error}");
    }
}

/// Keeps the signals from this thread, and from those that it starts, so that one of them can wait for them.
fn take_over() -> io::Result<SigSet> {
    let wanted = wanted(ignored());
    let signals = SigSet::from_iter(wanted.iter().copied());
    signals.thread_block()?;
    for signal in wanted {
        // A signal that is ignored may be thrown away even where it is blocked (POSIX leaves that open). This handler never runs.
        signal_hook::flag::register(signal as i32, Arc::default())?;
    }
    Ok(signals)
}

/// Waits for the next of the signals.
fn next(signals: &SigSet) -> i32 {
    loop {
        // It fails for an interruption alone.
        if let Ok(signal) = signals.wait() {
            return signal as i32;
        }
    }
}

/// The thread that waits for the signals.
fn attend(signals: &SigSet, mut sender: UnixStream, shared: &Shared) {
    let (mut last, mut left) = (None, 0);
    loop {
        let signal = next(signals);
        if last.is_none() {
            left = shared.stops.load(Ordering::Acquire);
        }
        let Some(request) = judge(&mut last, &mut left, signal, Instant::now()) else { continue };
        if !shared.watched.load(Ordering::Acquire) {
            shared.kill_group();
            end(signal);
        }
        shared.request.store(encode(request), Ordering::Release);
        wake(&mut sender);
        if let Request::Kill(_) = request {
            thread::sleep(KILL_GRACE);
            shared.kill_group();
            end(signal);
        }
    }
}

impl Shared {
    fn kill_group(&self) {
        let group = self.group.load(Ordering::Acquire);
        if group > 0 {
            // What cannot be signalled has ended.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

/// Wakes the loop, however long it takes; but the next signal must not wait for that for ever.
fn wake(sender: &mut UnixStream) {
    for _ in 0..WAKE_ATTEMPTS {
        match sender.write(&[0]) {
            // Full: the loop is awake, or was told before.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => thread::sleep(WAKE_PAUSE),
            _ => return,
        }
    }
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

fn decode(byte: u8) -> Option<Request> {
    match i32::from(byte & !KILL) {
        0 => None,
        signal if byte & KILL == 0 => Some(Request::Stop(signal)),
        signal => Some(Request::Kill(signal)),
    }
}

/// The signals to take over, given those that are ignored: a bit each, as far as that is known.
fn wanted(ignored: Option<u64>) -> Vec<Signal> {
    let is_ignored = |signal: Signal| ignored.is_some_and(|ignored| ignored & (1 << (signal as i32 - 1)) != 0);
    let mut signals = vec![Signal::SIGTERM];
    if !is_ignored(Signal::SIGINT) {
        signals.push(Signal::SIGINT);
    }
    // Where one cannot know, SIGHUP is left as it is: it ends the process, unless `nohup` has seen to it.
    if ignored.is_some() && !is_ignored(Signal::SIGHUP) {
        signals.push(Signal::SIGHUP);
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

#[cfg(test)]
mod tests {
    use Signal::{SIGHUP, SIGINT, SIGTERM};

    use super::*;

    #[test]
    fn first_signal_stops_second_kills_duplicate_is_ignored() {
        let (sigterm, sigint) = (SIGTERM as i32, SIGINT as i32);
        let (mut first, mut left, begin) = (None, 1, Instant::now());
        let after = |milliseconds| begin + Duration::from_millis(milliseconds);
        assert_eq!(judge(&mut first, &mut left, sigterm, begin), Some(Request::Stop(sigterm)));
        assert_eq!(judge(&mut first, &mut left, sigterm, after(1)), None, "as of GNU timeout");
        assert_eq!(
            judge(&mut first, &mut left, sigint, after(1)),
            Some(Request::Kill(sigint)),
            "another signal, another request"
        );
        assert_eq!(judge(&mut first, &mut left, sigterm, after(10)), Some(Request::Kill(sigterm)));
    }

    #[test]
    fn inherited_ignored_signals_stay_ignored_except_sigterm() {
        let bit = |signal: Signal| 1 << (signal as i32 - 1);
        assert_eq!(wanted(Some(0)), [SIGTERM, SIGINT, SIGHUP]);
        assert_eq!(wanted(Some(bit(SIGINT))), [SIGTERM, SIGHUP]);
        assert_eq!(wanted(Some(bit(SIGHUP) | bit(SIGTERM))), [SIGTERM, SIGINT]);
        assert_eq!(wanted(None), [SIGTERM, SIGINT]);
    }

    #[test]
    fn requests_survive_their_encoding() {
        for request in [Request::Stop(SIGINT as i32), Request::Kill(SIGTERM as i32), Request::Stop(64)] {
            assert_eq!(decode(encode(request)), Some(request));
        }
        assert_eq!(decode(0), None);
    }
}
