//! What tells of relief: a PSI file, or nothing.

use super::Lost;
use crate::Level;
use crate::judge::Look;
use crate::machine::{Machine, read_again, refusal};
use crate::psi::{Psi, QUIET, Share};
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::path::Path;

/// Why a file that is there is not used.
pub(crate) const NO_PSI: &str = "it is no PSI file";

/// From which averages on a level is certain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loud {
    pub(crate) medium: Share,
    pub(crate) critical: Share,
}

/// A PSI file that stays open, so that it can be read in whatever root directory and under whatever user the service
/// runs later.
#[derive(Debug)]
pub(crate) struct Gauge {
    file: OwnedFd,
    /// Only where the file speaks of the same tasks as the source does.
    loud: Option<Loud>,
}

impl Gauge {
    /// One that only tells when it is quiet.
    pub(crate) fn of_relief(machine: &Machine, path: &Path) -> Result<Gauge, String> {
        let file = machine.open(path, OFlags::RDONLY).map_err(refusal)?;
        let gauge = Gauge { file, loud: None };
        // One that cannot be read must not hide one that can.
        gauge.read().map_err(refusal)?.ok_or(NO_PSI)?;
        Ok(gauge)
    }

    /// One that also tells when it is loud.
    pub(crate) fn new(machine: &Machine, path: &Path, loud: Loud) -> Result<Gauge, String> {
        Ok(Gauge { loud: Some(loud), ..Gauge::of_relief(machine, path)? })
    }

    /// What it says; `None` if that makes no sense.
    pub(crate) fn read(&self) -> Result<Option<Psi>, Errno> {
        Ok(Psi::parse(&read_again(&self.file)?))
    }

    pub(crate) fn look(&self) -> Result<Look, Lost> {
        let psi = match self.read() {
            Ok(psi) => psi,
            Err(Errno::NODEV) => return Err(Lost::new(refusal(Errno::NODEV))),
            // Out of memory, perhaps: silence must do this time.
            Err(_) => None,
        };
        Ok(psi.map_or_else(Look::default, |psi| self.judge(&psi)))
    }

    fn judge(&self, psi: &Psi) -> Look {
        let level = |medium: Share, critical: Share| match () {
            () if psi.full.avg10 >= critical => Level::Critical,
            () if psi.some.avg10 >= medium => Level::Medium,
            () => Level::None,
        };
        let at_least = self.loud.map_or(Level::None, |loud| level(loud.medium, loud.critical));
        Look { at_least, not_below: Some(level(QUIET, QUIET)) }
    }
}

/// A look where there may be no gauge.
pub(crate) fn look(gauge: Option<&Gauge>) -> Result<Look, Lost> {
    gauge.map_or(Ok(Look::default()), Gauge::look)
}
