//! What the system says of this process: its time, its memory, its files, and what the kernel dropped before it saw it.

use std::net::SocketAddr;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Processor time so far, in seconds.
pub(super) fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The most descriptors that may be open; infinity if there is no limit.
pub(super) fn max_descriptors() -> f64 {
    getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |limit| limit as f64)
}

/// The descriptors that are open: Linux tells their number as the size of the directory (since 6.2, proc_pid_fd(5)).
/// Counting them would take as long as there are connections.
pub(super) fn open_descriptors() -> Option<u64> {
    let size = std::fs::metadata("/proc/self/fd").ok()?.len();
    (cfg!(target_os = "linux") && size > 0).then_some(size)
}

/// Resident and virtual memory in bytes (proc_pid_statm(5)).
pub(super) fn memory() -> Option<(u64, u64)> {
    #[cfg(target_os = "linux")]
    {
        let memory = procfs::process::Process::myself().ok()?.statm().ok()?;
        Some((memory.resident * procfs::page_size(), memory.size * procfs::page_size()))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// How often a connection was dropped because the backlog of its listener was full, over all listeners of this network
/// namespace (proc_pid_net(5), `netstat`).
pub(super) fn listen_overflows() -> Option<u64> {
    overflows_in(&std::fs::read_to_string("/proc/self/net/netstat").ok()?)
}

fn overflows_in(netstat: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(name, _)| *name == "ListenOverflows")?.1.parse().ok()
}

/// How many datagrams the kernel dropped because the receive buffer of the socket bound to this address was full
/// (proc_pid_net(5), `udp`).
pub(super) fn udp_drops(bound: SocketAddr) -> Option<u64> {
    let table = if bound.is_ipv4() { "/proc/self/net/udp" } else { "/proc/self/net/udp6" };
    drops_in(&std::fs::read_to_string(table).ok()?, bound)
}

fn drops_in(table: &str, bound: SocketAddr) -> Option<u64> {
    // Addresses are words of 32 bits in the order of the machine.
    let word = |octets: &[u8]| format!("{:08X}", u32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]]));
    let address: String = match bound {
        SocketAddr::V4(it) => word(&it.ip().octets()),
        SocketAddr::V6(it) => it.ip().octets().chunks(4).map(word).collect(),
    };
    let local = format!("{address}:{:04X}", bound.port());
    let sockets = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let drops = sockets.filter(|fields| fields.get(1) == Some(&local.as_str()));
    drops.map(|fields| fields.last()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let netstat =
            "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 23 4\nIpExt: InNoRoutes\nIpExt: 0\n";
        assert_eq!(overflows_in(netstat), Some(23));
        assert_eq!(overflows_in("IpExt: InNoRoutes\nIpExt: 0\n"), None);
        let bound = "127.0.0.1:7777".parse().unwrap();
        let local = if cfg!(target_endian = "little") { "0100007F" } else { "7F000001" };
        let table = format!(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
             7: {local}:1E61 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 12 2 0000000000000000 5\n\
             8: {local}:1E62 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 13 2 0000000000000000 9\n"
        );
        assert_eq!(drops_in(&table, bound), Some(5));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_time_memory_and_files() {
        let (resident, size) = memory().unwrap();
        assert!(resident > 100_000 && resident < size);
        assert!(cpu_seconds() > 0.0 && max_descriptors() > 2.0);
        assert!(listen_overflows().is_some());
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(udp_drops(socket.local_addr().unwrap()), Some(0));
        let socket = std::net::UdpSocket::bind("[::1]:0").unwrap();
        assert_eq!(udp_drops(socket.local_addr().unwrap()), Some(0));
    }
}
