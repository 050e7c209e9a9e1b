//! Watching another process: its processor time and its resident memory (proc(5)). Linux alone tells them this way.

use std::time::Duration;

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// Processor time of all its threads.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
}

/// How exactly resident memory is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    /// From the counters that the kernel keeps, which may be off by some hundred KiB, and cost nothing.
    Rough,
    /// By having its pages counted, if that is permitted.
    Exact,
}

/// Looks at a process.
///
/// # Errors
///
/// If there is no such process, or this system does not tell.
#[cfg(target_os = "linux")]
pub(super) fn usage(pid: i32, precision: Precision) -> anyhow::Result<Usage> {
    use anyhow::Context;
    use procfs::process::Process;

    let look = || -> procfs::ProcResult<Usage> {
        let process = Process::new(pid)?;
        let stat = process.stat()?;
        let cpu = if stat.num_threads == 1 {
            Duration::from_nanos(process.schedstat()?.sum_exec_runtime)
        } else {
            // Threads that have ended are in this sum too, but it counts in ticks of a hundredth of a second.
            Duration::from_secs_f64((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
        };
        let rough = stat.rss * procfs::page_size();
        let counted =
            || process.smaps_rollup().ok()?.memory_map_rollup.iter().next()?.extension.map.get("Rss").copied();
        let resident = match precision {
            Precision::Exact => counted().unwrap_or(rough),
            Precision::Rough => rough,
        };
        Ok(Usage { cpu, resident })
    };
    look().with_context(|| format!("cannot watch process {pid}"))
}

/// Looks at a process.
///
/// # Errors
///
/// Always, on this system.
#[cfg(not(target_os = "linux"))]
pub(super) fn usage(pid: i32, _: Precision) -> anyhow::Result<Usage> {
    anyhow::bail!("cannot watch process {pid}: only Linux tells what is needed")
}
