//! Files to write results to: looked at before the work begins, and written when it has ended.
//!
//! A regular file appears whole: it is written aside and takes its name when it is complete, so a run that dies leaves
//! the last result as it was. What is no regular file, such as a pipe, a device or `/dev/stdout`, is written to as it is.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use log::debug;

use crate::stdio;

/// The longest chain of symbolic links that is followed (path_resolution(7)).
const LINKS: usize = 40;

/// Makes sure that all of these can be written, before work is done for nothing. What is in them stays until then. `-` is
/// standard output.
///
/// # Errors
///
/// If one of them cannot be written, or several are the same file, by whatever names.
pub fn open<'a, T>(wanted: impl IntoIterator<Item = (T, Option<&'a PathBuf>)>) -> anyhow::Result<Vec<(T, Output)>> {
    let mut taken = BTreeMap::new();
    let mut files = Vec::new();
    for (what, path) in wanted {
        let Some(path) = path else { continue };
        let show = path.display();
        let target = Target::of(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow!("cannot write {show}: {error}; its directory must be there"),
            io::ErrorKind::IsADirectory => anyhow!("cannot write {show}: it is a directory; name a file in it"),
            _ => anyhow::Error::new(error).context(format!("cannot write {show}")),
        })?;
        if let Some(identity) = target.identity().with_context(|| format!("cannot write {show}"))? {
            match taken.insert(identity, path) {
                Some(other) if other == path => bail!("{show} is to be written twice"),
                Some(other) => bail!("{} and {show} are one file, which is to be written twice", other.display()),
                None => {}
            }
        }
        files.push((what, Output { path: path.clone(), target }));
    }
    Ok(files)
}

/// What tells files apart, whatever they are called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Identity {
    Stdout,
    Stderr,
    /// A file that is there: its device and inode.
    Inode(u64, u64),
    /// One that is not there yet: those of its directory, and its name.
    New(u64, u64, std::ffi::OsString),
}

/// One file that can be written.
#[derive(Debug)]
pub struct Output {
    /// What its user calls it.
    path: PathBuf,
    target: Target,
}

/// Where writing leads.
#[derive(Debug)]
enum Target {
    Stdout,
    Stderr,
    /// No regular file, or one that only an open descriptor leads to: open, to be written to as it is.
    Open(File),
    /// A regular file with this path, behind all symbolic links, that is replaced.
    Replace(PathBuf),
    /// A regular file in a directory that takes no other: written over.
    Overwrite(PathBuf),
}

impl Output {
    /// Whether it is standard output, by whatever name, so that nothing else is printed there.
    pub fn is_stdout(&self) -> bool {
        matches!(self.target, Target::Stdout)
    }

    /// Writes it. A reader that has left a pipe has seen enough: that is no error.
    pub fn write(self, contents: &[u8]) -> anyhow::Result<()> {
        let written = match self.target {
            Target::Stdout => return Ok(stdio::print(contents)?),
            Target::Stderr => return Ok(stdio::eprint(contents)?),
            Target::Open(mut file) => match file.write_all(contents) {
                Err(error) if stdio::has_left(&error) => Ok(()),
                written => written,
            },
            Target::Replace(path) => replace(&path, contents),
            Target::Overwrite(path) => fs::write(path, contents),
        };
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Target {
    fn identity(&self) -> io::Result<Option<Identity>> {
        let inode = |metadata: &fs::Metadata| Identity::Inode(metadata.dev(), metadata.ino());
        Ok(match self {
            Target::Stdout => Some(Identity::Stdout),
            Target::Stderr => Some(Identity::Stderr),
            Target::Open(file) => {
                let metadata = file.metadata()?;
                // Devices such as /dev/null take whatever comes.
                (!metadata.file_type().is_char_device()).then(|| inode(&metadata))
            }
            Target::Replace(path) | Target::Overwrite(path) => match fs::metadata(path) {
                Ok(metadata) => Some(inode(&metadata)),
                Err(_) => {
                    let directory = fs::metadata(directory(path))?;
                    let name = path.file_name().unwrap_or_default().to_owned();
                    Some(Identity::New(directory.dev(), directory.ino(), name))
                }
            },
        })
    }

    /// Where writing to `path` leads. Nothing is changed there yet.
    fn of(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Target::Stdout);
        }
        let followed = follow(path)?;
        let Some(metadata) = followed.metadata else {
            try_directory(directory(&followed.path))?;
            return Ok(Target::Replace(followed.path));
        };
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        // /dev/stdout, and a file that standard output goes to: what is written there must come after what was.
        if is_same(&metadata, io::stdout()) && !is_null(&metadata) {
            return Ok(Target::Stdout);
        }
        if is_same(&metadata, io::stderr()) && !is_null(&metadata) {
            return Ok(Target::Stderr);
        }
        let file = OpenOptions::new().write(true).open(path)?;
        if !metadata.is_file() || followed.by_descriptor {
            return Ok(Target::Open(file));
        }
        match try_directory(directory(&followed.path)) {
            Ok(()) => Ok(Target::Replace(followed.path)),
            Err(error) => {
                debug!("{}: written over, and not replaced: {error}", path.display());
                Ok(Target::Overwrite(followed.path))
            }
        }
    }
}

