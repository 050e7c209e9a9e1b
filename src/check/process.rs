//! Experiments on the service's process, where it is on this machine (proc(5), Linux).

use std::time::Duration;

use super::lab::Lab;
use super::verdict::{Outcome, Trouble};
use crate::count::counted;

/// Connections that are counted on.
#[cfg(target_os = "linux")]
const CONNECTIONS: usize = 100;

/// How long it is watched while nothing comes.
const WATCHED: Duration = Duration::from_millis(600);

/// The most of a processor that a service takes while nothing comes: timers and statistics may wake it up.
#[cfg(target_os = "linux")]
const IDLE_SHARE: f64 = 0.05;

/// The most that a silent connection takes. A thread's stack is less, as far as it is used.
#[cfg(target_os = "linux")]
const SILENT: u64 = 256 * 1024;

/// The most that a connection takes that never reads: more than any usual buffers.
#[cfg(target_os = "linux")]
const UNREADING: u64 = 16 * 1024 * 1024;

/// Makes sure that there is such a process.
///
/// # Errors
///
/// If there is none.
pub(super) fn ensure_there(pid: i32) -> anyhow::Result<()> {
    let found = rustix::process::Pid::from_raw(pid).map(rustix::process::test_kill_process);
    // One that must not be signalled is there all the same.
    anyhow::ensure!(
        !matches!(found, Some(Err(rustix::io::Errno::SRCH)) | None),
        "--pid {pid}: there is no such process on this machine"
    );
    Ok(())
}

#[cfg(not(target_os = "linux"))]
mod unknown {
    use super::*;

    fn no(_: &mut Lab) -> Outcome {
        let _ = WATCHED;
        Err(Trouble::unjudged("needs Linux (proc(5))"))
    }

    pub(in super::super) use no as idle;
    pub(in super::super) use no as descriptors;
    pub(in super::super) use no as memory_silent;
    pub(in super::super) use no as memory_unreading;
}

#[cfg(not(target_os = "linux"))]
pub(super) use unknown::*;

#[cfg(target_os = "linux")]
pub(super) use linux::*;

#[cfg(target_os = "linux")]
mod linux {
    use procfs::process::{Process, all_processes};

    use super::super::streams::UNBOUNDED;
    use super::super::verdict::Finding;
    use super::*;

    /// The process that is told of, and its children.
    fn family(lab: &Lab) -> Result<Vec<Process>, Trouble> {
        let Some(pid) = lab.pid else { return Err(Trouble::unjudged("needs --pid or --exec")) };
        let gone = |error| Trouble::Unjudged(format!("cannot look at process {pid}: {error}"));
        let mut family = vec![Process::new(pid).map_err(gone)?];
        // Of a service that was started here and has put itself into the background there are only the children.
        let is_this = pid == std::process::id().cast_signed();
        let others: Vec<_> = all_processes().map_err(gone)?.filter_map(Result::ok).collect();
        let mut at = 0;
        while at < family.len() {
            let parent = family[at].pid;
            for process in &others {
                if process.stat().is_ok_and(|stat| stat.ppid == parent)
                    && let Ok(child) = Process::new(process.pid)
                {
                    family.push(child);
                }
            }
            at += 1;
        }
        family.drain(..usize::from(is_this));
        Ok(family)
    }

    /// Bytes of memory. What processes share is counted once, as far as the kernel tells (proc(5), smaps_rollup): or one
    /// that forks would be blamed for its program with each connection.
    fn resident(family: &[Process]) -> u64 {
        let proportional = |process: &Process| {
            let rollup = process.smaps_rollup().ok()?.memory_map_rollup;
            rollup.0.first()?.extension.map.get("Pss").copied()
        };
        let all = |process: &Process| process.statm().map_or(0, |statm| statm.resident * procfs::page_size());
        family.iter().map(|process| proportional(process).unwrap_or_else(|| all(process))).sum()
    }

    /// A connection that is served. Where it is not, there is nothing to learn about the process.
    fn served(lab: &mut Lab) -> Result<usize, Trouble> {
        let mut serve = || {
            let line = lab.connect()?;
            lab.ping(line, 16).map(|()| line)
        };
        serve().map_err(|trouble| match trouble {
            Trouble::Broken(Finding { got, .. }) => Trouble::Unjudged(format!("a connection was not served: {got}")),
            other => other,
        })
    }

    fn processor(family: &[Process]) -> f64 {
        let ticks = |process: &Process| process.stat().map_or(0, |stat| stat.utime + stat.stime);
        family.iter().map(ticks).sum::<u64>() as f64 / procfs::ticks_per_second() as f64
    }

    fn open(family: &[Process]) -> usize {
        family.iter().filter_map(|process| process.fd_count().ok()).sum()
    }

    pub(in super::super) fn idle(lab: &mut Lab) -> Outcome {
        let family = family(lab)?;
        let before = processor(&family);
        lab.rest(WATCHED)?;
        let with_one = {
            served(lab)?;
            let before = processor(&family);
            lab.rest(WATCHED)?;
            processor(&family) - before
        };
        let used = (processor(&family) - before).max(with_one) / WATCHED.as_secs_f64();
        if used <= IDLE_SHARE {
            return Ok(());
        }
        let got = format!("{:.0} % of a CPU was used", used.min(1.0) * 100.0);
        Err(Finding::new("nothing", &got).timing().into())
    }

    pub(in super::super) fn descriptors(lab: &mut Lab) -> Outcome {
        let before = open(&family(lab)?);
        let mut lines = Vec::new();
        for _ in 0..CONNECTIONS {
            lines.push(served(lab)?);
        }
        for (number, line) in lines.into_iter().enumerate() {
            if number % 2 == 0 { lab.close(line) } else { lab.reset(line) }
        }
        let patience = lab.patience;
        let mut left = 0;
        lab.run(patience, |lab| {
            left = family(lab).map_or(0, |family| open(&family).saturating_sub(before));
            left < CONNECTIONS / 10
        })?;
        if left < CONNECTIONS / 10 {
            return Ok(());
        }
        let sent = format!("{CONNECTIONS} connections, half of them closed and half reset");
        Err(Finding::new(&sent, &format!("{} left open", counted(left, "descriptor"))).timing().into())
    }

    pub(in super::super) fn memory_silent(lab: &mut Lab) -> Outcome {
        let before = resident(&family(lab)?);
        for _ in 0..CONNECTIONS {
            served(lab)?;
        }
        let each = resident(&family(lab)?).saturating_sub(before) / CONNECTIONS as u64;
        if each <= SILENT {
            return Err(Trouble::Note(format!("{} KiB per connection", each / 1024)));
        }
        Err(Finding::new(&format!("{CONNECTIONS} connections"), &format!("{} KiB per connection", each / 1024)).into())
    }

    pub(in super::super) fn memory_unreading(lab: &mut Lab) -> Outcome {
        let before = resident(&family(lab)?);
        let line = lab.dial(true)?;
        lab.await_open(line)?;
        lab.flood(line, UNBOUNDED)?;
        let taken = resident(&family(lab)?).saturating_sub(before);
        lab.reset(line);
        if taken <= UNREADING {
            return Err(Trouble::Note(format!("{} KiB", taken / 1024)));
        }
        Err(Finding::new("an endless stream, without reading the echo", &format!("{} MiB more", taken >> 20)).into())
    }
}
