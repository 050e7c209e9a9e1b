//! The files that reports of runs are written to.

use std::path::PathBuf;

use crate::files::{self, Output};

/// Where to write what came of a run. `-` is standard output.
#[derive(Debug, Clone, Default)]
pub struct Outputs {
    /// The run, for `echoloop report`.
    pub json: Option<PathBuf>,
    /// A page with charts.
    pub html: Option<PathBuf>,
    /// An HdrHistogram interval log.
    pub hdr: Option<PathBuf>,
    /// HdrHistogram's percentile distribution.
    pub hgrm: Option<PathBuf>,
}

/// What is written to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Html,
    Hdr,
    Hgrm,
}

impl Outputs {
    /// Makes sure that all of them can be written, before a run is made for nothing. What is in them stays until then.
    ///
    /// # Errors
    ///
    /// If one of them cannot be written, or several are the same file, by whatever names.
    pub fn open(&self) -> anyhow::Result<Files> {
        let wanted = [
            (Format::Json, self.json.as_ref()),
            (Format::Html, self.html.as_ref()),
            (Format::Hdr, self.hdr.as_ref()),
            (Format::Hgrm, self.hgrm.as_ref()),
        ];
        Ok(Files(files::open(wanted)?))
    }
}

/// The files of [`Outputs`], ready to be written.
#[derive(Debug)]
pub struct Files(pub(super) Vec<(Format, Output)>);

impl Files {
    /// Whether one of them is standard output, by whatever name, so that nothing else is printed there.
    pub fn take_stdout(&self) -> bool {
        self.0.iter().any(|(_, output)| output.is_stdout())
    }
}
