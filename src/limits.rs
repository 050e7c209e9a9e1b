//! What this process may have, and has: open files, which bound the number of connections, and memory.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors left free for what is opened now and then, as by the resolver or the log.
const SPARE: usize = 8;

/// Raises this process's soft limit on open files to its hard limit, and returns it; `None`: there is no limit
/// (getrlimit(2), `RLIMIT_NOFILE`).
///
/// # Errors
///
/// What the kernel reports. The limit is then what it was.
pub fn raise_open_files() -> io::Result<Option<u64>> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(limit.current)
}

/// How many more descriptors may be opened, given the limit on open files, with a few left to spare.
pub fn room(limit: Option<u64>) -> usize {
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    limit.saturating_sub(open_files() + SPARE).max(1)
}

/// The resident memory of this process in bytes, where the system tells (proc(5)).
pub fn resident_memory() -> Option<u64> {
    #[cfg(target_os = "linux")]
    return Some(procfs::process::Process::myself().ok()?.statm().ok()?.resident * procfs::page_size());
    #[cfg(not(target_os = "linux"))]
    None
}

/// The number of descriptors that are open now.
fn open_files() -> usize {
    // Reading the directory takes a descriptor of its own, which is one too many in the sum.
    let listed = std::fs::read_dir("/dev/fd").map_or(0, |entries| entries.count());
    listed.saturating_sub(1).max(3)
}
