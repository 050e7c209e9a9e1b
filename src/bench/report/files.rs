//! Files to write reports to: opened before a run begins, and written when it has ended.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

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

impl Outputs {
    /// Whether one of them is standard output, so that nothing else is printed there.
    pub fn takes_stdout(&self) -> bool {
        self.paths().any(is_stdout)
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.json, &self.html, &self.hdr, &self.hgrm].into_iter().flatten().map(PathBuf::as_path)
    }

    /// Opens them all, before a run is made for nothing. What is in them stays until they are written.
    ///
    /// # Errors
    ///
    /// If one of them cannot be written, or several are the same.
    pub fn open(&self) -> anyhow::Result<Files> {
        let paths: Vec<_> = self.paths().collect();
        for (number, path) in paths.iter().enumerate() {
            ensure!(!paths[..number].contains(path), "{} is to be written twice", path.display());
        }
        let open = |path: &Option<PathBuf>| path.as_deref().map(Output::open).transpose();
        Ok(Files { json: open(&self.json)?, html: open(&self.html)?, hdr: open(&self.hdr)?, hgrm: open(&self.hgrm)? })
    }
}

/// The files of [`Outputs`], open.
#[derive(Debug)]
pub struct Files {
    pub(super) json: Option<Output>,
    pub(super) html: Option<Output>,
    pub(super) hdr: Option<Output>,
    pub(super) hgrm: Option<Output>,
}

/// One file that can be written.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    /// `None`: standard output.
    file: Option<File>,
}

impl Output {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = match is_stdout(path) {
            true => None,
            false => Some(
                OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(path)
                    .with_context(|| format!("cannot write {}", path.display()))?,
            ),
        };
        Ok(Output { path: path.to_owned(), file })
    }

    /// Replaces what is in it.
    pub fn write(self, contents: &[u8]) -> anyhow::Result<()> {
        let written = match self.file {
            None => io::stdout().lock().write_all(contents),
            Some(mut file) => {
                // Pipes and devices have no length to cut.
                let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
                let cut = if regular { file.set_len(0) } else { Ok(()) };
                cut.and_then(|()| file.write_all(contents))
            }
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.with_context(|| format!("cannot write {}", self.path.display())),
        }
    }
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}
