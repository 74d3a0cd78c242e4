//! What tells of relief: a PSI file, or nothing.

use super::{Lost, read};
use crate::Level;
use crate::judge::Look;
use crate::machine::{Machine, refusal};
use crate::psi::{Psi, QUIET, Share};
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use std::path::Path;

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
        gauge.psi()?;
        Ok(gauge)
    }

    /// One that also tells when it is loud.
    pub(crate) fn new(machine: &Machine, path: &Path, loud: Loud) -> Result<Gauge, String> {
        Ok(Gauge { loud: Some(loud), ..Gauge::of_relief(machine, path)? })
    }

    /// What it says; `None` if that makes no sense.
    pub(crate) fn read(&self) -> Result<Option<Psi>, Lost> {
        Ok(read(&self.file)?.and_then(|text| Psi::parse(&text)))
    }

    /// What it says, or why it is not used.
    pub(crate) fn psi(&self) -> Result<Psi, String> {
        self.read().map_err(|lost| lost.0)?.ok_or_else(|| "it is no PSI file".into())
    }

    pub(crate) fn look(&self) -> Result<Look, Lost> {
        Ok(self.read()?.map_or_else(Look::default, |psi| self.judge(&psi)))
    }

    fn judge(&self, psi: &Psi) -> Look {
        let level = |medium: Share, critical: Share| {
            if psi.full.avg10 >= critical {
                Level::Critical
            } else if psi.some.avg10 >= medium {
                Level::Medium
            } else {
                Level::None
            }
        };
        let at_least = self.loud.map_or(Level::None, |loud| level(loud.medium, loud.critical));
        Look { at_least, not_below: Some(level(QUIET, QUIET)) }
    }
}
