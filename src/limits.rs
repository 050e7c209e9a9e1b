//! The limits that a process is given: on open files, which bound the number of connections, on processes and on memory.

use std::{io, thread};

use indicatif::HumanCount;
use log::warn;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use rustix::io::Errno;

/// Descriptors left free for what is opened now and then, as by the resolver, or to read memory figures.
const SPARE: usize = 8;

/// What POSIX systems grant at least by default, for where nothing can be found out.
const USUAL: rlim_t = 1024;

/// `RLIM_INFINITY` as hard limit is no number that setrlimit(2) takes on macOS, which says so: "use
/// `rlim_cur = min(OPEN_MAX, rlim_max)`".
#[cfg(target_vendor = "apple")]
const OPEN_MAX: rlim_t = 10_240;

/// Raises this process's soft limit on open files to its hard limit, and returns it; `None`: there is no limit
/// (getrlimit(2), `RLIMIT_NOFILE`). If that is forbidden, as in a sandbox, a warning says so, and the limit is what it
/// was.
pub fn raise_open_files() -> Option<u64> {
    #[allow(clippy::unnecessary_cast, reason = "rlim_t is signed on FreeBSD")]
    let number = |limit: rlim_t| limit as u64;
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            warn!("cannot find out the limit on open files ({error}): assuming {}", HumanCount(number(USUAL)));
            return Some(number(USUAL));
        }
    };
    #[cfg(target_vendor = "apple")]
    let wanted = hard.min(OPEN_MAX).max(soft);
    #[cfg(not(target_vendor = "apple"))]
    let wanted = hard;
    let mut limit = soft;
    if soft != wanted {
        match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
            Ok(()) => limit = wanted,
            Err(error) => warn!("cannot raise the limit on open files from {} ({error})", HumanCount(number(soft))),
        }
    }
    (limit != nix::libc::RLIM_INFINITY).then(|| number(limit))
}

/// An error that came of that limit says so, and what to do.
pub fn explain(error: anyhow::Error) -> anyhow::Error {
    let is_limit = |cause: &io::Error| cause.raw_os_error() == Some(Errno::MFILE.raw_os_error());
    if !error.chain().any(|cause| cause.downcast_ref().is_some_and(is_limit)) {
        return error;
    }
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, _)| format!(", {soft},")).unwrap_or_default();
    error.context(format!("the limit on open files{limit} is too low: raise it (ulimit -n)"))
}

/// Starts a thread.
///
/// # Errors
///
/// What the system says, with the limits that it may have come of (pthread_create(3), EAGAIN).
pub fn start_thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(run);
    started.map(|_| ()).map_err(|error| {
        let text =
            format!("cannot start a thread: {error}; raise the limits on processes and on memory (ulimit -u, -v)");
        io::Error::new(error.kind(), text)
    })
}

/// How many more descriptors may be used for connections, given the limit on open files: a few are left to spare, half of
/// them where there are few. 0 if there is none.
pub fn room(limit: Option<u64>) -> usize {
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let left = limit.saturating_sub(open_files());
    left - SPARE.min(left / 2)
}

/// The number of descriptors that are open now.
fn open_files() -> usize {
    match std::fs::read_dir("/dev/fd") {
        // Reading the directory takes a descriptor of its own, which is one too many in the sum.
        Ok(entries) => entries.count().saturating_sub(1).max(3),
        Err(error) if error.raw_os_error() == Some(nix::libc::EMFILE) => usize::MAX,
        Err(_) => 3,
    }
}