/// What a path leads to.
struct Followed {
    /// The path behind all symbolic links.
    path: PathBuf,
    /// Of what is there, if something is.
    metadata: Option<fs::Metadata>,
    /// Whether it leads over a descriptor of a process, such as /dev/fd/3.
    by_descriptor: bool,
}

/// Follows symbolic links, also to what is not there yet.
fn follow(path: &Path) -> io::Result<Followed> {
    let mut followed = Followed { path: path.to_owned(), metadata: fs::metadata(path).ok(), by_descriptor: false };
    for _ in 0..LINKS {
        let parent = directory(&followed.path);
        let canonical = fs::canonicalize(parent)?;
        followed.by_descriptor |= canonical.starts_with("/proc") || canonical.starts_with("/dev/fd");
        match fs::read_link(&followed.path) {
            Ok(target) => followed.path = parent.join(target),
            // It is no link, or not there.
            Err(_) => return Ok(followed),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn is_same(metadata: &fs::Metadata, stream: impl AsFd) -> bool {
    let Ok(stream) = stream.as_fd().try_clone_to_owned().and_then(|stream| File::from(stream).metadata()) else {
        return false;
    };
    (metadata.dev(), metadata.ino()) == (stream.dev(), stream.ino())
}

/// A device that is no terminal: two that write there do not get into each other's way.
fn is_null(metadata: &fs::Metadata) -> bool {
    let null = fs::metadata("/dev/null").map(|null| null.rdev());
    metadata.file_type().is_char_device() && null.is_ok_and(|null| null == metadata.rdev())
}

/// A file beside others, for what will take the name of one of them.
fn create_aside(directory: &Path) -> io::Result<(PathBuf, File)> {
    let mut number = 0;
    loop {
        let path = directory.join(format!(".echoloop-{}-{number}.tmp", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 100 => number += 1,
            opened => return opened.map(|file| (path, file)),
        }
    }
}

/// Makes sure that files can be made in a directory.
fn try_directory(directory: &Path) -> io::Result<()> {
    let (path, _) = create_aside(directory)?;
    fs::remove_file(path)
}

/// Puts a file with these contents in the place of `path`.
fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let (aside, mut file) = create_aside(directory(path))?;
    let mut write = || -> io::Result<()> {
        if let Ok(metadata) = fs::metadata(path) {
            // To whom it belonged only root can give it.
            let _ = fchown(&file, Some(metadata.uid()), Some(metadata.gid()));
            file.set_permissions(metadata.permissions())?;
        }
        file.write_all(contents)?;
        // Some file systems tell only now that there is no room; and a crash must not find the name and not the contents.
        file.sync_all()?;
        match fs::rename(&aside, path) {
            // A file that is mounted, as into a container, cannot be replaced.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                fs::remove_file(&aside)?;
                fs::write(path, contents)
            }
            renamed => renamed,
        }
    };
    write().inspect_err(|_| _ = fs::remove_file(&aside))
}
