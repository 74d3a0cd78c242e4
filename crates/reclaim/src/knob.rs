//! A file of the kernel's that does something when it is written.
//!
//! Invariant: it is opened before anything is done, so what is not allowed is told first, and it is never made.

use crate::refused::{LeverError, Refusal, Right};
use crate::slow;
use ebbtide_observe::Root;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Knob {
    path: PathBuf,
    file: File,
    right: Right,
}

/// How writing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    Done,
    /// The kernel still works at it.
    StillAtIt,
}

impl Knob {
    /// `path` of this root, which takes `right`.
    pub(crate) fn open(root: &Root, path: &str, right: Right) -> Result<Knob, LeverError> {
        Knob::at(root.path(path), right)
    }

    /// The file at `path`, which takes `right`.
    pub(crate) fn at(path: PathBuf, right: Right) -> Result<Knob, LeverError> {
        let file = File::options().write(true).open(&path);
        let file = file.map_err(|error| Refusal::io(&path, &error, &[right]))?;
        Ok(Knob { path, file, right })
    }

    /// The open file, for who writes in ways of its own.
    pub(crate) fn into_file(self) -> File {
        self.file
    }

    /// Writes `text` in one call.
    pub(crate) fn write(&mut self, text: &str) -> Result<(), LeverError> {
        let done = self.file.write_all(text.as_bytes());
        Ok(done.map_err(|error| Refusal::io(&self.path, &error, &[self.right]))?)
    }

    /// Has another process write `text`, and waits for it.
    pub(crate) fn write_apart(
        self,
        text: &'static str,
        patience: Duration,
        tick: &mut dyn FnMut(Duration),
    ) -> Result<Written, LeverError> {
        let Knob { path, file, .. } = self;
        match slow::patiently(patience, tick, move || slow::write_apart(file, text)) {
            None => Ok(Written::StillAtIt),
            Some(Ok(())) => Ok(Written::Done),
            Some(Err(error)) => Err(LeverError::Impossible(format!("{}: {error}", path.display()))),
        }
    }
}
