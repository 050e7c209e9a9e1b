//! Where echoloop stands: it and its peers, driven by `echoloop bench` over loopback, all bytes verified.
//!
//! Each server runs as a process of its own. In each round every server has its turn, in an order that rotates, so that
//! what disturbs the machine disturbs all of them alike, and ratios are taken within a round. Server and load are
//! pinned to a core each where there are two.
//!
//! `scenarios` are the ways to load them, `servers` how each is started, `run` the rounds, `results` what comes of them.

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("This benchmark pins processes and reads their memory as Linux does, and runs there alone.");
}

#[cfg(target_os = "linux")]
mod blocking;
#[cfg(target_os = "linux")]
mod chart;
#[cfg(target_os = "linux")]
mod epoll;
#[cfg(target_os = "linux")]
mod io_uring;
#[cfg(target_os = "linux")]
mod listening;
#[cfg(target_os = "linux")]
mod load;
#[cfg(target_os = "linux")]
mod measure;
#[cfg(target_os = "linux")]
mod results;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod scenarios;
#[cfg(target_os = "linux")]
mod servers;
#[cfg(target_os = "linux")]
mod targets;
#[cfg(target_os = "linux")]
mod tokio_tasks;

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    run::main()
}
