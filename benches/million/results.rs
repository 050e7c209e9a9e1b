//! What came of it: as a file, and as the table in docs/performance.md.

use std::fs;
use std::path::Path;

use anyhow::Context;
use comfy_table::{CellAlignment, Table, TableStyle, presets};
use indicatif::HumanCount;
use serde::{Deserialize, Serialize};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const BEGIN: &str = "<!-- the table of `cargo bench --bench million -- docs` begins -->\n";
const END: &str = "<!-- the table ends -->";

/// All sizes that were measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    pub echoloop: String,
    pub processors: usize,
    pub open_files: u64,
    pub memory_mib: u64,
    pub sizes: Vec<Size>,
}

/// So many connections.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Size {
    pub connections: u64,
    pub servers: u64,
    pub generators: u64,
    /// From the start of the generators to when the servers had all connections.
    pub seconds_to_open: f64,
    /// The least and the most connections of a server.
    pub fewest: u64,
    pub most: u64,
    /// Resident memory of all servers and of all generators, grown for each connection.
    pub server_bytes: f64,
    pub generator_bytes: f64,
    /// What the kernel's slabs grew by for each connection, both of its ends.
    pub kernel_bytes: f64,
    /// What all memory that is in use grew by for each connection.
    pub all_bytes: f64,
    /// Messages that were sent and verified while all were open, and what went wrong.
    pub messages: u64,
    pub errors: u64,
    /// Round trips of ten busy connections, before the others came and beside them, in microseconds.
    pub alone_p50_us: f64,
    pub alone_p99_us: f64,
    pub beside_p50_us: f64,
    pub beside_p99_us: f64,
}

impl Size {
    /// Whether every connection echoed verified bytes, twice, while all were open.
    pub fn is_sound(&self) -> bool {
        self.errors == 0 && self.messages == 2 * self.connections
    }
}

impl Results {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not what `cargo bench --bench million` writes", path.display()))
    }

    /// A row for each size.
    pub fn table(&self, style: TableStyle) -> String {
        let mut table = Table::new();
        table.load_style(style);
        table.set_header([
            "connections",
            "servers",
            "s to open",
            "fewest-most a server",
            "server B each",
            "kernel B each, both ends",
            "verified messages",
            "errors",
            "10 busy ones alone: p50, p99 us",
            "beside the others",
        ]);
        for size in &self.sizes {
            table.add_row([
                HumanCount(size.connections).to_string(),
                size.servers.to_string(),
                format!("{:.1}", size.seconds_to_open),
                format!("{}-{}", HumanCount(size.fewest), HumanCount(size.most)),
                format!("{:.0}", size.server_bytes),
                HumanCount(size.kernel_bytes as u64).to_string(),
                HumanCount(size.messages).to_string(),
                size.errors.to_string(),
                format!("{:.0}, {:.0}", size.alone_p50_us, size.alone_p99_us),
                format!("{:.0}, {:.0}", size.beside_p50_us, size.beside_p99_us),
            ]);
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }

    /// Puts the table into docs/performance.md.
    pub fn write_docs(&self) -> anyhow::Result<()> {
        let path = Path::new(ROOT).join("docs/performance.md");
        let page = fs::read_to_string(&path)?;
        let (before, rest) = page.split_once(BEGIN).context("docs/performance.md has no place for the table")?;
        let (_, after) = rest.split_once(END).context("docs/performance.md has no end of the table")?;
        let machine = format!(
            "echoloop {}, {} processors for all of it, {} MiB of memory, {} open files a process.",
            self.echoloop,
            self.processors,
            HumanCount(self.memory_mib),
            HumanCount(self.open_files)
        );
        fs::write(
            &path,
            format!("{before}{BEGIN}\n{}\n\n{machine}\n\n{END}{after}", self.table(presets::ASCII_MARKDOWN)),
        )?;
        Ok(())
    }
}
